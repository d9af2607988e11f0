#include "report/html_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "core/bytes.h"
#include "report/shown_text.h"

namespace plimsoll::report {
namespace {

constexpr std::size_t kNewestDecisions = 500;
constexpr std::size_t kMostChanges = 2000;

constexpr const char* kStyle = R"(
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 68em; padding: 0 1em; color: #222; background: #fff; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; border-bottom: 1px solid #ccc; }
table { border-collapse: collapse; } td, th { padding: .25em .7em; text-align: left; vertical-align: top; border-bottom: 1px solid #eee; overflow-wrap: anywhere; }
th { font-weight: 600; white-space: nowrap; } tr.changed { background: #fff6dd; } img { max-width: 100%; }
)";

/// Rows of escaped cells.
class HtmlTable {
 public:
  explicit HtmlTable(std::initializer_list<const char*> head) {
    if (head.size() == 0) return;
    text_ += "<tr>";
    for (const char* cell : head) text_ += "<th>" + escape_html(cell) + "</th>";
    text_ += "</tr>\n";
  }
  void row(std::initializer_list<std::string> cells, bool changed = false) {
    text_ += changed ? "<tr class=\"changed\">" : "<tr>";
    for (const std::string& cell : cells) text_ += "<td>" + escape_html(cell) + "</td>";
    text_ += "</tr>\n";
    ++rows_;
  }
  /// With its heading; nothing without rows.
  std::string section(const char* title) const {
    if (rows_ == 0) return "";
    return fmt::format("<h2>{}</h2>\n<table>\n{}</table>\n", escape_html(title), text_);
  }

 private:
  std::string text_ = "";
  int rows_ = 0;
};

std::string short_number(const std::optional<double>& value) { return value ? fmt::format("{:.4g}", *value) : "-"; }
std::string percent_text(const std::optional<double>& part) {
  return part ? fmt::format("{:.1f} %", 100 * *part) : "-";
}

std::string of_budget(const PeakOfRank& peak) {
  if (peak.budget == 0) return format_bytes(peak.peak);
  return fmt::format("{} ({:.1f} % of {})", format_bytes(peak.peak), 100 * peak.fraction(), format_bytes(peak.budget));
}

std::string plan_text(const PlanView& plan) {
  std::string text = fmt::format("{} x {}", plan.micro_batch, plan.accumulation);
  if (plan.resolution > 0) text += fmt::format(", {} px", plan.resolution);
  const std::int64_t recomputed = plan.recompute_blocks + plan.recompute_vision + plan.recompute_expert;
  if (recomputed > 0) text += fmt::format(", {} blocks recomputed", recomputed);
  return plan.offload ? text + ", offloaded" : text;
}

std::string summary_section(const RunStreams& run, const RunSummary& summary) {
  HtmlTable table({});
  for (const auto& [name, value] : summary_rows(run, summary)) table.row({name, value});
  return table.section("Summary");
}

std::string pictures_section(const std::vector<Picture>& pictures) {
  std::string text;
  for (const Picture& picture : pictures) {
    const std::string title = escape_html(picture.title);
    text +=
        fmt::format("<h2>{0}</h2>\n<img alt=\"{0}\" src=\"data:image/png;base64,{1}\">\n", title, base64(picture.png));
  }
  return text;
}

std::string epochs_section(const std::vector<EpochSummary>& epochs) {
  HtmlTable table({"epoch", "steps", "samples", "mean loss", "lowest", "highest", "samples/s", "waiting",
                   "largest peak", "retries", "skipped", "plan changes"});
  for (const EpochSummary& epoch : epochs) {
    const Stretch& steps = epoch.steps;
    const bool any = steps.loss.steps > 0;
    table.row({std::to_string(epoch.epoch), fmt::format("{} - {}", steps.first_step, steps.last_step),
               std::to_string(steps.samples), short_number(steps.loss.mean()),
               any ? short_number(steps.loss.lowest) : "-", any ? short_number(steps.loss.highest) : "-",
               short_number(steps.samples_per_second), percent_text(steps.waiting_share),
               steps.worst ? of_budget(*steps.worst) : "-", std::to_string(steps.retries),
               std::to_string(steps.skipped), std::to_string(epoch.plan_changes)});
  }
  return table.section("Epochs");
}

std::string tasks_section(const Stretch& all) {
  HtmlTable table(
      {"task", "mean loss", "last loss", "samples", "activations a sample", "predicted", "off by", "at most"});
  const auto bytes = [](const std::optional<std::int64_t>& value) { return value ? format_bytes(*value) : "-"; };
  for (const auto& [name, task] : all.tasks) {
    table.row({name, short_number(task.mean_loss), short_number(task.last_loss),
               task.samples ? std::to_string(*task.samples) : "-", bytes(task.measured_a_sample()),
               bytes(task.predicted_a_sample()), percent_text(task.mean_prediction_error()),
               task.memory.micro_batches > 0 ? percent_text(task.memory.largest_error) : "-"});
  }
  return table.section("Tasks");
}

std::string ranks_section(const std::vector<RankSummary>& ranks) {
  HtmlTable table({"rank", "largest peak", "in step", "nearest to the budget", "in step", "retries"});
  for (const RankSummary& rank : ranks) {
    table.row({std::to_string(rank.rank), format_bytes(rank.largest.peak), std::to_string(rank.largest.step),
               of_budget(rank.fullest), std::to_string(rank.fullest.step), std::to_string(rank.retries)});
  }
  return table.section("Ranks");
}

/// All there are, or those that changed the plan and the newest.
std::vector<const DecisionRecord*> decisions_to_show(const RunStreams& run, const RunSummary& summary) {
  const std::size_t newest = run.decisions.size() - std::min(run.decisions.size(), kNewestDecisions);
  std::size_t changes_to_pass = summary.plan_changes.size() - std::min(summary.plan_changes.size(), kMostChanges);
  std::vector<const DecisionRecord*> shown;
  for (std::size_t i = 0; i < run.decisions.size(); ++i) {
    const DecisionRecord& decision = run.decisions[i];
    const bool passed = decision.changed && changes_to_pass > 0;
    if (passed) --changes_to_pass;
    if (i >= newest || (decision.changed && !passed)) shown.push_back(&decision);
  }
  return shown;
}

std::string decisions_section(const RunStreams& run, const RunSummary& summary) {
  HtmlTable table({"after step", "policy", "peak", "plan", "predicted peak", "reason"});
  const auto shown = decisions_to_show(run, summary);
  for (const DecisionRecord* decision : shown) {
    const std::string after = plan_text(decision->after), before = plan_text(decision->before);
    table.row({std::to_string(decision->step), decision->policy,
               fmt::format("{:.1f} % (rank {})", 100 * decision->peak_fraction, decision->worst_rank),
               decision->changed ? before + " \xe2\x86\x92 " + after : after,
               decision->predicted_peak ? format_bytes(*decision->predicted_peak) : "-", decision->reason},
              decision->changed);
  }
  std::string text = table.section("Decisions");
  if (shown.size() < run.decisions.size())
    text += fmt::format(
        "<p>{} of {} are shown: those that changed the plan, and the newest; all are in decisions.jsonl.</p>\n",
        shown.size(), run.decisions.size());
  return text;
}

std::optional<double> share_of(std::int64_t part, std::int64_t whole) {
  return whole > 0 ? std::optional(static_cast<double>(part) / static_cast<double>(whole)) : std::nullopt;
}

std::string tiers_section(const CacheSummary& cache) {
  HtmlTable table({"features from", "samples", "of all loaded", "bytes at last"});
  const auto add = [&](const char* from, std::int64_t samples, const std::string& bytes) {
    table.row({from, std::to_string(samples), percent_text(share_of(samples, cache.loaded)), bytes});
  };
  add("device memory", cache.from_device, format_bytes(cache.device_bytes));
  add("host memory", cache.from_memory, format_bytes(cache.memory_bytes));
  add("disk", cache.from_disk, format_bytes(cache.disk_bytes));
  add("the model itself", cache.loaded - cache.from_device - cache.from_memory - cache.from_disk, "-");
  return table.section("Feature cache");
}

std::string cache_facts_section(const CacheSummary& cache) {
  HtmlTable table({});
  table.row({"computing saved", fmt::format("{:.1f} s", cache.saved)});
  table.row({"rebuilds and looks at probe samples took", fmt::format("{:.1f} s", cache.upkeep)});
  table.row({"samples whose features were written", std::to_string(cache.kept)});
  if (cache.last_age) table.row({"age of what was read last, in steps", short_number(cache.last_age)});
  if (cache.last_drift)
    table.row({"drift of the probe samples", fmt::format("{} at last, {} at most", short_number(cache.last_drift),
                                                         short_number(cache.largest_drift))});
  return table.section("Feature cache: what it saved and took");
}

/// Tiers, what came of it, and what was decided about it.
std::string cache_section(const RunStreams& run, const RunSummary& summary) {
  if (!summary.cache) return "";
  std::string text;
  if (!run.cache_use.empty()) text = tiers_section(*summary.cache) + cache_facts_section(*summary.cache);
  HtmlTable changes({"after step", "", "drift", "reason"});
  for (const CacheRecord& change : run.cache_changes)
    changes.row({std::to_string(change.step), change.cache, short_number(change.drift), change.reason});
  return text + changes.section("Feature cache: rebuilds");
}

std::string configuration_section(const RunStreams& run) {
  HtmlTable table({"key", "value"});
  for (const auto& [key, value] : run.configuration) table.row({key, value});
  return table.section("Configuration (all of it: config.toml)");
}

std::string notes_section(const std::vector<std::string>& notes) {
  HtmlTable table({});
  for (const std::string& note : notes) table.row({note});
  return table.section("Notes");
}

}  // namespace

std::string base64(std::string_view bytes) {
  static constexpr std::string_view kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  text.reserve((bytes.size() + 2) / 3 * 4);
  for (std::size_t i = 0; i < bytes.size(); i += 3) {
    const std::size_t here = std::min<std::size_t>(3, bytes.size() - i);
    std::uint32_t group = 0;
    for (std::size_t k = 0; k < 3; ++k)
      group = group << 8U | (k < here ? static_cast<unsigned char>(bytes[i + k]) : 0U);
    for (std::size_t k = 0; k < 4; ++k) text += k <= here ? kDigits[group >> (18 - 6 * k) & 63U] : '=';
  }
  return text;
}

std::string html_report(const RunStreams& run, const RunSummary& summary, const std::vector<EpochSummary>& epochs,
                        const std::vector<Picture>& pictures, const std::vector<std::string>& notes) {
  const std::string title = escape_html("Plimsoll: " + run.folder.string());
  std::string text = fmt::format(
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<title>{0}</title>\n<style>{1}</style>\n"
      "</head>\n<body>\n<h1>{0}</h1>\n",
      title, kStyle);
  text += summary_section(run, summary);
  text += notes_section(notes);
  text += pictures_section(pictures);
  text += epochs_section(epochs);
  text += tasks_section(summary.steps);
  text += ranks_section(summary.ranks);
  text += decisions_section(run, summary);
  text += cache_section(run, summary);
  text += configuration_section(run);
  return text + "</body>\n</html>\n";
}

}  // namespace plimsoll::report
