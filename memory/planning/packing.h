#pragma once
// The order in which a rank works off its share, so that no micro-batch is much heavier than the others. Functions are
// pure; any thread.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "core/sample.h"

namespace plimsoll::memory {

/// What a sample counts when a share is balanced.
inline std::int64_t weight_of(const SampleShape& shape) { return shape.tokens + shape.patches + shape.states; }

/// The order in which to take the samples of a share with these weights (not negative; any unit), when it is cut into
/// consecutive micro-batches of `micro_batch` samples and a rest: result[i] is the place in the share of the i-th
/// sample to run. The heaviest samples are dealt out first, each to the lightest micro-batch that is not full (longest
/// processing time first: R. L. Graham, Bounds on Multiprocessing Timing Anomalies, 1969). Within a micro-batch samples
/// keep their order; a share whose heaviest micro-batch would not become lighter keeps it altogether. Equal on every
/// rank and in every replay: it depends on nothing but its arguments.
std::vector<std::size_t> balanced_order(std::span<const std::int64_t> weights, std::size_t micro_batch);

/// Places in a share, of the micro-batches into which it is cut by what they need rather than by their number. The
/// heaviest samples are placed first, each into one of those micro-batches that it still fits (best fit decreasing: D.
/// S. Johnson, Near-optimal bin packing algorithms, 1973); only where there is none it begins another, so that a sample
/// that fits nowhere is alone. `fits(places)`: whether these samples may run together. Of several that it fits it takes
/// the one with the largest (1 - diversity) x fullness + diversity x newness: weight with it, as a part of the heaviest
/// micro-batch's, and the part of the micro-batch's samples that are of another type than it. `types`: of the samples,
/// or empty. Within a micro-batch samples keep their order. Equal on every rank and in every replay.
std::vector<std::vector<std::size_t>> packed(std::span<const std::int64_t> weights, std::span<const std::uint8_t> types,
                                             double diversity,
                                             const std::function<bool(std::span<const std::size_t>)>& fits);

/// The largest sum of one value over each of those micro-batches; `order` is balanced_order's.
std::int64_t heaviest_micro_batch(std::span<const std::int64_t> values, std::span<const std::size_t> order,
                                  std::size_t micro_batch);

/// How many of the bytes that predictions leave to micro-batches that are packed() these are given. One that ran out of
/// memory although it was predicted to fit takes an eighth away from the next step on, and each further one an eighth
/// of what is left: so the same prediction never fails step after step. An eighth comes back after some steps without a
/// failure, twice as many after each: a wrong prediction costs ever fewer replays, and a neighbour's burst little for
/// long. A rank's own, and nothing of it is kept in a checkpoint: it only says how a share is cut. One thread.
class PackingRoom {
 public:
  /// At least 1.
  std::int64_t of(std::int64_t bytes) const;
  /// Once a step, replays included. `failed`: some micro-batch did not fit, against its prediction.
  void took(bool failed);

 private:
  int eighths_ = 0;         ///< that are away
  std::int64_t wait_ = 32;  ///< steps until one comes back, doubled before it counts
  std::int64_t well_ = 0;   ///< steps without a failure since the last change
};

}  // namespace plimsoll::memory
