#pragma once
// What a run writes down: a line a step (metrics.jsonl) and a line a decision (decisions.jsonl). Plain structs and pure
// functions to one line of JSON; JsonLines puts them into files. Bytes are bytes, times are milliseconds, numbers that
// are not finite become null.

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace plimsoll::report {

/// One rank's memory in a step.
struct RankMemory {
  std::int64_t peak = 0;       ///< most bytes live at once in this step
  std::int64_t predicted = 0;  ///< what the dry run said; 0: nothing
  std::int64_t budget = 0;
  std::int64_t retries = 0;            ///< pieces that ran out of memory and were replayed smaller
  std::int64_t allocator_retries = 0;  ///< times the caching allocator freed its cache to serve a request
  std::int64_t failed_request = 0;     ///< bytes of the largest allocation that failed; 0: none did
  bool failed = false;                 ///< a single sample ran out of memory
  bool other_way = false;              ///< the step was not run as the plan says, but faster,
  bool other_recompute = false;        ///< and recomputed or offloaded something else
};

/// A plan as it is shown; no other room's type, so that this room needs none.
struct PlanView {
  std::int64_t micro_batch = 1;
  std::int64_t accumulation = 1;      ///< micro-batches that the plan makes of the largest share, before any split
  std::int64_t resolution = 0;        ///< longer side in pixels; 0: images as they are
  std::int64_t recompute_blocks = 0;  ///< of the language model
  std::int64_t recompute_vision = 0, recompute_expert = 0;
  bool offload = false;
  std::uint32_t hash = 0;
};
std::string to_json(const PlanView& plan);

/// An attempt at a step in which a single sample did not fit: nobody updated, and the step was replayed.
struct FailedAttempt {
  PlanView plan;
  std::vector<RankMemory> ranks;  ///< in rank order
};

/// Activations (bytes above what is live between micro-batches) of micro-batches with samples of one type, beside their
/// predictions.
struct TaskMemory {
  std::int64_t micro_batches = 0;  ///< that were compared
  std::int64_t samples = 0;        ///< of the type, in those
  /// The type's part of their bytes: as much of them as its samples are predicted to need alone.
  std::int64_t predicted = 0, measured = 0;
  double error_sum = 0.0, largest_error = 0.0;  ///< of |predicted - measured| / measured of those micro-batches

  /// Takes other micro-batches in.
  void add(const TaskMemory& more);
};
/// Its fields, and "mean_error" in place of the sum.
std::string to_json(const TaskMemory& memory);

/// One optimiser step over the whole world.
struct StepRecord {
  std::int64_t step = 0;                                          ///< from 1
  double epoch = 0.0;                                             ///< passes over the data so far
  double loss = 0.0;                                              ///< mean over the effective batch
  std::vector<std::pair<std::string, double>> task_losses;        ///< name, mean
  std::vector<std::pair<std::string, std::int64_t>> task_counts;  ///< name, samples
  std::vector<std::pair<std::string, double>> task_weights;       ///< name, what GradNorm weighed it by in this step
  std::vector<std::pair<std::string, double>> task_norms;         ///< name, of the shared layer's gradient, likewise
  std::vector<std::pair<std::string, TaskMemory>> task_memory;    ///< name, over all ranks, of those compared
  double grad_norm = 0.0;                                         ///< before clipping
  double lr = 0.0;
  double vl_lr = 0.0;
  std::int64_t samples = 0;        ///< of this step: the effective batch
  std::int64_t first_sample = 0;   ///< position of its first sample in the sample stream
  double step_ms = 0.0;            ///< computing up to the reduction, the slowest rank
  std::int64_t micro_batches = 0;  ///< that rank 0 ran: fewer than the accumulation where samples are light, more after
                                   ///< a split
  std::int64_t failed_forward = 0, failed_backward = 0;  ///< of its attempts that ran out of memory, by where
  std::int64_t live = 0;  ///< samples that ran the whole model; the others came with their hidden states
  double load_ms = 0.0;   ///< waited for the loader, the slowest rank
  double wall_ms = 0.0;   ///< from asking for samples to the end of the update, on rank 0
  bool skipped = false;   ///< values were not finite: nothing was updated
  PlanView plan;
  std::vector<RankMemory> ranks;               ///< in rank order
  std::vector<FailedAttempt> failed_attempts;  ///< at this step, before the one that went well; mostly none
  std::int64_t attempt = 1;                    ///< of the run: one more with every restart
};
std::string to_json(const StepRecord& record);
/// By computing alone; 0 where no time was taken.
double samples_per_second(const StepRecord& record);

/// One decision: what was seen, what was predicted, what was chosen and why. Also written when nothing changes.
struct DecisionRecord {
  std::int64_t step = 0;    ///< last step of the window that was looked at
  std::int64_t window = 0;  ///< from 1
  std::string policy;
  std::vector<RankMemory> ranks;  ///< peaks are the window's
  std::int64_t worst_rank = 0;    ///< the one with the largest fraction of its budget
  double peak_fraction = 0.0;     ///< that fraction
  double target = 0.0, margin = 0.0;
  PlanView before, after;
  std::optional<std::int64_t> predicted_peak;  ///< of `after`, on the heaviest micro-batch
  bool changed = false;
  std::optional<bool> settled;  ///< predictive: the budget is filled as well as it can be
  std::string reason;           ///< a sentence for a person
};
std::string to_json(const DecisionRecord& record);

/// A decision about the feature cache, between those about the plan.
struct CacheRecord {
  std::int64_t step = 0;        ///< after which
  std::string cache;            ///< "rebuild" or "rebuilt"
  std::string reason;           ///< a sentence for a person
  std::optional<double> drift;  ///< of the probe samples, relative L2
};
std::string to_json(const CacheRecord& record);

/// What the feature cache did since the record before, on all ranks: where an epoch, a rebuild or the run ends.
struct CacheUseRecord {
  std::int64_t step = 0;         ///< after which
  double epoch = 0.0;            ///< passes over the data so far
  std::int64_t loaded = 0;       ///< samples, but for those that a live turn was meant for
  std::int64_t from_device = 0;  ///< of them came with features from the device's memory
  std::int64_t from_memory = 0;  ///< of them came with features from memory
  std::int64_t from_disk = 0;    ///< of them came with features from the disk
  std::int64_t kept = 0;         ///< samples whose features were made and written
  std::int64_t disk_bytes = 0, memory_bytes = 0, device_bytes = 0;
  std::optional<double> age;         ///< mean steps since the features that were read were made, where features age
  std::optional<double> saved_ms;    ///< computing that the features spared a rank, where both kinds were timed; mean
  double upkeep_ms = 0.0;            ///< rebuilds and looks at probe samples took, on rank 0
  std::optional<double> int8_error;  ///< relative, of features written as bytes
};
std::string to_json(const CacheUseRecord& record);
/// For a person: "feature cache: 1,203 of 1,204 samples loaded came with their features ...".
std::string to_line(const CacheUseRecord& record);

/// A look at the probe samples.
struct DriftRecord {
  std::int64_t step = 0;    ///< whose reports told of it: the look was after the one before
  std::int64_t probed = 0;  ///< samples
  double drift = 0.0;       ///< mean relative L2 distance of their cached features from fresh ones
  double cosine = 0.0;      ///< mean
};
std::string to_json(const DriftRecord& record);

}  // namespace plimsoll::report
