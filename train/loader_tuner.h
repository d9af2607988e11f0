#pragma once
// The loader's threads and how far it is ahead, changed while a run goes on by what this rank's steps took
// (data/loader_policy.h). Nothing that is learned depends on it, so that ranks need not agree.

#include <cstdint>
#include <map>
#include <string>
#include <utility>

#include "data/loader_policy.h"
#include "train/run_log.h"
#include "train/session.h"

namespace plimsoll::train {

/// One per rank; one thread. Refers to session and log, which outlive it.
class LoaderTuner {
 public:
  LoaderTuner(Session& session, RunLog& log);

  /// A step waited `load_ms` for its samples and took `wall_ms` in all. Every data.adjust_every steps the loader is
  /// changed where the policy says so; where an epoch ends, a line tells what the loader came to.
  void took(std::int64_t step, double load_ms, double wall_ms);
  /// Rank 0 writes run.dir/loader.toml: the setting under which steps took least, for the next run to start with. A
  /// disk that refuses costs a warning.
  void recommend() const noexcept;

 private:
  struct Sums {
    std::int64_t steps = 0;
    double load_ms = 0, wall_ms = 0, utilisation = 0, held_bytes = 0;
    void add(const Sums& other);
  };
  Sums look(double load_ms, double wall_ms) const;
  /// Of what the loader may take, as a mean of these steps; without such a bound of the machine's memory, now. 0 to 1.
  double memory_in_use(const Sums& sums) const;
  void adjust(std::int64_t step);
  std::string recommendation() const;
  void close_epoch(std::int64_t step);

  Session& session_;
  RunLog& log_;
  data::LoaderLimits limits_;
  data::LoaderSetting now_;
  Sums interval_, epoch_;
  std::map<std::pair<std::int64_t, std::int64_t>, Sums> by_setting_;  ///< by workers and prefetch
  std::int64_t adjusted_ = 0;                                         ///< in this epoch
};

}  // namespace plimsoll::train
