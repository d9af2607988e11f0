#pragma once
// Bytes of a micro-batch, looked up: a dry run costs milliseconds, a look-up none, and shapes repeat.

#include <cstdint>
#include <functional>
#include <map>
#include <tuple>

#include "core/sample.h"
#include "memory/planning/plan.h"

namespace plimsoll::memory {

/// All that the activations of a micro-batch depend on.
struct MicroBatchShape {
  std::int64_t samples = 0;
  std::int64_t tokens = 0;   ///< over all samples
  std::int64_t patches = 0;  ///< over all samples

  /// Takes a sample's weight in; does not count it among `samples`.
  MicroBatchShape& operator+=(const SampleShape& shape) {
    tokens += shape.tokens;
    patches += shape.patches;
    return *this;
  }
};

/// Peak bytes of one forward and backward above what is live before it. Errs upwards: totals are rounded up by at most
/// 1/256, so that nearby shapes share one dry run. One thread.
class Predictor {
 public:
  /// `measure(shape, plan)` makes the dry run under the plan's recompute and offload. It must not decrease when tokens
  /// or patches grow.
  using Measure = std::function<std::int64_t(const MicroBatchShape&, const Plan&)>;
  explicit Predictor(Measure measure) : measure_(std::move(measure)) {}

  /// Of the plan only recompute and offload count: the shape says the rest.
  std::int64_t bytes(const MicroBatchShape& shape, const Plan& plan);
  std::size_t dry_runs() const { return known_.size(); }

 private:
  using Key = std::tuple<std::int64_t, std::int64_t, std::int64_t, int, int, int, bool>;
  Measure measure_;
  std::map<Key, std::int64_t> known_;
};

/// `value` rounded up to a multiple of `unit`, then to one of about 256 steps per power of two.
std::int64_t round_up_to_class(std::int64_t value, std::int64_t unit);

}  // namespace plimsoll::memory
