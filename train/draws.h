#pragma once
// The micro-batches that a run will draw: the stream of samples is known before step 1, and so is how each share will
// be cut.

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "core/sample.h"
#include "data/sample_source.h"
#include "data/sample_stream.h"
#include "memory/predictor.h"

namespace plimsoll::train {

/// What decides who draws what.
struct DrawOptions {
  std::shared_ptr<const data::StreamOrder> order;  ///< of the sample stream
  std::int64_t steps = 1;                          ///< of the whole run
  std::int64_t effective_batch = 1;                ///< samples a step, over all ranks
  int world = 1;
  int resolution = 0;  ///< of data::SampleSource::shape_at
  bool dealt = false;  ///< shares are not contiguous (cache/live_samples.h): they are not looked through
};

/// Shapes of all samples in the order in which a run draws them. The same on every rank. One thread.
class Draws {
 public:
  /// Beyond this many draws they are not looked through.
  static constexpr std::int64_t kMost = std::int64_t{1} << 20;

  /// `heaviest`: of the training samples at that resolution, heaviest first; they stand for every micro-batch of a run
  /// of more than kMost draws, or of dealt shares.
  Draws(const data::SampleSource& source, const DrawOptions& options, std::vector<SampleShape> heaviest);

  /// At least what any micro-batch of `micro_batch` samples weighs that any rank will draw, in the order of
  /// memory::balanced_order: the most tokens and the most patches, which need not be of the same one.
  /// Looked up after the first time.
  memory::MicroBatchShape heaviest(int micro_batch);

  /// Steps that are looked at, spread over the run; none of a run of more than kMost draws.
  std::size_t looked() const;
  static constexpr std::int64_t kLooked = 32;
  /// At least what any micro-batch of the `looked`-th of them weighs on any rank: all ranks wait for the fullest.
  const memory::MicroBatchShape& heaviest(std::size_t looked, int micro_batch);

 private:
  std::int64_t share() const { return (options_.effective_batch + options_.world - 1) / options_.world; }
  memory::MicroBatchShape heaviest_of_run(int micro_batch);
  const std::vector<memory::MicroBatchShape>& of_steps(int micro_batch);
  memory::MicroBatchShape heaviest_of(std::int64_t step, std::size_t micro_batch) const;

  DrawOptions options_;
  std::vector<SampleShape> heaviest_;
  /// By position in the stream; empty for a longer run.
  std::vector<std::int64_t> weights_, tokens_, patches_;
  std::map<int, std::vector<memory::MicroBatchShape>> known_;  ///< by micro-batch, then step
  std::map<int, memory::MicroBatchShape> heaviest_of_run_;     ///< by micro-batch
};

}  // namespace plimsoll::train
