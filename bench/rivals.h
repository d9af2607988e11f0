#pragma once
// How other trainers deal with a full memory, in the same synthetic world and at the same prices as our policies: to be
// compared with, in benchmarks only. Each is given the benefit of the doubt where practice differs: recompute is off
// unless not even one sample fits without it, and is switched on by a patient user when it has to be.

#include <array>

#include "memory/planning/simulation.h"

namespace plimsoll::bench {

enum class Rival {
  kHalving,     ///< starts with the whole share; replays the step with half the micro-batch when it fails; never grows
  kNineTenths,  ///< starts with the whole share and no accumulation; when it fails, the loop starts again from the last
                ///< checkpoint with 0.9 of the batch, so that the effective batch shrinks too
  kFixedTable,  ///< a micro-batch by size of the card, everything recomputed; when it fails, the job is started again
                ///< from the last checkpoint with half of it
  kBinarySearch,  ///< tries micro-batches on the first samples and keeps the largest that ran; when it fails later, the
                  ///< job is started again from the last checkpoint and searches anew, below what failed
};

inline constexpr std::array kRivals{Rival::kHalving, Rival::kNineTenths, Rival::kFixedTable, Rival::kBinarySearch};

const char* name_of(Rival rival);

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
