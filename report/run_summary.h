#pragma once
// What the streams of a run come to: totals over an epoch and over the run. Pure functions; nothing throws but for want
// of memory. Bytes are bytes, times seconds; what no step told is absent.
//
// Losses are of the steps that were applied and had a finite one. Speeds count what the streams know: computing up to
// the reduction and waiting for the loader, of the slowest rank; reductions, updates, checkpoints and evaluations are
// in no stream.

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "report/run_streams.h"

namespace plimsoll::report {

/// Memory of the rank that was nearest to its budget.
struct PeakOfRank {
  std::int64_t step = 0, rank = 0, peak = 0;
  std::int64_t budget = 0;  ///< 0: none
  /// 1.0: the whole budget; 0 without one.
  double fraction() const { return budget > 0 ? static_cast<double>(peak) / static_cast<double>(budget) : 0.0; }
};

/// Of one step; none when it tells of no memory. Without budgets it is the largest peak.
std::optional<PeakOfRank> worst_rank(const StepLine& step);

struct LossSummary {
  std::int64_t steps = 0;                   ///< that had one
  double sum = 0, lowest = 0, highest = 0;  ///< of those
  std::optional<double> mean() const {
    return steps > 0 ? std::optional(sum / static_cast<double>(steps)) : std::nullopt;
  }
};

struct TaskSummary {
  std::int64_t steps = 0;           ///< that had a loss of it
  std::optional<double> mean_loss;  ///< over its samples where every one of those steps counted them, else over steps
  std::optional<double> last_loss;
  std::optional<std::int64_t> samples;  ///< that were counted
  TaskMemory memory;                    ///< over all its steps, those too that were skipped
  std::optional<double> mean_prediction_error() const;
  /// Bytes of activations a sample, of those that were compared.
  std::optional<std::int64_t> predicted_a_sample() const;
  std::optional<std::int64_t> measured_a_sample() const;
};

/// Some steps in a row.
struct Stretch {
  std::int64_t first_step = 0, last_step = 0, steps = 0;
  std::int64_t skipped = 0;   ///< steps that updated nothing
  std::int64_t retries = 0;   ///< pieces replayed smaller, all ranks
  std::int64_t replayed = 0;  ///< steps with such pieces
  std::int64_t samples = 0;
  LossSummary loss;
  std::map<std::string, TaskSummary> tasks;
  double computing = 0, waiting = 0;         ///< seconds
  std::optional<double> samples_per_second;  ///< by computing and waiting
  std::optional<double> waiting_share;       ///< of both
  std::optional<PeakOfRank> worst;           ///< the largest fraction of a budget, or peak where there are none
};
Stretch summarise(std::span<const StepLine> steps);

/// One pass over the data. A step belongs to the pass in which its first sample lies, one that does not say to the pass
/// of the step before it.
struct EpochSummary {
  std::int64_t epoch = 1;
  Stretch steps;
  std::int64_t plan_changes = 0;  ///< decided after one of its steps
};
/// None when no step says where it is.
std::vector<EpochSummary> summarise_epochs(const RunStreams& run);

/// Losses with less noise: entry i is the mean of losses i - window + 1 .. i, fewer at the beginning. `window` is at
/// least 1.
std::vector<double> moving_mean(std::span<const double> losses, std::int64_t window);

/// One rank over the run.
struct RankSummary {
  std::int64_t rank = 0;
  PeakOfRank largest;  ///< peak
  PeakOfRank fullest;  ///< fraction of its budget at the time
  std::int64_t retries = 0;
};

/// How well the dry run foretold peaks, over all ranks of all steps that had a prediction.
struct PredictionSummary {
  std::int64_t compared = 0;
  std::int64_t exceeded = 0;                ///< peaks above what was predicted
  std::int64_t largest_excess = 0;          ///< bytes
  double error_sum = 0, largest_error = 0;  ///< |predicted - peak| / peak
};

struct CacheSummary {
  std::int64_t loaded = 0, from_device = 0, from_memory = 0, from_disk = 0, kept = 0;  ///< samples
  std::int64_t disk_bytes = 0, memory_bytes = 0, device_bytes = 0;                     ///< at the last line
  double saved = 0, upkeep = 0;                                                        ///< seconds
  std::int64_t rebuilds = 0, looks = 0;                                                ///< begun; at the probe samples
  std::optional<double> last_drift, largest_drift;
  std::optional<double> last_age;  ///< steps: mean over the features that were read, where they age
};

struct LossTrend {
  std::int64_t window = 1;  ///< steps: a twentieth of them, 5 to 100
  double first = 0;         ///< the mean of the first window
  double last = 0;          ///< of the last
  double lowest = 0;        ///< of any whole one
};

struct RunSummary {
  Stretch steps;
  std::optional<double> epochs;  ///< passes over the data after the last step
  std::int64_t attempts = 0;
  std::optional<double> first_loss, last_loss;
  std::int64_t best_step = 0;  ///< of the lowest loss; 0: none
  std::optional<LossTrend> trend;
  std::vector<RankSummary> ranks;
  std::int64_t decisions = 0;
  std::vector<DecisionRecord> plan_changes;
  PredictionSummary predictions;
  std::optional<CacheSummary> cache;  ///< where one was used
};
RunSummary summarise_run(const RunStreams& run);

/// For a person: names and what there is to say, about ten of them.
std::vector<std::pair<std::string, std::string>> summary_rows(const RunStreams& run, const RunSummary& summary);
/// The same as text, a line each.
std::string summary_text(const RunStreams& run, const RunSummary& summary);

}  // namespace plimsoll::report
