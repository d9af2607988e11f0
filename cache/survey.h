#pragma once
// What lies in a cache folder, whatever it is of: for `plimsoll cache`. Without torch.

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace plimsoll::cache {

/// One fingerprint's folder.
struct FolderReport {
  std::filesystem::path folder;
  std::string fingerprint;  ///< fingerprint.json as it is; empty where it cannot be read
  std::int64_t segments = 0, records = 0, samples = 0;
  std::uint64_t bytes = 0;           ///< of good records and heads
  std::uint64_t torn_bytes = 0;      ///< behind them: what a writer left when it was killed, or is writing now
  std::int64_t being_written = 0;    ///< segments that a run holds open now, as far as the file system knows
  std::int64_t newest_stamp = 0;     ///< of the newest record (record.h)
  std::vector<std::string> damaged;  ///< files and records that are not used, each with the reason
};

/// Every folder under `dir`, by name. `check`: reads every payload too. Changes nothing. Throws Error(kData) when `dir`
/// cannot be read.
std::vector<FolderReport> survey(const std::filesystem::path& dir, bool check);

/// Removes these folders of `dir` ("all": every one). Returns the bytes. Throws Error(kUsage) for a name that is no
/// folder of a cache, for one that holds anything else than a cache, and for one that a run is writing to, before
/// anything is removed; Error(kData) when the disk refuses.
std::uint64_t clear(const std::filesystem::path& dir, const std::vector<std::string>& names);

}  // namespace plimsoll::cache
