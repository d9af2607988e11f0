#include "core/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "core/bytes.h"

namespace plimsoll {
namespace {

/// What a person can do about an errno.
std::string advice(int error) {
  switch (error) {
    case ENOSPC:
    case EDQUOT:
      return "free space there or choose another folder";
    case EACCES:
    case EPERM:
    case EROFS:
      return "check the permissions or choose another folder";
    case ENOENT:
      return "check the path";
    case EFBIG:
      return "the file-size limit (ulimit -f) or the file system does not allow it";
    default:
      return "check the disk";
  }
}

class Descriptor {
 public:
  Descriptor(const std::filesystem::path& path, int flags) : value_(::open(path.c_str(), flags | O_CLOEXEC)) {}
  ~Descriptor() {
    if (value_ >= 0) ::close(value_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return value_; }

 private:
  int value_;
};

[[noreturn]] void fail_at(ExitCode code, const char* doing, const std::filesystem::path& path) {
  const int error = errno;
  fail(code, "cannot {} {}: {}; {}", doing, path.string(), std::strerror(error), advice(error));
}

ssize_t retry_read(int descriptor, char* to, std::size_t size) {
  ssize_t got = 0;
  do got = ::read(descriptor, to, size);
  while (got < 0 && errno == EINTR);
  return got;
}

}  // namespace

std::string read_file(const std::filesystem::path& path, ExitCode code) {
  const Descriptor file(path, O_RDONLY);
  struct stat status {};
  if (file.get() < 0 || ::fstat(file.get(), &status) != 0) fail_at(code, "open", path);
  if (S_ISDIR(status.st_mode)) fail(code, "cannot read {}: it is a folder; give a file", path.string());
  std::string content;
  // Grows as it reads: pipes and /proc have no size to trust.
  for (std::size_t used = 0;;) {
    content.resize(used + std::max<std::size_t>(4096, used == 0 ? static_cast<std::size_t>(status.st_size) + 1 : used));
    const ssize_t got = retry_read(file.get(), content.data() + used, content.size() - used);
    if (got < 0) fail_at(code, "read", path);
    used += static_cast<std::size_t>(got);
    if (got == 0) {
      content.resize(used);
      return content;
    }
  }
}

DurableFile::DurableFile(std::filesystem::path path, ExitCode code)
    : path_(std::move(path)), temporary_(fmt::format("{}.part-{}", path_.string(), ::getpid())), code_(code) {
  descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (descriptor_ < 0) fail_at(code_, "create", path_);
}

DurableFile::~DurableFile() {
  if (descriptor_ < 0) return;
  ::close(descriptor_);
  ::unlink(temporary_.c_str());
}

void DurableFile::give_up(const char* doing) {
  const int error = errno;
  fail(code_, "cannot {} {} (after {}): {}; {}", doing, path_.string(),
       format_bytes(static_cast<std::int64_t>(written_)), std::strerror(error), advice(error));
}

void DurableFile::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(descriptor_, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) give_up("write");
    hasher_.update(bytes.first(static_cast<std::size_t>(n)));
    written_ += static_cast<std::size_t>(n);
    bytes = bytes.subspan(static_cast<std::size_t>(n));
  }
}

void DurableFile::commit() {
  if (::fsync(descriptor_) != 0) give_up("sync");
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) give_up("rename");
  ::close(descriptor_);
  descriptor_ = -1;
  fsync_directory(path_.has_parent_path() ? path_.parent_path() : ".", code_);
}

void write_file_durably(const std::filesystem::path& path, std::string_view content, ExitCode code) {
  DurableFile file(path, code);
  file.write(std::as_bytes(std::span(content)));
  file.commit();
}

void fsync_directory(const std::filesystem::path& folder, ExitCode code) {
  const Descriptor directory(folder, O_RDONLY | O_DIRECTORY);
  if (directory.get() < 0) fail_at(code, "open the folder", folder);
  // Some network file systems cannot sync a folder and say EINVAL; nothing better can be done there.
  if (::fsync(directory.get()) != 0 && errno != EINVAL) fail_at(code, "sync the folder", folder);
}

void rename_durably(const std::filesystem::path& from, const std::filesystem::path& to, ExitCode code) {
  if (::rename(from.c_str(), to.c_str()) != 0) fail_at(code, "rename to", to);
  fsync_directory(to.has_parent_path() ? to.parent_path() : ".", code);
}

}  // namespace plimsoll
