#include "report/report_files.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <exception>
#include <utility>

#include "core/file.h"
#include "report/gnuplot.h"
#include "report/html_report.h"
#include "report/plots.h"
#include "report/report_json.h"

namespace plimsoll::report {

namespace {

/// Writes files into the run's folder and remembers them.
class ReportWriter {
 public:
  explicit ReportWriter(std::filesystem::path folder) : folder_(std::move(folder)) {}

  void write(const char* name, const std::string& content) {
    write_file_durably(folder_ / name, content, ExitCode::kData);
    report.files.push_back(folder_ / name);
  }
  /// One that an earlier report left must not be taken for this one's.
  void leave_out(const char* name) const {
    std::error_code ignored;
    std::filesystem::remove(folder_ / name, ignored);
  }
  void add_picture(const char* name, const char* title, const std::string& script) {
    const Drawing drawing = script.empty() ? Drawing{} : draw(script);
    if (drawing.png.empty()) leave_out(name);
    if (!drawing.png.empty()) write(name, drawing.png);
    if (!drawing.png.empty()) pictures.push_back({title, drawing.png});
    const auto& notes = report.notes;
    const bool said = std::find(notes.begin(), notes.end(), drawing.problem) != notes.end();
    if (!drawing.problem.empty() && !said) report.notes.push_back(drawing.problem);
  }

  WrittenReport report;
  std::vector<Picture> pictures;

 private:
  std::filesystem::path folder_;
};

}  // namespace

WrittenReport write_report(const std::filesystem::path& run_dir) {
  RunStreams run = read_run(run_dir);
  const RunSummary summary = summarise_run(run);
  const std::vector<EpochSummary> epochs = summarise_epochs(run);
  ReportWriter writer(run_dir);
  writer.report.notes = run.notes;
  writer.report.summary = summary_text(run, summary);
  writer.add_picture("training_curves.png", "Training curves", training_curves_script(run, summary));
  writer.add_picture("task_comparison.png", "Tasks compared", task_comparison_script(run, summary));
  run.notes = writer.report.notes;  // why there is no plot belongs to them
  writer.report.training_report = training_report_json(run, summary);
  writer.write("batch_metrics.json", batch_metrics_json(run));
  writer.write("epoch_metrics.json", epoch_metrics_json(epochs));
  writer.write("training_report.json", writer.report.training_report);
  writer.write("report.html", html_report(run, summary, epochs, writer.pictures, writer.report.notes));
  return std::move(writer.report);
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
