#include "report/json_lines.h"

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

JsonLines::JsonLines(const std::filesystem::path& path, std::int64_t keep_through_step) : file_(path) {
  const Kept kept = kept_of(read_file(path, ExitCode::kCheckpoint), keep_through_step);
  kept_step_ = kept.step;
  file_.cut(static_cast<std::int64_t>(kept.bytes));
}

}  // namespace plimsoll::report
