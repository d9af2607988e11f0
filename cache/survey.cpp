#include "cache/survey.h"

#include <algorithm>
#include <set>
#include <system_error>

#include "cache/layout.h"
#include "cache/segment.h"
#include "core/error.h"
#include "core/file.h"

namespace plimsoll::cache {
namespace {

namespace fs = std::filesystem;

void look_through(const SegmentReader& segment, bool check, FolderReport& report, std::set<std::int64_t>& samples) {
  std::vector<std::byte> payload;
  const std::uint64_t good = segment.scan([&](const Placed& placed) {
    ++report.records;
    samples.insert(placed.key.sample);
    report.newest_stamp = std::max(report.newest_stamp, placed.key.stamp);
    if (!check) return;
    payload.resize(payload_bytes(placed.key));
    if (!segment.read(placed, payload))
      report.damaged.push_back(fmt::format("{}: the record at byte {} (sample {}) is not what was written",
                                           segment.path().string(), placed.offset, placed.key.sample));
  });
  ++report.segments;
  report.bytes += good;
  report.being_written += is_being_written(segment.path()) ? 1 : 0;
  const std::uint64_t all = segment.bytes();
  if (all > good) report.torn_bytes += all - good;
  if (const auto hidden = segment.hidden_behind(good); hidden > 0)
    report.damaged.push_back(fmt::format("{}: byte {} is damaged, and {} records behind it are not used",
                                         segment.path().string(), good, hidden));
}

FolderReport report_on(const fs::path& folder, std::uint64_t fingerprint, bool check) {
  FolderReport report;
  report.folder = folder;
  std::set<std::int64_t> samples;
  for (const fs::path& path : files_of(folder)) {
    std::error_code missing;
    if (path.extension() != kSegment || fs::file_size(path, missing) < kSegmentHeader) continue;
    try {
      look_through(SegmentReader(path, fingerprint), check, report, samples);
    } catch (const Error& error) {
      report.damaged.emplace_back(error.what());
    }
  }
  report.samples = std::ssize(samples);
  try {
    report.fingerprint = read_file(folder / kFingerprintFile);
  } catch (const Error& error) {  // a writer that was killed right after it had made the folder has left nothing
    if (report.segments > 0) report.damaged.emplace_back(error.what());
  }
  return report;
}

std::vector<fs::path> folders_to_clear(const fs::path& dir, const std::vector<std::string>& names) {
  std::vector<fs::path> folders;
  const bool all = std::ranges::find(names, "all") != names.end();
  for (const fs::path& folder : files_of(dir)) {
    const std::string name = folder.filename().string();
    if (!fingerprint_of_folder(name) || !fs::is_directory(folder)) continue;
    if (all || std::ranges::find(names, name) != names.end()) folders.push_back(folder);
  }
  for (const std::string& name : names) {
    if (name != "all" && std::ranges::find(folders, dir / name) == folders.end())
      fail(ExitCode::kUsage, "{}: is no folder of a feature cache; `plimsoll cache stat` lists them",
           (dir / name).string());
  }
  for (const fs::path& folder : folders) {  // all of them before anything is removed
    for (const fs::path& file : files_of(folder)) {
      if (!is_cache_file(file))
        fail(ExitCode::kUsage, "{}: is no file of a feature cache; move it away, then clear again", file.string());
      if (file.extension() == kSegment && is_being_written(file))
        fail(ExitCode::kUsage, "{}: a run is writing it; stop the run, then clear again", file.string());
    }
  }
  return folders;
}

}  // namespace

std::vector<FolderReport> survey(const fs::path& dir, bool check) {
  std::vector<FolderReport> reports;
  for (const fs::path& folder : files_of(dir)) {
    const auto fingerprint = fingerprint_of_folder(folder.filename().string());
    if (fingerprint && fs::is_directory(folder)) reports.push_back(report_on(folder, *fingerprint, check));
  }
  return reports;
}

std::uint64_t clear(const fs::path& dir, const std::vector<std::string>& names) {
  std::uint64_t bytes = 0;
  for (const fs::path& folder : folders_to_clear(dir, names)) {
    for (const fs::path& file : files_of(folder)) {
      std::error_code error;
      const auto size = fs::file_size(file, error);
      if (!error) bytes += size;
      if (!fs::remove(file, error)) fail(ExitCode::kData, "{}: cannot be removed: {}", file.string(), error.message());
    }
    std::error_code error;
    if (!fs::remove(folder, error))
      fail(ExitCode::kData, "{}: cannot be removed: {}", folder.string(), error.message());
  }
  return bytes;
}

}  // namespace plimsoll::cache
