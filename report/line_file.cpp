#include "report/line_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string_view>
#include <utility>

#include "core/error.h"

namespace plimsoll::report {

LineFile::LineFile(std::filesystem::path path) : path_(std::move(path)) {
  descriptor_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (descriptor_ < 0) give_up("open");
}

LineFile::~LineFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

void LineFile::cut(std::int64_t bytes) {
  if (::ftruncate(descriptor_, static_cast<off_t>(bytes)) != 0) give_up("cut");
}

void LineFile::append(const std::string& line) {
  const std::string whole = line + "\n";
  // One call per line: a reader that follows the file sees whole lines.
  for (std::string_view rest = whole; !rest.empty();) {
    const ssize_t n = ::write(descriptor_, rest.data(), rest.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) give_up("write");
    rest.remove_prefix(static_cast<std::size_t>(n));
  }
}

void LineFile::sync() {
  if (::fsync(descriptor_) != 0) give_up("sync");
}

void LineFile::give_up(const char* doing) const {
  const int error = errno;
  fail(ExitCode::kCheckpoint, "cannot {} {}: {}; free space or choose another run.dir", doing, path_.string(),
       std::strerror(error));
}

}  // namespace plimsoll::report
