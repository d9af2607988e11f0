#include "report/report_files.h"

#include <spdlog/spdlog.h>

#include <exception>

#include "core/file.h"
#include "report/report_json.h"

namespace plimsoll::report {

WrittenReport write_report(const std::filesystem::path& run_dir) {
  const RunStreams run = read_run(run_dir);
  const RunSummary summary = summarise_run(run);
  WrittenReport report{{}, run.notes, summary_text(run, summary), training_report_json(run, summary)};
  const auto write = [&](const char* name, const std::string& content) {
    write_file_durably(run_dir / name, content, ExitCode::kData);
    report.files.push_back(run_dir / name);
  };
  write("batch_metrics.json", batch_metrics_json(run));
  write("epoch_metrics.json", epoch_metrics_json(summarise_epochs(run)));
  write("training_report.json", report.training_report);
  return report;
}

void write_report_of_ended_run(const std::filesystem::path& run_dir) noexcept {
  try {
    const WrittenReport report = write_report(run_dir);
    spdlog::info("report: {}", report.files.back().string());
  } catch (const std::exception& error) {
    spdlog::warn("no report was written: {}", error.what());
  } catch (...) {
    spdlog::warn("no report was written");
  }
}

}  // namespace plimsoll::report
