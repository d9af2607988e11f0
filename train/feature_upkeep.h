#pragma once
// Keeps features that age no older than they may become (cache/upkeep.h decides): looks at probe samples, publishes
// what an epoch has made, makes all features anew. All ranks in the same step.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "cache/upkeep.h"
#include "ddp/report.h"
#include "train/run_log.h"
#include "train/session.h"

namespace plimsoll::train {

/// One per rank, where there is a cache. Refers to session and log, which outlive it. One thread.
class FeatureUpkeep {
 public:
  FeatureUpkeep(Session& session, RunLog& log);

  /// After every step that was concluded, on every rank, with the reports of all: what is known of drift and age, what
  /// is read from now on, and whether all is to be made anew. Quick; before a checkpoint of the step. Collective where
  /// an epoch ends.
  void conclude(std::int64_t step, std::span<const ddp::Report> reports);
  /// Then what takes time: a part of a rebuild, a look at the probe samples. A run that stops leaves it to its
  /// resumption, which does it first. Collective. Throws what reading samples throws.
  void work(std::int64_t step);
  /// A line of what the cache did since the last one. Collective.
  void say_use(std::int64_t step);
  /// What this rank found after the step before, for the report of this one.
  const FeatureDrift& drift() const { return drift_; }

 private:
  void take_in(std::int64_t step, std::span<const ddp::Report> reports);
  bool looks_after(std::int64_t step) const;
  void look();
  void take_drift(std::span<const model::StreamSample> samples, const at::Tensor& now);
  void rebuild(std::int64_t step);
  void publish(std::int64_t step, std::int64_t stamp);

  Session& session_;
  RunLog& log_;
  cache::UpkeepRules rules_;
  FeatureDrift drift_;
  std::int64_t made_ = 0;
  double seconds_ = 0;  ///< of the rebuild under way
  double spent_ = 0;    ///< seconds of rebuilds and looks since the last line
};

}  // namespace plimsoll::train
