#pragma once
// Forward and backward timed before a run begins, on all ranks at once, since a step waits for the slowest.

#include <cstdint>
#include <span>

#include "train/session.h"

namespace plimsoll::train {

inline constexpr std::int64_t kMostMicroseconds = 20'000'000;  ///< what any timing before a run may take
/// And how many times as long the run must be, but that half a second is taken for the shortest too.
inline constexpr std::int64_t kLeastRun = 30;

/// The sample that is timed: one whose weight half of the training samples have at most.
std::int64_t middling(const data::SampleSource& source);

/// Times one plan after the other. Gradients are thrown away and nothing is updated. All functions are collective: the
/// same calls on every rank, the same answers. Needs the session's model, buffers and predictor. One thread.
class Stopwatch {
 public:
  /// `sample`: which one is timed (middling()), loaded at this resolution. For no longer than `allowance` microseconds,
  /// where its users ask whether time is up.
  Stopwatch(Session& session, std::int64_t sample, std::int64_t resolution, std::int64_t allowance);

  /// From here on no longer than timing_allowance(), by what one micro-batch under `plan` takes. Where that does not
  /// fit some rank nothing changes.
  void keep_to_run(const memory::Plan& plan);

  /// Microseconds of a micro-batch of the sample on the slowest rank. 0 when it does not fit some rank.
  std::int64_t time(const memory::Plan& plan);

  bool time_is_up() const { return spent_ > allowance_; }

 private:
  std::int64_t run(std::span<const model::StreamSample> samples, const memory::Plan& plan);

  Session& session_;
  std::int64_t allowance_;
  Sample sample_;
  model::PackingRules rules_;
  std::int64_t spent_ = 0;  ///< microseconds; the same on every rank
};

}  // namespace plimsoll::train
