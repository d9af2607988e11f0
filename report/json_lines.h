#pragma once
// Streams of JSON, a line a record, that survive a crash: metrics.jsonl, decisions.jsonl, cache.jsonl.

#include <cstdint>
#include <filesystem>
#include <string>

#include "report/line_file.h"

namespace plimsoll::report {

/// Appends records to a file; each reaches the kernel before append() returns, so that a killed process loses none that
/// it reported. One writer per file, not thread-safe. Errors are Error(kCheckpoint) that name the file.
class JsonLines {
 public:
  /// Opens `path`, creating it, and cuts it after the last record whose "step" is at most `keep_through_step` (0
  /// empties it: a run that starts anew). Records stand in the order of their steps. A torn last line, or one that is
  /// no JSON object with an integer "step", is cut with all that follows: a resumed run writes them again.
  JsonLines(const std::filesystem::path& path, std::int64_t keep_through_step);

  /// `record` is one JSON object without a line break; it must hold its "step".
  void append(const std::string& record) { file_.append(record); }
  /// Waits until the disk has it all. Call before a checkpoint is declared complete: then what a resume keeps is there
  /// even after a power cut.
  void sync() { file_.sync(); }
  /// Step of the last record that was kept when the file was opened; 0 when none was.
  std::int64_t kept_step() const { return kept_step_; }

 private:
  LineFile file_;
  std::int64_t kept_step_ = 0;
};

}  // namespace plimsoll::report
