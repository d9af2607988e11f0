#pragma once
// What steps take, way by way, learned from those that a run has done. It begins with the cost model, which a few
// timings made before the first step, whatever else the machine did just then; every step that follows says how long
// its way really takes. One rank's alone: ranks need not agree on it, as the ways differ in nothing but memory and
// time. One thread.

#include <cstdint>
#include <map>
#include <span>
#include <tuple>
#include <vector>

#include "memory/planning/candidates.h"
#include "memory/planning/ways.h"

namespace plimsoll::memory {

/// One step of this rank, as it was run.
struct TimedShare {
  Plan way;
  std::int64_t samples = 0;
  std::int64_t weight = 0;        ///< of all samples (weight_of in packing.h)
  std::int64_t microseconds = 0;  ///< of all its micro-batches, without waiting for data or peers
};

class WayTimes {
 public:
  WayTimes() = default;
  /// `costs`: of before the run, for samples that weigh `middling`, at least 1.
  WayTimes(CostModel costs, std::int64_t middling);

  /// Takes in the time of a step that ran nothing twice; false: the share says nothing. What takes more than twice as
  /// long as was thought counts as twice: that was something else's doing.
  bool took(const TimedShare& share);

  /// How much longer the way takes than the cost model says, beside the others: 1 for one that was never run, and only
  /// what is beyond two standard errors of its steps' mean. Steps come and go by a tenth on many machines, and ways are
  /// often within some hundredths: to follow every mean would be to run what was lucky. What was just tried and looks
  /// faster counts by its mean for the first few steps, so that it is run again.
  double factor(const Plan& way) const;

  /// The ways of these candidates for the next step (see ways_of()), by what is known. Every 32nd of the first 128
  /// steps, every 64th later, is for learning: first come all candidates that are thought to take at most 15 % longer
  /// than the fastest, the one that was not run for longest in front.
  std::vector<Candidate> ways(std::span<const Candidate> candidates, std::int64_t share) const;
  bool learns_next() const;

  static constexpr std::int64_t kLearnEvery = 32, kSoon = 128;

 private:
  using Key = std::tuple<int, int, int, int, bool>;
  static Key key_of(const Plan& way);
  double expected(double x) const;
  void add(double x, double y);

  struct Learned {
    double recent = 0;      ///< of the speed's sums what is of this way
    double weight = 0;      ///< of the steps that it was run in, older ones and those among its like counting less
    double ratios = 0;      ///< sum of time by what was expected of any way, likewise
    std::int64_t last = 0;  ///< step in which it was run, counted here

    double mean_factor() const;
  };

  CostModel costs_;
  std::int64_t middling_ = 1;
  std::int64_t steps_ = 0;
  std::map<Key, Learned> learned_;
  double noise_ = 0;  ///< mean square of how far steps came from what was expected, as a part of it
  // The machine's speed: y, a way's time by what the cost model says of middling samples and by the way's factor, is
  // taken to be a + b x, x being what the share weighs beside such. Sums of least squares, older steps counting less.
  double n_ = 0, x_ = 0, xx_ = 0, y_ = 0, xy_ = 0;
};

}  // namespace plimsoll::memory
