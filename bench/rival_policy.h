#pragma once
// How other trainers deal with a full memory: what they begin with and what they do when it fails, apart from the world
// in which it happens (made up in rivals.h, real in rivals_bench.cpp). For benchmarks only. Each is given the benefit
// of the doubt where practice differs: recompute is off unless not even one sample fits without it, and is switched on
// by a patient user when it has to be.

#include <array>
#include <cstdint>

#include "memory/planning/plan.h"

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

/// A rival's plan and effective batch. What a trial and a restart are, the trainer that is derived from it says.
class RivalPolicy {
 public:
  RivalPolicy(Rival rival, std::int64_t effective, int ranks, int language_blocks);
  virtual ~RivalPolicy() = default;

 protected:
  enum class Restart { kLoop, kProcess };
  /// Whether micro-batches of the plan ran on a few samples.
  virtual bool trial() = 0;
  /// Back to the last checkpoint.
  virtual void restart(Restart how) = 0;

  /// The fixed table's row.
  void start_with(int micro_batch);
  void recompute_all() { plan_.recompute_blocks = language_blocks_; }
  /// After a failed step.
  void recover();
  /// The binary search.
  void search();

  Rival rival_;
  memory::Plan plan_;
  std::int64_t effective_;  ///< samples a step, all ranks together
  bool finished_ = true;    ///< false: nothing is left to try

 private:
  void recompute();

  std::int64_t wanted_;  ///< effective batch at the start
  int ranks_, language_blocks_, share_;
  int largest_;  ///< that the search tries
};

}  // namespace plimsoll::bench
