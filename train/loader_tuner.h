#pragma once
// The loader's threads and how far it is ahead, changed while a run goes on by what this rank's steps took
// (data/loader_policy.h). Nothing that is learned depends on it, so that ranks need not agree.

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>

#include "data/loader_policy.h"
#include "train/run_log.h"
#include "train/session.h"

namespace plimsoll::train {

/// What steps took and saw, added up.
struct LoaderSums {
  std::int64_t steps = 0;
  double wait_ms = 0, load_ms = 0, wall_ms = 0;  ///< load_ms: as LoaderUse has it
  double utilisation = 0, held_bytes = 0;
  double memory = 0;       ///< in use, 0 to 1, of those steps that looked
  std::int64_t looks = 0;  ///< so many

  void add(const LoaderSums& other);
  /// Of a step, of one of the sums.
  double mean(double sum) const { return steps > 0 ? sum / static_cast<double>(steps) : 0.0; }
  double mean_memory() const { return looks > 0 ? memory / static_cast<double>(looks) : 0.0; }
};

/// Part of a step of `wall_ms` that the device was busy: as it says itself (Device::utilisation) or, where it does not,
/// that in which the step did not wait for its samples, as of the CPU.
double busy_part(const std::function<std::optional<double>()>& device_says, double wait_ms, double wall_ms);

/// What the loader came to in an epoch that ends in step `step`, adjusted so many times: a line for a person.
std::string loader_epoch_line(std::int64_t step, std::int64_t adjusted, const data::LoaderSetting& setting,
                              const LoaderSums& epoch);

/// One per rank; one thread. Refers to session and log, which outlive it.
class LoaderTuner {
 public:
  /// `machine_in_use`: the part of the host's memory that is, 0 to 1; empty: asks the machine.
  LoaderTuner(Session& session, RunLog& log, std::function<double()> machine_in_use = {});

  /// A step waited `wait_ms` for its samples and took `wall_ms` in all. Every data.adjust_every steps the loader is
  /// changed where the policy says so; where an epoch ends, a line tells what the loader came to.
  void took(std::int64_t step, double wait_ms, double wall_ms);
  /// Rank 0 writes run.dir/loader.toml: the setting under which steps took least, for the next run to start with. A
  /// disk that refuses costs a warning.
  void recommend() const noexcept;
  const data::LoaderSetting& setting() const { return now_; }

 private:
  LoaderSums look(double wait_ms, double wall_ms);
  data::LoaderUse use_of(const LoaderSums& seen) const;
  void adjust(std::int64_t step);
  std::string recommendation() const;
  void close_epoch(std::int64_t step);

  Session& session_;
  RunLog& log_;
  std::function<double()> machine_in_use_;
  data::LoaderLimits limits_;
  data::LoaderSetting now_;
  LoaderSums interval_, epoch_;
  std::map<std::pair<std::int64_t, std::int64_t>, LoaderSums> by_setting_;  ///< by workers and prefetch
  std::int64_t adjusted_ = 0;                                               ///< in this epoch
  std::int64_t adjusted_in_all_ = 0;                                        ///< in this run
  std::chrono::nanoseconds load_time_{0};                                   ///< the loader's, at the last look
};

}  // namespace plimsoll::train
