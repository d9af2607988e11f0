#pragma once
// Bytes of a micro-batch, looked up: a dry run costs milliseconds, a look-up none, and shapes repeat.

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <tuple>
#include <vector>

#include "core/sample.h"
#include "memory/planning/plan.h"

namespace plimsoll::memory {

/// All that the activations of a micro-batch depend on.
struct MicroBatchShape {
  std::int64_t samples = 0;
  std::int64_t tokens = 0;    ///< over all samples
  std::int64_t patches = 0;   ///< over all samples
  std::int64_t features = 0;  ///< rows of cached image features, likewise

  /// Takes a sample's weight in; does not count it among `samples`.
  MicroBatchShape& operator+=(const SampleShape& shape) {
    tokens += shape.tokens;
    patches += shape.patches;
    features += shape.features;
    return *this;
  }
};

/// Whether a micro-batch of `inner` is no more in anything than one of `outer`, and so needs no more bytes.
bool holds(const MicroBatchShape& outer, const MicroBatchShape& inner);

/// Peak bytes of one forward and backward above what is live before it. Errs upwards: totals are rounded up by at most
/// 1/256, so that nearby shapes share one dry run. One thread.
///
/// A peak is the largest of sums of tensors, and each tensor's size is linear in samples, tokens, patches and features:
/// so the bytes are a convex function of the shape, that grows with each of the four. Of two shapes whose bytes are
/// known the line between them is an upper bound, and beyond them a lower one, for all shapes that the line's hold, or
/// that hold the line's. Where such bounds tell, no dry run is made.
class Predictor {
 public:
  /// `measure(shape, plan)` makes the dry run under the plan's recompute and offload. It must be as above.
  using Measure = std::function<std::int64_t(const MicroBatchShape&, const Plan&)>;
  explicit Predictor(Measure measure) : measure_(std::move(measure)) {}

  /// Of the plan only recompute and offload count: the shape says the rest.
  std::int64_t bytes(const MicroBatchShape& shape, const Plan& plan);
  /// bytes(shape, plan) <= limit, without a dry run where known ones of other shapes tell.
  bool fits(const MicroBatchShape& shape, const Plan& plan, std::int64_t limit);
  /// What an attempt at the micro-batch is to be compared with: bytes(shape, plan) where they are known; else an upper
  /// bound, as long as it stays within `room`, in fifteen of sixteen attempts once the first few are made; else those
  /// of a dry run. So a run pays for few dry runs and goes on comparing some attempts exactly.
  std::int64_t attempt_bytes(const MicroBatchShape& shape, const Plan& plan, std::int64_t room);
  std::size_t dry_runs() const { return dry_runs_; }

 private:
  /// Recompute of the three towers, and offload.
  using Work = std::tuple<int, int, int, bool>;
  struct Known {
    MicroBatchShape shape;
    std::int64_t bytes = 0;
  };
  std::vector<Known>& known(const Plan& plan);
  std::int64_t look_up(const MicroBatchShape& rounded, const Plan& plan);
  /// Nothing where no shape that is known tells.
  std::optional<std::int64_t> upper_bound(const MicroBatchShape& rounded, const Plan& plan);
  std::optional<std::int64_t> lower_bound(const MicroBatchShape& rounded, const Plan& plan);

  Measure measure_;
  std::map<Work, std::vector<Known>> known_;
  std::size_t dry_runs_ = 0, attempts_ = 0, attempted_exactly_ = 0;
};

/// `value` rounded up to a multiple of `unit`, then to one of about 256 steps per power of two.
std::int64_t round_up_to_class(std::int64_t value, std::int64_t unit);

}  // namespace plimsoll::memory
