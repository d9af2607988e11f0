#pragma once
// Keeps features that age no older than they may become (cache/upkeep.h decides): looks at probe samples, publishes what
// an epoch has made, makes all features anew. All ranks in the same step.

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

  /// After every step that was concluded, on every rank, with the reports of all. Collective where a rebuild ends.
  /// `stopping`: the run ends here, with a checkpoint; what takes time is left to its resumption, which does it first.
  /// Throws what reading samples throws.
  void after_step(std::int64_t step, std::span<const ddp::Report> reports, bool stopping);
  /// What this rank found after the step before, for the report of this one.
  const FeatureDrift& drift() const { return drift_; }

 private:
  void take_in(std::int64_t step, std::span<const ddp::Report> reports);
  bool looks_after(std::int64_t step) const;
  void look();
  void rebuild(std::int64_t step);
  void publish(std::int64_t step);
  std::vector<std::int64_t> part_of(const std::vector<std::int64_t>& samples, std::int64_t begin,
                                    std::int64_t end) const;

  Session& session_;
  RunLog& log_;
  cache::UpkeepRules rules_;
  FeatureDrift drift_;
  std::int64_t made_ = 0;
  double seconds_ = 0;  ///< of the rebuild under way
};

}  // namespace plimsoll::train
