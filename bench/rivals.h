#pragma once
// The rivals of rival_policy.h in the same synthetic world and at the same prices as our policies.

#include "bench/rival_policy.h"
#include "memory/planning/simulation.h"

namespace plimsoll::bench {

/// What everybody pays for a failure, beside the failed attempt itself.
struct RivalCosts {
  std::int64_t checkpoint_every = 100;           ///< steps; writing one is free
  std::int64_t loop_restart_us = 10'000'000;     ///< the process stays: state read back, loader started anew
  std::int64_t process_restart_us = 60'000'000;  ///< a new process: libraries, weights, communicators
  std::int64_t trial_us = 2'000'000;             ///< state saved and restored around a trial of the search
  int trial_steps = 3;
};

/// Until as many samples were trained as our run takes. Events come by steps' worth of samples reached for the first
/// time, so that nobody escapes one by being slow, or meets it twice.
memory::Outcome run_rival(Rival rival, const memory::SyntheticWorld& world, const RivalCosts& costs = {});

}  // namespace plimsoll::bench
