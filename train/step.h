#pragma once
// The step is a transaction: either every rank's samples are in one update, or nobody's.

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "core/error.h"
#include "ddp/agreement.h"
#include "ddp/communicator.h"
#include "ddp/report.h"
#include "memory/guardian.h"
#include "memory/planning/packing.h"
#include "memory/planning/plan.h"
#include "memory/planning/way_times.h"
#include "memory/planning/ways.h"
#include "memory/predictor.h"
#include "model/vla.h"
#include "train/adamw.h"
#include "train/flat_buffers.h"
#include "train/type_bytes.h"
#include "train/type_gradients.h"

namespace plimsoll::train {

/// Floats between gradients and report slots in the reduction buffer: sum of the losses, count of the samples,
/// and of those that ran the whole model.
inline constexpr std::int64_t kLossSlots = 3;
/// The same where samples are of types: then the sum of each type's losses, then the gradients that GradNorm balances
/// by, then each rank's memory of each type (train/type_bytes.h).
struct SumSlots {
  std::size_t types = 0;         ///< 0: samples have none
  std::int64_t out = 0, in = 0;  ///< of the layer whose gradients are kept for each type (TypeGradients); 0: none
  int world = 1;                 ///< ranks
  std::int64_t layer() const { return out * in; }
  std::int64_t gradients() const { return kLossSlots + static_cast<std::int64_t>(types); }  ///< where they begin
  /// Where a rank's memory begins; that of rank 0 where the gradients end.
  std::int64_t memory(int rank) const {
    const auto count = static_cast<std::int64_t>(types);
    return gradients() + count * layer() + rank * count * kTypeMemorySlots;
  }
  std::int64_t size() const { return memory(world); }
};

/// What does not change from step to step.
struct StepOptions {
  std::int64_t effective_batch = 1;  ///< samples of a step over all ranks: the divisor of the loss
  double clip_norm = 1.0;            ///< 0: none
  AdamWOptions adapters, expert;     ///< learning rates at factor 1
  /// Only a part of the samples gives adapters a gradient (cache.mode = "hybrid"): they and the rest are clipped each
  /// by its own norm.
  bool clip_apart = false;
  SumSlots sums;
  /// Micro-batches are cut by StepInput's fill.bytes, or by what memory::PackingRoom leaves of them after failures,
  /// instead of by the plan's count.
  bool pack_by_bytes = false;
  double diversity = 0.5;        ///< memory::packed
  std::size_t most_samples = 1;  ///< of a micro-batch that is cut so
};

/// How far the cached features of some samples are from fresh ones.
struct FeatureDrift {
  std::int64_t samples = 0;
  std::int64_t distances = 0;  ///< sum of relative L2 distances, millionths, each at most a million
  std::int64_t angles = 0;     ///< likewise of 1 - cosine
};

/// What samples that come with features spare a step: times of parts of a share that were all of one kind and run once.
/// Parts with samples of which nothing can be kept are not timed.
struct FeatureTimes {
  std::int64_t came_with = 0;  ///< samples of the share that came with features, in whatever part
  std::int64_t with = 0, with_us = 0;
  std::int64_t without = 0, without_us = 0;
};

/// What a step is asked to do.
struct StepInput {
  std::int64_t step = 1;                         ///< from 1; skipped steps count
  std::int64_t updates = 0;                      ///< updates applied before this step: AdamW's time
  std::int64_t adapter_updates = -1;             ///< likewise of the adapters; -1: as many
  std::span<const model::StreamSample> samples;  ///< this rank's share, all loaded
  memory::Plan plan;
  std::uint32_t table_hash = 0;  ///< 24 bits of the candidates: ranks that hold other ones must not go on together
  memory::Fill fill;             ///< the ways in which the share may be run in place of the plan's
  double learning_rate_factor = 1.0;
  bool hash_weights = false;    ///< once a window: report a hash of the weights
  bool stop_requested = false;  ///< this rank was asked to stop
  std::int64_t load_ms = 0;
  FeatureDrift drift;  ///< that this rank has found since the step before
};

/// Attempts at micro-batches that ran out of memory, by where they were.
struct FailedAttempts {
  int forward = 0, backward = 0;
};

struct StepResult {
  ddp::Verdict verdict;
  std::vector<ddp::Report> reports;  ///< of all ranks
  memory::GuardianReport guardian;   ///< this rank's
  FailedAttempts failed;             ///< this rank's
  memory::TimedShare timed;          ///< this rank's; without samples where anything was split or run twice
  FeatureTimes features;             ///< this rank's
  std::int64_t arranging_us = 0;     ///< this rank's: to cut its share into micro-batches
  std::optional<Error> fatal;        ///< the job ends here, on all ranks alike: the third skip in a row, ranks diverged
  double loss = 0.0;                 ///< mean over the samples of all ranks, whatever they weigh
  std::vector<double> type_losses;   ///< sums over the samples of each type, likewise
  std::vector<double> type_norms;    ///< of each type's gradient of the layer in StepOptions::sums
  std::vector<TypeMemory> type_memory;  ///< of each, over all ranks: micro-batches whose prediction was exact
  std::int64_t live = 0;                ///< samples of all ranks that ran the whole model
  double gradient_norm = 0.0;           ///< before clipping
};

/// Mean loss of the samples of each type, of which the step had so many; 0 of those that it had none of.
std::vector<double> type_means(const StepResult& result, std::span<const std::int64_t> counts);

/// Who keeps the features that steps make (train/feature_cache.h). A commit concerns what was shown since the one
/// before it.
class FeatureKeeper {
 public:
  virtual ~FeatureKeeper() = default;
  virtual void start_step(std::int64_t step) = 0;
  /// Whether there is anything to keep of such a sample.
  virtual bool can_keep(const Sample& sample) const = 0;
  /// Who is to see what a micro-batch of these samples makes; they outlive it.
  virtual model::Shown shown(std::span<const model::StreamSample> samples) = 0;
  virtual void commit() = 0;
  virtual void discard() = 0;
  /// Gives the device's memory back that it holds, for good, and returns its bytes. Samples that are loaded keep their
  /// features.
  virtual std::int64_t give_up_device() = 0;
};

/// Runs steps on one rank. Everything it refers to outlives it; one thread.
class Step {
 public:
  Step(const model::VlaModel& model, const model::PackingRules& rules, at::Device device, FlatBuffers& buffers,
       ddp::Communicator& communicator, memory::DeviceMemory& meter, memory::Predictor& predictor,
       const StepOptions& options);

  /// Forward, backward and commit of the share, one reduction, one verdict, and the update if it says so. After kReplay
  /// or kSkip weights and moments are as before. What ddp::agree
  /// refuses comes back as `fatal`, so that all ranks can write a checkpoint before they leave.
  StepResult run(const StepInput& input);

  /// From now on `keeper` is shown the features that steps make; null: nobody. It outlives the step.
  void keep_features(FeatureKeeper* keeper) { keeper_ = keeper; }
  memory::Guardian& guardian() { return guardian_; }
  ddp::AgreementState& agreement() { return agreement_; }

 private:
  memory::GuardianReport run_part(const StepInput& input, StepResult& result);
  memory::MicroBatchWork work(const StepInput& input);
  void take_sums(StepResult& result);
  memory::Plan plan_of(const StepInput& input, memory::Piece piece);
  std::size_t most_from(std::size_t begin) const;
  bool packed_too_much(const StepInput& input, memory::Piece piece);
  std::size_t keep_to_plan(const StepInput& input, memory::Piece piece);
  void forward_backward(const StepInput& input, memory::Piece piece);
  void commit(std::span<const model::StreamSample> samples, const at::Tensor& losses);
  void take_peak();
  void note_peak(std::span<const model::StreamSample> samples, const memory::Plan& way, std::int64_t live);
  void compare_peaks();
  std::optional<std::int64_t> bytes_alone(const model::StreamSample& item, const memory::Plan& way);
  ddp::Report report(const StepInput& input, const memory::GuardianReport& guardian, std::int64_t step_ms);

  const model::VlaModel& model_;
  model::PackingRules rules_;
  at::Device device_;
  FlatBuffers& buffers_;
  ddp::Communicator& communicator_;
  memory::DeviceMemory& meter_;
  memory::Predictor& predictor_;
  StepOptions options_;
  memory::Guardian guardian_;
  FeatureKeeper* keeper_ = nullptr;
  std::optional<TypeGradients> type_gradients_;
  ddp::AgreementState agreement_;
  memory::PackingRoom packing_room_;
  /// In this step: the largest peak before the running micro-batch, where each has its own taken.
  std::int64_t peak_ = 0;
  /// A micro-batch that was run, whose prediction was exact. Of the part of the share that is being run.
  struct NotedPeak {
    std::span<const model::StreamSample> samples;
    memory::Plan way;
    std::int64_t predicted, measured;
  };
  std::vector<NotedPeak> noted_;
  std::vector<TypeMemory> type_memory_;  ///< this rank's, in this step
  int looked_alone_ = 0;                 ///< dry runs of single samples, in all steps
  std::int64_t non_finite_sample_ = -1;
  std::int64_t failed_sample_ = -1;
  memory::Plan way_;               ///< of this step's share, or of that part of it which is being run
  std::vector<std::size_t> ends_;  ///< of the micro-batches of that part, where they are cut by bytes
  bool pack_failed_ = false;       ///< in this step: a micro-batch that was cut by bytes ran out of memory unforeseen
  bool other_way_ = false;         ///< in this step: some part was not run in the plan's way
  bool out_of_memory_ = false;     ///< in this step: the rest of it is run as the plan says
  bool other_recompute_ = false;   ///< in this step: some micro-batch recomputed or offloaded something else
  bool in_backward_ = false;       ///< the running micro-batch has its losses
  FailedAttempts failed_;          ///< in this step
};

/// What an update goes by.
struct UpdateInput {
  double learning_rate_factor = 1.0;
  std::int64_t updates = 0;           ///< applied before
  std::int64_t adapter_updates = -1;  ///< likewise of the adapters; -1: as many
  std::int64_t live = -1;             ///< samples that gave adapters a gradient; -1: all
};

/// Norm, clipping and AdamW, in place, over what is committed. The adapters' gradients count as the mean over the live
/// samples; without any they stay as they are, their moments too. Returns the norm before clipping.
double apply_gradients(FlatBuffers& buffers, const StepOptions& options, const UpdateInput& input);

/// Totals of a micro-batch: what its memory depends on.
memory::MicroBatchShape shape_of(std::span<const model::StreamSample> samples);

/// What a plan asks of the model.
model::Recompute recompute_of(const memory::Plan& plan);

/// Forward and backward of one micro-batch into the parameters' .grad; returns the losses per sample. The same code
/// runs a step and its dry run. `shown` as in model::VlaModel::sample_losses. `in_backward`, if given, is set when
/// forward has gone well.
at::Tensor forward_backward(const model::VlaModel& model, const model::PackedBatch& batch,
                            const model::Recompute& recompute, std::int64_t effective_batch,
                            const model::Shown& shown = {}, bool* in_backward = nullptr);

}  // namespace plimsoll::train
