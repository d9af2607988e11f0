#include "report/run_summary.h"

#include <algorithm>
#include <cmath>

namespace plimsoll::report {
namespace {

bool fuller(const PeakOfRank& a, const PeakOfRank& b) {
  return a.fraction() != b.fraction() ? a.fraction() > b.fraction() : a.peak > b.peak;
}

std::optional<double> applied_loss(const StepLine& step) { return step.skipped ? std::nullopt : step.loss; }

void add_loss(LossSummary& summary, double loss) {
  summary.lowest = summary.steps == 0 ? loss : std::min(summary.lowest, loss);
  summary.highest = summary.steps == 0 ? loss : std::max(summary.highest, loss);
  summary.sum += loss;
  ++summary.steps;
}

/// Mean loss of a task, by its samples where they are known.
struct TaskTotals {
  std::int64_t steps = 0, counted_steps = 0, count = 0, weight = 0;
  double loss_sum = 0, weighted_sum = 0;
  bool counted = false;
  std::optional<double> last;
  TaskMemory memory;

  void add(const TaskOfStep& task, bool applied) {
    counted = counted || task.count.has_value();
    count += task.count.value_or(0);
    memory.add(task.memory);
    if (!task.loss || !applied) return;
    ++steps;
    loss_sum += *task.loss;
    last = task.loss;
    if (!task.count) return;
    ++counted_steps;
    weight += *task.count;
    weighted_sum += *task.loss * static_cast<double>(*task.count);
  }
  TaskSummary summary() const {
    TaskSummary result;
    result.memory = memory;
    result.steps = steps;
    result.last_loss = last;
    if (counted) result.samples = count;
    if (steps > 0) result.mean_loss = loss_sum / static_cast<double>(steps);
    if (steps > 0 && counted_steps == steps && weight > 0)
      result.mean_loss = weighted_sum / static_cast<double>(weight);
    return result;
  }
};

void add_tasks(std::span<const StepLine> steps, Stretch& stretch) {
  std::map<std::string, TaskTotals> totals;
  for (const StepLine& step : steps) {
    for (const TaskOfStep& task : step.tasks) totals[task.name].add(task, !step.skipped);
  }
  for (const auto& [name, total] : totals) stretch.tasks[name] = total.summary();
}

void add_speed(std::span<const StepLine> steps, Stretch& stretch) {
  double samples = 0;
  for (const StepLine& step : steps) {
    stretch.computing += step.step_ms.value_or(0) / 1000;
    stretch.waiting += step.load_ms.value_or(0) / 1000;
    if (step.step_ms) samples += static_cast<double>(step.samples.value_or(0));
  }
  const double seconds = stretch.computing + stretch.waiting;
  if (seconds <= 0) return;
  if (samples > 0) stretch.samples_per_second = samples / seconds;
  stretch.waiting_share = stretch.waiting / seconds;
}

void add_step(const StepLine& step, Stretch& stretch) {
  std::int64_t retries = 0;
  for (const RankMemory& rank : step.ranks) retries += rank.retries;
  stretch.retries += retries;
  stretch.replayed += retries > 0 ? 1 : 0;
  stretch.skipped += step.skipped ? 1 : 0;
  stretch.samples += step.samples.value_or(0);
  if (const auto loss = applied_loss(step)) add_loss(stretch.loss, *loss);
  const auto worst = worst_rank(step);
  if (worst && (!stretch.worst || fuller(*worst, *stretch.worst))) stretch.worst = worst;
}

/// The pass in which the step begins, from 1; 0 when it does not say.
std::int64_t own_pass(const StepLine& step) {
  if (!step.epoch) return 0;
  // Steps of tiny datasets hold several passes: a step's length is known from its samples only.
  const double end = static_cast<double>(step.first_sample.value_or(0) + step.samples.value_or(0));
  const bool placed = step.first_sample && step.samples && end > 0 && *step.samples > 0;
  // Rounding must not move a step across the border: 1e-9 passes are far less than a sample.
  if (placed)
    return static_cast<std::int64_t>(std::floor(*step.epoch * static_cast<double>(*step.first_sample) / end + 1e-9)) +
           1;
  return std::max<std::int64_t>(1, static_cast<std::int64_t>(std::ceil(*step.epoch - 1e-9)));
}

/// The pass of each step; empty when none says.
std::vector<std::int64_t> passes_of(const std::vector<StepLine>& steps) {
  std::vector<std::int64_t> passes;
  passes.reserve(steps.size());
  for (const StepLine& step : steps) passes.push_back(own_pass(step));
  const auto known = std::find_if(passes.begin(), passes.end(), [](std::int64_t pass) { return pass > 0; });
  if (known == passes.end()) return {};
  std::int64_t before = *known;
  for (std::int64_t& pass : passes) before = pass = pass > 0 ? pass : before;
  return passes;
}

void count_plan_changes(const RunStreams& run, std::vector<EpochSummary>& epochs) {
  if (epochs.empty()) return;
  for (const DecisionRecord& decision : run.decisions) {
    if (!decision.changed) continue;
    const auto epoch = std::find_if(epochs.begin(), epochs.end(), [&](const EpochSummary& candidate) {
      return decision.step <= candidate.steps.last_step;
    });
    ++(epoch == epochs.end() ? epochs.back() : *epoch).plan_changes;
  }
}

void add_ranks(const StepLine& step, std::vector<RankSummary>& ranks) {
  for (std::size_t i = 0; i < step.ranks.size(); ++i) {
    const auto rank = static_cast<std::int64_t>(i);
    if (i == ranks.size()) ranks.push_back({rank, {}, {}, 0});
    RankSummary& summary = ranks[i];
    const PeakOfRank now{step.step, rank, step.ranks[i].peak, step.ranks[i].budget};
    if (summary.largest.step == 0 || now.peak > summary.largest.peak) summary.largest = now;
    if (summary.fullest.step == 0 || fuller(now, summary.fullest)) summary.fullest = now;
    summary.retries += step.ranks[i].retries;
  }
}

void compare(const StepLine& step, PredictionSummary& predictions) {
  for (const RankMemory& rank : step.ranks) {
    if (rank.predicted == 0 || rank.peak == 0) continue;
    ++predictions.compared;
    predictions.exceeded += rank.peak > rank.predicted ? 1 : 0;
    predictions.largest_excess = std::max(predictions.largest_excess, rank.peak - rank.predicted);
    const double error = std::abs(static_cast<double>(rank.predicted - rank.peak)) / static_cast<double>(rank.peak);
    predictions.error_sum += error;
    predictions.largest_error = std::max(predictions.largest_error, error);
  }
}

void add_losses(const std::vector<StepLine>& steps, RunSummary& summary) {
  std::vector<double> losses;
  for (const StepLine& step : steps) {
    const auto loss = applied_loss(step);
    if (!loss) continue;
    losses.push_back(*loss);
    if (summary.best_step == 0 && *loss == summary.steps.loss.lowest) summary.best_step = step.step;
  }
  if (losses.empty()) return;
  summary.first_loss = losses.front();
  summary.last_loss = losses.back();
  const std::int64_t wanted = std::clamp<std::int64_t>(static_cast<std::int64_t>(losses.size()) / 20, 5, 100);
  const std::int64_t window = std::min(wanted, static_cast<std::int64_t>(losses.size()));
  const auto means = moving_mean(losses, window);
  const auto first = means.begin() + (window - 1);
  summary.trend = LossTrend{window, *first, means.back(), *std::min_element(first, means.end())};
}

std::optional<CacheSummary> summarise_cache(const RunStreams& run) {
  if (run.cache_use.empty() && run.drift.empty() && run.cache_changes.empty()) return std::nullopt;
  CacheSummary cache;
  for (const CacheUseRecord& use : run.cache_use) {
    cache.loaded += use.loaded;
    cache.from_device += use.from_device;
    cache.from_memory += use.from_memory;
    cache.from_disk += use.from_disk;
    cache.kept += use.kept;
    cache.disk_bytes = use.disk_bytes;
    cache.memory_bytes = use.memory_bytes;
    cache.device_bytes = use.device_bytes;
    cache.saved += use.saved_ms.value_or(0) / 1000;
    cache.upkeep += use.upkeep_ms / 1000;
    if (use.age) cache.last_age = use.age;
  }
  cache.rebuilds = std::count_if(run.cache_changes.begin(), run.cache_changes.end(),
                                 [](const CacheRecord& change) { return change.cache == "rebuild"; });
  cache.looks = static_cast<std::int64_t>(run.drift.size());
  for (const DriftRecord& look : run.drift) {
    cache.last_drift = look.drift;
    cache.largest_drift = std::max(cache.largest_drift.value_or(look.drift), look.drift);
  }
  return cache;
}

}  // namespace

std::optional<double> TaskSummary::mean_prediction_error() const {
  if (memory.micro_batches == 0) return std::nullopt;
  return memory.error_sum / static_cast<double>(memory.micro_batches);
}

std::optional<std::int64_t> TaskSummary::predicted_a_sample() const {
  return memory.samples > 0 ? std::optional(memory.predicted / memory.samples) : std::nullopt;
}

std::optional<std::int64_t> TaskSummary::measured_a_sample() const {
  return memory.samples > 0 ? std::optional(memory.measured / memory.samples) : std::nullopt;
}

std::optional<PeakOfRank> worst_rank(const StepLine& step) {
  std::optional<PeakOfRank> worst;
  for (std::size_t i = 0; i < step.ranks.size(); ++i) {
    const PeakOfRank rank{step.step, static_cast<std::int64_t>(i), step.ranks[i].peak, step.ranks[i].budget};
    if (rank.peak > 0 && (!worst || fuller(rank, *worst))) worst = rank;
  }
  return worst;
}

Stretch summarise(std::span<const StepLine> steps) {
  Stretch stretch;
  if (steps.empty()) return stretch;
  stretch.first_step = steps.front().step;
  stretch.last_step = steps.back().step;
  stretch.steps = static_cast<std::int64_t>(steps.size());
  for (const StepLine& step : steps) add_step(step, stretch);
  add_tasks(steps, stretch);
  add_speed(steps, stretch);
  return stretch;
}

std::vector<EpochSummary> summarise_epochs(const RunStreams& run) {
  std::vector<EpochSummary> epochs;
  const auto passes = passes_of(run.steps);
  for (std::size_t begin = 0, end = 0; begin < passes.size(); begin = end) {
    while (end < passes.size() && passes[end] == passes[begin]) ++end;
    epochs.push_back({passes[begin], summarise(std::span(run.steps).subspan(begin, end - begin)), 0});
  }
  count_plan_changes(run, epochs);
  return epochs;
}

std::vector<double> moving_mean(std::span<const double> losses, std::int64_t window) {
  std::vector<double> means;
  means.reserve(losses.size());
  for (std::size_t i = 0; i < losses.size(); ++i) {
    // Summed anew each time: a running sum would carry the rounding of one huge loss for ever.
    const std::size_t begin = i + 1 - std::min(i + 1, static_cast<std::size_t>(window));
    double sum = 0;
    for (std::size_t k = begin; k <= i; ++k) sum += losses[k];
    means.push_back(sum / static_cast<double>(i + 1 - begin));
  }
  return means;
}

RunSummary summarise_run(const RunStreams& run) {
  RunSummary summary;
  summary.steps = summarise(run.steps);
  for (const StepLine& step : run.steps) {
    summary.attempts = std::max(summary.attempts, step.attempt);
    if (step.epoch) summary.epochs = step.epoch;
    add_ranks(step, summary.ranks);
    compare(step, summary.predictions);
  }
  if (run.exit) summary.attempts = std::max(summary.attempts, run.exit->attempt);
  add_losses(run.steps, summary);
  summary.decisions = static_cast<std::int64_t>(run.decisions.size());
  std::copy_if(run.decisions.begin(), run.decisions.end(), std::back_inserter(summary.plan_changes),
               [](const DecisionRecord& decision) { return decision.changed; });
  summary.cache = summarise_cache(run);
  return summary;
}

}  // namespace plimsoll::report
