#include "bench/rivals.h"

#include <algorithm>
#include <numeric>

#include "core/bytes.h"

namespace plimsoll::bench {
namespace {

using memory::Outcome;
using memory::Plan;
using memory::SyntheticWorld;

/// A data-parallel loop that knows nothing of memory.
class Trainer : RivalPolicy {
 public:
  Trainer(Rival rival, const SyntheticWorld& world, const RivalCosts& costs)
      : RivalPolicy(rival, world.scenario().effective, world.ranks(), world.scenario().model.language_blocks),
        world_(world),
        costs_(costs) {
    outcome_.policy = name_of(rival);
    if (rival == Rival::kFixedTable) {
      start_with(row(world.budget(0, 1)));
    } else if (!single_fits()) {
      recompute_all();
    }
  }

  Outcome go() {
    if (rival_ == Rival::kBinarySearch) search();
    const std::int64_t end = world_.scenario().steps * world_.scenario().effective;
    while (position_ < end && finished_) {
      if (step()) {
        position_ += effective_;
        ++outcome_.steps;
        ++since_checkpoint_;
        if (since_checkpoint_ == costs_.checkpoint_every) save();
      } else {
        ++outcome_.retries;
        outcome_.changes.push_back(clock_);
        recover();
      }
    }
    outcome_.samples = position_;
    outcome_.last = plan_;
    outcome_.finished = finished_;
    outcome_.effective_batch_kept = effective_ == world_.scenario().effective;
    return outcome_;
  }

 private:
  static int row(std::int64_t budget) {
    if (budget >= 80_GiB) return 8;
    if (budget >= 24_GiB) return 4;
    return budget >= 16_GiB ? 2 : 1;
  }

  /// Whether the longest sample of the run fits alone on every rank at the start: a user would have noticed otherwise.
  bool single_fits() const {
    for (int rank = 0; rank < world_.ranks(); ++rank) {
      const std::int64_t needed = world_.needed(plan_with(1), world_.heaviest(0, 1), rank, 1, 1);
      if (needed > world_.budget(rank, 1)) return false;
    }
    return true;
  }

  Plan plan_with(int micro_batch) const {
    Plan plan = plan_;
    plan.micro_batch = micro_batch;
    return plan;
  }

  std::int64_t clock() { return clock_ = std::max(clock_, position_ / world_.scenario().effective + 1); }

  /// One attempt at a step. All ranks end with the first that fails.
  bool step() {
    const std::int64_t now = clock();
    std::int64_t slowest = 0, failed_after = -1;
    for (int rank = 0; rank < world_.ranks(); ++rank) {
      const std::int64_t first = effective_ * rank / world_.ranks();
      const std::int64_t share = effective_ * (rank + 1) / world_.ranks() - first;
      std::int64_t took = 0;
      const bool ran = samples(rank, position_ + first, share, now, took);
      if (!ran && (failed_after < 0 || took < failed_after)) failed_after = took;
      slowest = std::max(slowest, took);
    }
    if (failed_after < 0) {
      outcome_.microseconds += slowest + world_.scenario().model.reduction_us;
      return true;
    }
    outcome_.microseconds += failed_after;
    outcome_.lost_samples += effective_;
    outcome_.retried.push_back(now);
    return false;
  }

  bool samples(int rank, std::int64_t first, std::int64_t share, std::int64_t now, std::int64_t& took) const {
    for (std::int64_t done = 0; done < share; done += plan_.micro_batch) {
      const std::int64_t count = std::min<std::int64_t>(plan_.micro_batch, share - done);
      const std::int64_t length = world_.length(first + done, count);
      const std::int64_t whole = world_.microseconds(plan_, length);
      if (world_.needed(plan_, length, rank, now, started_) > world_.budget(rank, now)) {
        took += whole / 2;  // as our own failed attempts
        return false;
      }
      took += whole;
    }
    return true;
  }

  void restart(Restart how) override {
    back(how == Restart::kLoop ? costs_.loop_restart_us : costs_.process_restart_us);
    if (how == Restart::kProcess) started_ = clock_;
  }

  void back(std::int64_t cost) {
    ++outcome_.restarts;
    outcome_.microseconds += cost;
    outcome_.lost_samples += position_ - saved_;
    outcome_.steps -= since_checkpoint_;
    since_checkpoint_ = 0;
    position_ = saved_;
  }

  void save() {
    saved_ = position_;
    since_checkpoint_ = 0;
  }

  bool trial() override {
    const int micro_batch = plan_.micro_batch;
    outcome_.microseconds += costs_.trial_us;
    const std::int64_t now = clock();
    for (int i = 0; i < costs_.trial_steps; ++i) {
      std::int64_t slowest = 0;
      bool ran = true;
      for (int rank = 0; rank < world_.ranks(); ++rank) {
        std::int64_t took = 0;
        const std::int64_t first = position_ + (static_cast<std::int64_t>(i) * world_.ranks() + rank) * micro_batch;
        ran = samples(rank, first, micro_batch, now, took) && ran;
        slowest = std::max(slowest, took);
      }
      outcome_.microseconds += slowest;
      if (!ran) return false;
    }
    return true;
  }

  const SyntheticWorld& world_;
  RivalCosts costs_;
  std::int64_t position_ = 0;
  std::int64_t saved_ = 0;             ///< position of the last checkpoint
  std::int64_t since_checkpoint_ = 0;  ///< steps
  std::int64_t clock_ = 1;             ///< furthest step's worth of samples
  std::int64_t started_ = 1;           ///< clock when the process started
  Outcome outcome_;
};

}  // namespace

Outcome run_rival(Rival rival, const SyntheticWorld& world, const RivalCosts& costs) {
  return Trainer(rival, world, costs).go();
}

}  // namespace plimsoll::bench
