#include "launcher/eval_report.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "report/success_rate.h"

namespace plimsoll {
namespace {

using nlohmann::ordered_json;

std::vector<report::SuccessRate> rates_of(const std::vector<data::EpisodeOutcome>& outcomes) {
  std::vector<report::EpisodeResult> results;
  for (const auto& outcome : outcomes)
    results.push_back({outcome.task, outcome.success, outcome.reached, outcome.steps});
  return report::success_rates(results);
}

ordered_json rate_json(const report::SuccessRate& rate) {
  const report::Interval interval = rate.interval();
  ordered_json json = {{"episodes", rate.episodes},   {"successes", rate.successes},
                       {"success_rate", rate.rate()}, {"interval", {interval.low, interval.high}},
                       {"reached", rate.reached},     {"mean_steps", rate.mean_steps},
                       {"steps_to_success", nullptr}};
  if (rate.steps_to_success) json["steps_to_success"] = *rate.steps_to_success;
  return json;
}

std::string actor_text(const EvalTerms& terms) {
  if (terms.policy == "checkpoint") return fmt::format("{} (step {})", terms.checkpoint, terms.step);
  if (terms.policy == "untrained") return "the model with its initial weights";
  if (terms.policy == "expert") return "the scripted expert";
  return fmt::format("the constant action {:.3g}", fmt::join(terms.constant, ", "));
}

ordered_json error_json(const train::ActionError& error) {
  return {{"samples", error.samples},
          {"episodes", error.episodes},
          {"error", error.sampled},
          {"margin", error.sampled_margin},
          {"best_constant", error.best_constant},
          {"best_constant_margin", error.constant_margin}};
}

std::string error_text(const train::ActionError& error) {
  return fmt::format(
      "\nheld-out action error: {:.4f} +- {:.4f} (best constant action {:.4f} +- {:.4f}; 95 %), {} samples of {} "
      "episodes that were not trained on\n",
      error.sampled, error.sampled_margin, error.best_constant, error.constant_margin, error.samples, error.episodes);
}

std::string chunking_text(const EvalTerms& terms) {
  if (terms.chunk == 1) return "";
  std::string text = fmt::format(", a new chunk of {} actions every {}", terms.chunk,
                                 terms.loop.replan == 1 ? "step" : fmt::format("{} steps", terms.loop.replan));
  if (terms.loop.ensemble_decay) text += fmt::format(", ensemble with decay {}", *terms.loop.ensemble_decay);
  return text;
}

std::string rate_row(const report::SuccessRate& rate) {
  const report::Interval interval = rate.interval();
  const std::string to_success = rate.steps_to_success ? fmt::format("{:.1f}", *rate.steps_to_success) : "-";
  return fmt::format("  {:<24} {:>8} {:>9} {:>8.1f} %   {:>5.1f} to {:>5.1f} % {:>9} {:>11.1f} {:>16}\n",
                     rate.task.empty() ? "all" : rate.task, rate.episodes, rate.successes, 100 * rate.rate(),
                     100 * interval.low, 100 * interval.high, rate.reached, rate.mean_steps, to_success);
}

}  // namespace

ordered_json eval_json(const EvalTerms& terms, const std::vector<data::EpisodeOutcome>& outcomes, double seconds) {
  const auto& loop = terms.loop;
  ordered_json json = {{"policy", terms.policy},  {"checkpoint", nullptr},
                       {"step", nullptr},         {"difficulty", to_string(loop.table.difficulty)},
                       {"seed", loop.table.seed}, {"max_steps", loop.max_steps},
                       {"chunk", terms.chunk},    {"replan", loop.replan},
                       {"ensemble", nullptr},     {"constant", nullptr},
                       {"action_error", nullptr}};
  if (terms.policy == "checkpoint") json["checkpoint"] = terms.checkpoint, json["step"] = terms.step;
  if (loop.ensemble_decay) json["ensemble"] = *loop.ensemble_decay;
  if (!terms.constant.empty()) json["constant"] = terms.constant;
  if (terms.error) json["action_error"] = error_json(*terms.error);
  const auto rates = rates_of(outcomes);
  json.update(rate_json(rates.front()));
  json["tasks"] = ordered_json::object();
  for (std::size_t i = 1; i < rates.size(); ++i) json["tasks"][rates[i].task] = rate_json(rates[i]);
  json["outcomes"] = ordered_json::array();
  for (const auto& outcome : outcomes)
    json["outcomes"].push_back({{"scene", outcome.scene},
                                {"task", outcome.task},
                                {"success", outcome.success},
                                {"reached", outcome.reached},
                                {"steps", outcome.steps}});
  json["seconds"] = seconds;
  return json;
}

std::string eval_text(const EvalTerms& terms, const std::vector<data::EpisodeOutcome>& outcomes, double seconds) {
  const auto& loop = terms.loop;
  std::string text = fmt::format("{}: {} unseen scenes (difficulty {}, seed {}), at most {} steps each{}; {:.1f} s\n\n",
                                 actor_text(terms), outcomes.size(), to_string(loop.table.difficulty), loop.table.seed,
                                 loop.max_steps, chunking_text(terms), seconds);
  text += fmt::format("  {:<24} {:>8} {:>9} {:>10}   {:>16} {:>9} {:>11} {:>16}\n", "task", "episodes", "successes",
                      "rate", "95 % confidence", "reached", "mean steps", "steps to success");
  for (const auto& rate : rates_of(outcomes)) text += rate_row(rate);
  if (terms.error) text += error_text(*terms.error);
  return text;
}

}  // namespace plimsoll
