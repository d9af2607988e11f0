#pragma once
// Everything a rank holds during a run, built once. What can be known from configuration, metadata and shapes alone
// (too few samples, a model larger than the budget) is refused before weights are read; whether ranks agree, and
// whether a sample fits, after.

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "data/loader.h"
#include "data/sample_source.h"
#include "data/sample_stream.h"
#include "ddp/communicator.h"
#include "memory/device_memory.h"
#include "memory/planning/calibration.h"
#include "memory/planning/candidates.h"
#include "memory/planning/first_plan.h"
#include "memory/reserved.h"
#include "model/vla.h"
#include "train/checkpoint.h"
#include "train/config.h"
#include "train/controller.h"
#include "train/device.h"
#include "train/draws.h"
#include "train/dry_step.h"
#include "train/feature_cache.h"
#include "train/step.h"
#include "train/task_types.h"

namespace plimsoll::train {

/// Hash of the settings that decide what is learned: RunState::configuration of every checkpoint written under them.
std::uint64_t learned_settings_hash(const Config& config);

/// Parts of one rank. Members are public: the loop is their only user.
struct Session {
  /// Builds all parts. `communicator` and `source` outlive the session. Collective: every rank calls it. Throws
  /// Error(kMemory) when not even one sample fits, Error(kUsage) when ranks or settings disagree.
  Session(const Config& config, ddp::Communicator& communicator, const data::SampleSource& source,
          Device device = cpu_device());

  Config config;
  ddp::Communicator& communicator;
  const data::SampleSource& source;
  Device device;
  memory::DeviceMemory& meter;  ///< the device's
  std::int64_t budget;          ///< of this rank at start
  model::VlaOptions options;
  std::unique_ptr<DryStep> dry;
  std::unique_ptr<model::VlaModel> model;
  std::unique_ptr<FlatBuffers> buffers;
  std::unique_ptr<memory::Predictor> predictor, evaluation_predictor, encode_predictor;
  std::unique_ptr<Step> step;
  std::unique_ptr<Controller> controller;
  TaskTypes tasks;
  std::shared_ptr<const data::StreamOrder> order;  ///< what the stream draws
  data::SampleStream stream;
  std::unique_ptr<FeatureCache> cache;   ///< null: off. The loader reads from it
  std::unique_ptr<data::Loader> loader;  ///< made with the first share
  std::vector<SampleShape> heaviest;     ///< that bound the training samples, as many as a share has
  std::vector<SampleShape> evaluated;   ///< of the samples that are evaluated, as many as one rank gets, heaviest first
  std::vector<std::int64_t> budgets;    ///< of all ranks at start
  std::int64_t steps = 0;               ///< of the whole run
  std::int64_t share = 0;               ///< largest of any rank
  memory::Calibration calibration;      ///< of earlier runs on this machine; the controller's grows from it
  memory::CostModel costs;              ///< of the predictive policy
  memory::CandidateTable candidates;    ///< likewise; empty under the other policies
  std::vector<memory::Candidate> ways;  ///< likewise: those of them that the next step may be run in
  memory::WayTimes way_times;           ///< likewise, of this rank
  memory::Plan plan;
  RunState state;

  /// Positions of the sample stream that this rank draws in a step.
  std::vector<std::uint64_t> positions_of(std::int64_t step) const;
  /// Samples of each type that all ranks together draw in a step; none where samples have no types.
  std::vector<std::int64_t> counts_of(std::int64_t step);
  /// This rank's share of a step, waiting for the loader; `hold` keeps the samples alive.
  std::vector<model::StreamSample> load_share(std::int64_t step, std::vector<std::shared_ptr<const Sample>>& hold);
  std::filesystem::path checkpoint_root() const;
  /// What the run will draw, pictures having this resolution. Looked up after the first time.
  Draws& draws_at(int resolution) const;
  /// Predicted peak of `plan`, live bytes included: of the heaviest micro-batch that any rank will draw, or of the
  /// evaluation's heaviest if that needs more. As the device's budget counts: of live bytes, or of reserved ones.
  std::int64_t predicted_peak(const memory::Plan& plan) const;
  /// The two that it is made of, above what is live; 0 where nothing is evaluated.
  std::int64_t micro_batch_bytes(const memory::Plan& plan) const;
  std::int64_t evaluation_bytes(const memory::Plan& plan) const;
  /// Takes both over from a rank that has made their dry runs.
  void take_over(const memory::Plan& plan, std::int64_t micro_batch, std::int64_t evaluation) const;
  /// How this rank may run its share of step `number` in place of the plan's way, and in how many bytes by its budget
  /// of now (memory::fill_bytes), if the plan is a candidate. A plan that a failure forced is taken as it is. With
  /// batch.packing = "bytes" under every policy and plan: what micro-batches may be predicted to need so that they stay
  /// within the target and batch.max_memory even if predictions fall as short as they did before (calibration).
  memory::Fill fill(const memory::Plan& plan, std::int64_t number) const;
  /// The same for any plan, as if it were a candidate.
  memory::Fill fill(const memory::Plan& plan, std::int64_t number, const memory::PolicyState& known) const;
  /// After an update: GradNorm's weights for the next step. The same on every rank.
  void balance(std::int64_t step, const StepResult& result);
  /// What the step took, for the ways of those that follow. This rank's alone.
  void learn(const memory::TimedShare& timed);
  /// Rank 0 writes `state` and all tensors to run.dir/checkpoints; the others wait. Collective. Throws
  /// Error(kCheckpoint) on all ranks when the disk refuses.
  void write_checkpoint();
  /// Reads the newest checkpoint under run.dir, if there is one; else the weights of train.stage1_checkpoint, if set.
  /// Collective.
  void resume(bool from_newest);
  /// The text that `train` prints before the first step: the plan and what its peak is made of.
  std::string plan_text();

 private:
  std::vector<SampleShape> heaviest_at(int resolution) const;
  void make_predictors();
  std::int64_t bytes_of(const memory::Ledger& dry_run) const;
  void settle_budget();
  void warm_up();
  void share_budgets();
  std::int64_t leanest_bytes(const memory::MicroBatchShape& shape, const memory::Plan& usual) const;
  memory::MicroBatchShape heaviest_evaluation(const memory::Plan& plan) const;
  void make_cache();
  void choose_cache();
  FeatureOrigin feature_origin();
  void open_cache();
  void size_workspace();
  std::int64_t choose_workspace();
  void choose_plan();
  void choose_candidate();
  memory::CandidateTable candidates_of(std::int64_t micro_batch) const;
  memory::CandidateTable start_candidates() const;
  void start_from_table(const memory::ChoiceLimits& limits, const memory::PolicyState& known);
  void warn_of_unread_table(const char* why) const;
  void choose_largest();
  [[noreturn]] void refuse_budget(int rank, std::int64_t micro, std::int64_t needed, std::int64_t bytes) const;
  void shake_hands();
  std::uint64_t model_files();  ///< hash_of_model_files, computed once
  void adopt_saved_plan();
  void compare_on_all_ranks(const char* name, const std::string& value);

  std::uint64_t model_files_ = 0;                           ///< 0: not computed yet
  std::int64_t held_by_libraries_ = 0;                      ///< live before the model was made
  mutable std::int64_t unused_at_rest_ = 0;                 ///< parts of the device's segments, more than at_rest_ has
  mutable std::unique_ptr<memory::ReservedBytes> at_rest_;  ///< where the device reserves; null: not asked for yet
  mutable std::map<int, Draws> draws_;                      ///< by resolution
};

}  // namespace plimsoll::train
