#pragma once
// Forward and backward timed before a run begins, on all ranks at once, since a step waits for the slowest.

#include <cstdint>
#include <span>

#include "train/session.h"

namespace plimsoll::train {

inline constexpr std::int64_t kMostMicroseconds = 20'000'000;  ///< what any timing before a run may take

/// The sample that is timed: one whose weight half of the training samples have at most.
std::int64_t middling(const data::SampleSource& source);

/// Times one plan after the other. Gradients are thrown away and nothing is updated. All functions are collective: the
/// same calls on every rank, the same answers. Needs the session's model, buffers and predictor. One thread.
class Stopwatch {
 public:
  /// `sample`: which one is timed (middling()), loaded at this resolution.
  Stopwatch(Session& session, std::int64_t sample, std::int64_t resolution);

  /// Microseconds of a micro-batch of the sample on the slowest rank. 0 when it does not fit some rank.
  std::int64_t time(const memory::Plan& plan);

  /// Of all so far, the same on every rank.
  std::int64_t spent() const { return spent_; }

 private:
  std::int64_t run(std::span<const model::StreamSample> samples, const memory::Plan& plan);

  Session& session_;
  Sample sample_;
  model::PackingRules rules_;
  std::int64_t spent_ = 0;  ///< microseconds
};

}  // namespace plimsoll::train
