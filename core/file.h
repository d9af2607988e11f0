#pragma once
// Files that are there whole or not at all. Every error names the file and what to do about it.

#include <cstddef>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

#include "core/error.h"
#include "core/hash.h"

namespace plimsoll {

/// The whole file. Throws Error(code) when it is missing, unreadable or a folder.
std::string read_file(const std::filesystem::path& path, ExitCode code = ExitCode::kData);

/// An output file that appears under its name only when commit() returns: written beside it under a temporary name,
/// synced, renamed, folder synced. Destroyed without commit(), or after an error, it leaves nothing behind. Throws
/// Error(code); a full disk says how much was being written. Not thread-safe.
class DurableFile {
 public:
  explicit DurableFile(std::filesystem::path path, ExitCode code = ExitCode::kCheckpoint);
  ~DurableFile();
  DurableFile(const DurableFile&) = delete;
  DurableFile& operator=(const DurableFile&) = delete;
  void write(std::span<const std::byte> bytes);
  void commit();
  /// xxh3-128 of all that was written so far.
  std::string digest() const { return hasher_.digest_128(); }

 private:
  [[noreturn]] void give_up(const char* doing);
  std::filesystem::path path_;
  std::string temporary_;
  ExitCode code_;
  int descriptor_ = -1;
  std::size_t written_ = 0;
  Hasher hasher_;
};

/// DurableFile in one call. An existing file is replaced at once or stays as it was.
void write_file_durably(const std::filesystem::path& path, std::string_view content,
                        ExitCode code = ExitCode::kCheckpoint);

/// Makes renames and new names in `folder` survive a power cut.
void fsync_directory(const std::filesystem::path& folder, ExitCode code = ExitCode::kCheckpoint);

/// Renames `from` (a file or a folder whose files are already synced) to `to` and syncs the folder they are in.
void rename_durably(const std::filesystem::path& from, const std::filesystem::path& to,
                    ExitCode code = ExitCode::kCheckpoint);

}  // namespace plimsoll
