#include "report/report_json.h"

#include <nlohmann/json.hpp>

namespace plimsoll::report {
namespace {

using Json = nlohmann::ordered_json;

template <class T>
Json or_null(const std::optional<T>& value) {
  return value ? Json(*value) : Json(nullptr);
}

std::string text_of(const Json& json, int indent) {
  return json.dump(indent, ' ', false, Json::error_handler_t::replace);
}

Json step_json(const StepLine& step) {
  Json losses = Json::object(), counts = Json::object(), memory = Json::object();
  for (const TaskOfStep& task : step.tasks) {
    if (task.loss) losses[task.name] = *task.loss;
    if (task.count) counts[task.name] = *task.count;
    if (task.memory.micro_batches > 0) memory[task.name] = Json::parse(to_json(task.memory));
  }
  const bool timed = step.samples && step.step_ms && *step.step_ms > 0;
  const auto speed = timed ? std::optional(static_cast<double>(*step.samples) / *step.step_ms * 1000) : std::nullopt;
  std::int64_t retries = 0;
  for (const RankMemory& rank : step.ranks) retries += rank.retries;
  const auto worst = worst_rank(step);
  return {{"step", step.step},
          {"epoch", or_null(step.epoch)},
          {"loss", or_null(step.loss)},
          {"task_losses", losses},
          {"task_counts", counts},
          {"task_memory", memory},
          {"lr", or_null(step.lr)},
          {"vl_lr", or_null(step.vl_lr)},
          {"grad_norm", or_null(step.grad_norm)},
          {"samples", or_null(step.samples)},
          {"samples_per_second", or_null(speed)},
          {"step_ms", or_null(step.step_ms)},
          {"load_ms", or_null(step.load_ms)},
          {"micro_batches", or_null(step.micro_batches)},
          {"worst_rank", worst ? Json(worst->rank) : Json(nullptr)},
          {"peak", worst ? Json(worst->peak) : Json(nullptr)},
          {"budget", worst && worst->budget > 0 ? Json(worst->budget) : Json(nullptr)},
          {"retries", retries},
          {"skipped", step.skipped},
          {"attempt", step.attempt}};
}

Json peak_json(const PeakOfRank& peak) {
  return {{"peak", peak.peak},
          {"budget", peak.budget > 0 ? Json(peak.budget) : Json(nullptr)},
          {"fraction", peak.budget > 0 ? Json(peak.fraction()) : Json(nullptr)},
          {"rank", peak.rank},
          {"step", peak.step}};
}

Json task_memory_json(const TaskSummary& task) {
  const auto error = task.mean_prediction_error();
  if (!error) return nullptr;
  return {{"micro_batches", task.memory.micro_batches},
          {"samples", task.memory.samples},
          {"predicted_a_sample", or_null(task.predicted_a_sample())},
          {"measured_a_sample", or_null(task.measured_a_sample())},
          {"mean_relative_error", *error},
          {"largest_relative_error", task.memory.largest_error}};
}

Json tasks_json(const Stretch& stretch) {
  Json tasks = Json::object();
  for (const auto& [name, task] : stretch.tasks) {
    tasks[name] = {{"mean_loss", or_null(task.mean_loss)},
                   {"last_loss", or_null(task.last_loss)},
                   {"steps", task.steps},
                   {"samples", or_null(task.samples)},
                   {"memory", task_memory_json(task)}};
  }
  return tasks;
}

/// What an epoch and the run have in common.
Json stretch_json(const Stretch& stretch) {
  const LossSummary& loss = stretch.loss;
  Json json;
  json["first_step"] = stretch.steps > 0 ? Json(stretch.first_step) : Json(nullptr);
  json["last_step"] = stretch.steps > 0 ? Json(stretch.last_step) : Json(nullptr);
  json["steps"] = stretch.steps;
  json["samples"] = stretch.samples;
  json["mean_loss"] = or_null(loss.mean());
  json["min_loss"] = loss.steps > 0 ? Json(loss.lowest) : Json(nullptr);
  json["max_loss"] = loss.steps > 0 ? Json(loss.highest) : Json(nullptr);
  json["tasks"] = tasks_json(stretch);
  json["samples_per_second"] = or_null(stretch.samples_per_second);
  json["seconds_computing"] = stretch.computing;
  json["seconds_waiting"] = stretch.waiting;
  json["waiting_share"] = or_null(stretch.waiting_share);
  json["worst_peak"] = stretch.worst ? peak_json(*stretch.worst) : Json(nullptr);
  json["retries"] = stretch.retries;
  json["steps_replayed"] = stretch.replayed;
  json["steps_skipped"] = stretch.skipped;
  return json;
}

Json ranks_json(const std::vector<RankSummary>& ranks) {
  Json list = Json::array();
  for (const RankSummary& rank : ranks) {
    list.push_back({{"rank", rank.rank},
                    {"peak", rank.largest.peak},
                    {"peak_step", rank.largest.step},
                    {"largest_fraction", rank.fullest.budget > 0 ? Json(rank.fullest.fraction()) : Json(nullptr)},
                    {"budget", rank.fullest.budget > 0 ? Json(rank.fullest.budget) : Json(nullptr)},
                    {"fraction_step", rank.fullest.step},
                    {"retries", rank.retries}});
  }
  return list;
}

Json changes_json(const std::vector<DecisionRecord>& changes) {
  Json list = Json::array();
  for (const DecisionRecord& change : changes) {
    list.push_back({{"step", change.step},
                    {"reason", change.reason},
                    {"before", Json::parse(to_json(change.before))},
                    {"after", Json::parse(to_json(change.after))},
                    {"predicted_peak", or_null(change.predicted_peak)}});
  }
  return list;
}

Json predictions_json(const PredictionSummary& predictions) {
  const bool any = predictions.compared > 0;
  const double mean = any ? predictions.error_sum / static_cast<double>(predictions.compared) : 0;
  return {{"compared", predictions.compared},
          {"exceeded", predictions.exceeded},
          {"largest_excess_bytes", predictions.largest_excess},
          {"mean_relative_error", any ? Json(mean) : Json(nullptr)},
          {"largest_relative_error", any ? Json(predictions.largest_error) : Json(nullptr)}};
}

Json cache_json(const CacheSummary& cache) {
  const double found = static_cast<double>(cache.from_device + cache.from_memory + cache.from_disk);
  return {{"loaded", cache.loaded},
          {"from_device", cache.from_device},
          {"from_memory", cache.from_memory},
          {"from_disk", cache.from_disk},
          {"hit_share", cache.loaded > 0 ? Json(found / static_cast<double>(cache.loaded)) : Json(nullptr)},
          {"kept", cache.kept},
          {"disk_bytes", cache.disk_bytes},
          {"memory_bytes", cache.memory_bytes},
          {"device_bytes", cache.device_bytes},
          {"seconds_saved", cache.saved},
          {"seconds_of_upkeep", cache.upkeep},
          {"rebuilds", cache.rebuilds},
          {"looks", cache.looks},
          {"last_drift", or_null(cache.last_drift)},
          {"largest_drift", or_null(cache.largest_drift)},
          {"last_age", or_null(cache.last_age)}};
}

Json outcome_json(const RunStreams& run) {
  if (!run.exit) return nullptr;
  return {{"exit_code", static_cast<int>(run.exit->exit_code)},
          {"reason", run.exit->reason},
          {"step", run.exit->step},
          {"checkpoint", or_null(run.exit->checkpoint)},
          {"attempt", run.exit->attempt}};
}

Json trend_json(const std::optional<LossTrend>& trend) {
  if (!trend) return nullptr;
  return {{"window", trend->window}, {"first", trend->first}, {"last", trend->last}, {"lowest", trend->lowest}};
}

void add_loss_course(const RunSummary& summary, Json& json) {
  json["first_loss"] = or_null(summary.first_loss);
  json["last_loss"] = or_null(summary.last_loss);
  json["best_loss"] = summary.best_step > 0 ? Json(summary.steps.loss.lowest) : Json(nullptr);
  json["best_step"] = summary.best_step > 0 ? Json(summary.best_step) : Json(nullptr);
  json["trend"] = trend_json(summary.trend);
}

}  // namespace

std::string batch_metrics_json(const RunStreams& run) {
  std::string text = "[";
  for (const StepLine& step : run.steps) {
    text += text.size() == 1 ? "\n" : ",\n";
    text += text_of(step_json(step), -1);
  }
  return text + "\n]\n";
}

std::string epoch_metrics_json(const std::vector<EpochSummary>& epochs) {
  Json list = Json::array();
  for (const EpochSummary& epoch : epochs) {
    Json json = {{"epoch", epoch.epoch}};
    json.update(stretch_json(epoch.steps));
    json["plan_changes"] = epoch.plan_changes;
    list.push_back(std::move(json));
  }
  return text_of(list, 2) + "\n";
}

std::string training_report_json(const RunStreams& run, const RunSummary& summary) {
  Json json = {{"run", run.folder.string()}, {"outcome", outcome_json(run)}, {"attempts", summary.attempts}};
  json["epochs"] = or_null(summary.epochs);
  json.update(stretch_json(summary.steps));
  add_loss_course(summary, json);
  json["ranks"] = ranks_json(summary.ranks);
  json["predictions"] = predictions_json(summary.predictions);
  json["decisions"] = summary.decisions;
  json["plan_changes"] = changes_json(summary.plan_changes);
  json["cache"] = summary.cache ? cache_json(*summary.cache) : Json(nullptr);
  json["configuration"] = Json::object();
  for (const auto& [key, value] : run.configuration) json["configuration"][key] = value;
  json["torn_lines"] = run.torn_lines;
  json["notes"] = run.notes;
  return text_of(json, 2) + "\n";
}

}  // namespace plimsoll::report
