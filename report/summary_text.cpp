#include <fmt/format.h>

#include "core/bytes.h"
#include "report/console.h"
#include "report/run_summary.h"
#include "report/shown_text.h"

namespace plimsoll::report {
namespace {

std::string or_dash(const std::optional<double>& value) { return value ? fmt::format("{:.4g}", *value) : "-"; }

std::string outcome_text(const RunStreams& run) {
  if (!run.exit) return "still running, or killed: there is no exit.json of it";
  return fmt::format("{} (exit code {})", run.exit->reason, static_cast<int>(run.exit->exit_code));
}

std::string peak_text(const PeakOfRank& worst) {
  if (worst.budget == 0)
    return fmt::format("{} on rank {} in step {}", format_bytes(worst.peak), worst.rank, worst.step);
  return fmt::format("{}, {:.1f} % of the {} of rank {}, in step {}", format_bytes(worst.peak), 100 * worst.fraction(),
                     format_bytes(worst.budget), worst.rank, worst.step);
}

std::string predictions_text(const PredictionSummary& predictions) {
  if (predictions.compared == 0) return "none";
  return fmt::format("{} of {} peaks were above theirs, by at most {}; off by {:.2f} % in the mean",
                     predictions.exceeded, predictions.compared, format_bytes(predictions.largest_excess),
                     100 * predictions.error_sum / static_cast<double>(predictions.compared));
}

std::string cache_text(const CacheSummary& cache) {
  return fmt::format("{} of {} samples came with their features, {} rebuilds, {:.1f} s saved, {:.1f} s of upkeep",
                     cache.from_device + cache.from_memory + cache.from_disk, cache.loaded, cache.rebuilds, cache.saved,
                     cache.upkeep);
}

std::string steps_text(const RunSummary& summary) {
  const Stretch& all = summary.steps;
  if (all.steps == 0) return "none yet";
  return fmt::format("{} ({} to {}), {} samples, {} passes over the data, attempt {}", all.steps, all.first_step,
                     all.last_step, all.samples, or_dash(summary.epochs), summary.attempts);
}

std::string loss_text(const RunSummary& summary) {
  if (!summary.trend) return "none";
  return fmt::format("{:.4g} at first, {:.4g} at last, best {:.4g} in step {}; means of {} steps {:.4g} -> {:.4g}",
                     *summary.first_loss, *summary.last_loss, summary.steps.loss.lowest, summary.best_step,
                     summary.trend->window, summary.trend->first, summary.trend->last);
}

std::string tasks_text(const Stretch& all) {
  constexpr std::size_t kShown = 8;
  if (all.tasks.size() > kShown) return fmt::format("{}, their losses are in training_report.json", all.tasks.size());
  std::string text;
  for (const auto& [name, task] : all.tasks) {
    text +=
        fmt::format("{}{} {}", text.empty() ? "mean loss of " : ", ", on_one_line(name, 40), or_dash(task.mean_loss));
  }
  return text;
}

std::string speed_text(const Stretch& all) {
  const auto seconds = [](double value) { return format_duration(std::chrono::duration<double>(value)); };
  return fmt::format("{} samples/s; {} computing, {} waiting for the loader ({})", or_dash(all.samples_per_second),
                     seconds(all.computing), seconds(all.waiting),
                     all.waiting_share ? fmt::format("{:.1f} %", 100 * *all.waiting_share) : "-");
}

}  // namespace

std::vector<std::pair<std::string, std::string>> summary_rows(const RunStreams& run, const RunSummary& summary) {
  const Stretch& all = summary.steps;
  std::vector<std::pair<std::string, std::string>> rows = {{"run", run.folder.string()},
                                                           {"outcome", outcome_text(run)},
                                                           {"steps", steps_text(summary)},
                                                           {"loss", loss_text(summary)}};
  if (!all.tasks.empty()) rows.emplace_back("tasks", tasks_text(all));
  rows.emplace_back("speed", speed_text(all));
  rows.emplace_back("memory", all.worst ? peak_text(*all.worst) : "not known");
  rows.emplace_back("predictions", predictions_text(summary.predictions));
  rows.emplace_back("decisions",
                    fmt::format("{}, {} changed the plan", summary.decisions, summary.plan_changes.size()));
  rows.emplace_back("trouble", fmt::format("{} steps replayed in smaller pieces ({} pieces), {} skipped", all.replayed,
                                           all.retries, all.skipped));
  if (summary.cache) rows.emplace_back("cache", cache_text(*summary.cache));
  return rows;
}

std::string summary_text(const RunStreams& run, const RunSummary& summary) {
  std::string text;
  for (const auto& [name, value] : summary_rows(run, summary))
    text += fmt::format("{:<12} {}\n", name, on_one_line(value, 400));
  return text;
}

}  // namespace plimsoll::report
