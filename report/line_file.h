#pragma once
// A file of lines to which one process appends.

#include <cstdint>
#include <filesystem>
#include <string>

namespace plimsoll::report {

/// Each line reaches the kernel before append() returns, so that a killed process loses none. One writer per file, not
/// thread-safe. Errors are Error(kCheckpoint) that name the file.
class LineFile {
 public:
  /// Opens the file, creating it.
  explicit LineFile(std::filesystem::path path);
  ~LineFile();
  LineFile(const LineFile&) = delete;
  LineFile& operator=(const LineFile&) = delete;

  /// Leaves so many bytes of it.
  void cut(std::int64_t bytes);
  /// `line` is without a break.
  void append(const std::string& line);
  /// Waits until the disk has it all.
  void sync();

 private:
  [[noreturn]] void give_up(const char* doing) const;
  std::filesystem::path path_;
  int descriptor_ = -1;
};

}  // namespace plimsoll::report
