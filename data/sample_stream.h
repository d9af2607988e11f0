#pragma once
// The order in which samples are seen: an endless stream that runs across epoch ends, so that every step has exactly B
// samples.

#include <cstdint>
#include <map>
#include <vector>

namespace plimsoll::data {

/// Positions [begin, end) of the stream.
struct StreamRange {
  std::uint64_t begin = 0, end = 0;
};

/// A seeded permutation of the samples per epoch, one after another. Its only state is a position, so resuming needs
/// nothing more. One thread.
class SampleStream {
 public:
  /// `samples` must not be empty.
  SampleStream(std::vector<std::int64_t> samples, std::uint64_t seed);

  std::int64_t epoch_length() const { return static_cast<std::int64_t>(samples_.size()); }
  /// The sample at `position`.
  std::int64_t at(std::uint64_t position);

 private:
  const std::vector<std::int64_t>& epoch(std::uint64_t number);

  std::vector<std::int64_t> samples_;
  std::uint64_t seed_;
  std::map<std::uint64_t, std::vector<std::int64_t>> epochs_;  // the last two: a step may reach across
};

/// Step `step` (from 1) draws positions [(step - 1) B, step B); this rank's part of them. Shares are contiguous, in
/// rank order, and differ by at most one sample.
StreamRange share_of_step(std::int64_t step, std::int64_t effective_batch, int rank, int world);

/// How often one of `samples` samples can be drawn within a step at most: once in each epoch that a step reaches into.
std::int64_t most_draws_in_a_step(std::int64_t samples, std::int64_t effective_batch);

}  // namespace plimsoll::data
