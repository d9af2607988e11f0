#pragma once
// The training loop: steps until the run is done, stopped or failed; after each, the plan of the next.

#include <filesystem>
#include <optional>
#include <string>

#include "train/feature_upkeep.h"
#include "train/loader_tuner.h"
#include "train/run_log.h"
#include "train/session.h"

namespace plimsoll::train {

/// How a run ended.
struct Outcome {
  ExitCode code = ExitCode::kDone;
  std::string reason = "done";
};

class Loop {
 public:
  /// `session` and `log` outlive the loop.
  Loop(Session& session, RunLog& log);

  /// Runs to the last step, or to the step at which a stop was agreed, and leaves a checkpoint there. Collective. An
  /// Error that ends a run under memory pressure is thrown after a checkpoint was written.
  Outcome run();

 private:
  StepResult one_step(std::int64_t step);
  void apply_budget_changes(std::int64_t step);
  void follow(std::int64_t step, const StepResult& result);
  void end_window();
  std::optional<memory::Decision> decide(std::int64_t step, const StepResult& result);
  void checkpoint();

  Session& session_;
  RunLog& log_;
  std::optional<FeatureUpkeep> upkeep_;  ///< where there is a feature cache
  LoaderTuner loader_;
  std::int64_t last_checkpoint_ = -1;
  std::int64_t kept_features_ = 0;  ///< UpkeepState::oldest of that checkpoint
  bool replaying_ = false;
  bool first_ = true;  ///< no step of this attempt has begun
};

}  // namespace plimsoll::train
