#include "report/json_lines.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>

#include "core/error.h"
#include "core/file.h"

namespace plimsoll::report {
namespace {

std::optional<std::int64_t> step_of(std::string_view line) {
  const auto json = nlohmann::json::parse(line, nullptr, false);
  if (!json.is_object()) return std::nullopt;
  const auto step = json.find("step");
  if (step == json.end() || !step->is_number_integer()) return std::nullopt;
  return step->get<std::int64_t>();
}

struct Kept {
  std::size_t bytes = 0;
  std::int64_t step = 0;
};

/// How much of the file a run that continues after `keep_through_step` keeps.
Kept kept_of(std::string_view text, std::int64_t keep_through_step) {
  Kept kept;
  for (std::size_t end = 0; (end = text.find('\n', kept.bytes)) != std::string_view::npos;) {
    const auto step = step_of(text.substr(kept.bytes, end - kept.bytes));
    if (!step || *step > keep_through_step) break;
    kept = {end + 1, *step};
  }
  return kept;
}

}  // namespace

JsonLines::JsonLines(const std::filesystem::path& path, std::int64_t keep_through_step) : path_(path) {
  descriptor_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (descriptor_ < 0) give_up("open");
  const Kept kept = kept_of(read_file(path, ExitCode::kCheckpoint), keep_through_step);
  kept_step_ = kept.step;
  if (::ftruncate(descriptor_, static_cast<off_t>(kept.bytes)) != 0) give_up("cut");
}

JsonLines::~JsonLines() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

void JsonLines::append(const std::string& record) {
  const std::string line = record + "\n";
  // One call per line: a reader that follows the file sees whole lines.
  for (std::string_view rest = line; !rest.empty();) {
    const ssize_t n = ::write(descriptor_, rest.data(), rest.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) give_up("write");
    rest.remove_prefix(static_cast<std::size_t>(n));
  }
}

void JsonLines::sync() {
  if (::fsync(descriptor_) != 0) give_up("sync");
}

void JsonLines::give_up(const char* doing) const {
  const int error = errno;
  fail(ExitCode::kCheckpoint, "cannot {} {}: {}; free space or choose another run.dir", doing, path_.string(),
       std::strerror(error));
}

}  // namespace plimsoll::report
