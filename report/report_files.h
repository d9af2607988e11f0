#pragma once
// The report of a run, as files in its folder: batch_metrics.json, epoch_metrics.json, training_report.json,
// training_curves.png and task_comparison.png where gnuplot is installed, report.html. Made anew from the streams each
// time, also of a run that goes on; each file is there whole or not at all.

#include <filesystem>
#include <string>
#include <vector>

namespace plimsoll::report {

struct WrittenReport {
  std::vector<std::filesystem::path> files;
  std::vector<std::string> notes;  ///< what was left out, and why; for a person
  std::string summary;             ///< for a person, with line breaks
  std::string training_report;     ///< the text of training_report.json
};

/// Reads the streams in `run_dir` and writes the report beside them. Throws Error(kData) for streams that cannot be
/// read (report/run_streams.h) and where the disk refuses. Plots that cannot be drawn are said in the notes.
WrittenReport write_report(const std::filesystem::path& run_dir);

/// The same for a run that just ended, whose outcome a report must not change: logs one line, a warning when it failed.
/// Never throws. One process of a run calls it, after its streams are closed and exit.json is written.
void write_report_of_ended_run(const std::filesystem::path& run_dir) noexcept;

}  // namespace plimsoll::report
