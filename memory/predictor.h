#pragma once
// Bytes of a micro-batch, looked up: a dry run costs milliseconds, a look-up none, and shapes repeat.

#include <cstdint>
#include <functional>
#include <map>
#include <tuple>

namespace plimsoll::memory {

/// All that the activations of a micro-batch depend on.
struct MicroBatchShape {
  std::int64_t samples = 0;
  std::int64_t tokens = 0;   ///< over all samples
  std::int64_t patches = 0;  ///< over all samples
};

/// Peak bytes of one forward and backward above what is live before it. Errs upwards: totals are rounded up by at most
/// a sixteenth, so that nearby shapes share one dry run. One thread.
class Predictor {
 public:
  /// `measure(shape, recompute_blocks)` makes the dry run. It must not decrease when tokens or patches grow.
  using Measure = std::function<std::int64_t(const MicroBatchShape&, int)>;
  explicit Predictor(Measure measure) : measure_(std::move(measure)) {}

  std::int64_t bytes(const MicroBatchShape& shape, int recompute_blocks);
  std::size_t dry_runs() const { return known_.size(); }

 private:
  Measure measure_;
  std::map<std::tuple<std::int64_t, std::int64_t, std::int64_t, int>, std::int64_t> known_;
};

/// `value` rounded up to a multiple of `unit`, then to one of about sixteen steps per power of two.
std::int64_t round_up_to_class(std::int64_t value, std::int64_t unit);

}  // namespace plimsoll::memory
