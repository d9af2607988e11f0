#pragma once
// Bytes of a micro-batch, looked up: a dry run costs milliseconds, a look-up none, and shapes repeat.

#include <cstdint>
#include <functional>
#include <map>
#include <tuple>
#include <vector>

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

/// Whether a micro-batch of `inner` is no more in anything than one of `outer`, and so needs no more bytes.
bool holds(const MicroBatchShape& outer, const MicroBatchShape& inner);

/// Peak bytes of one forward and backward above what is live before it. Errs upwards: totals are rounded up by at most
/// 1/256, so that nearby shapes share one dry run. One thread.
class Predictor {
 public:
  /// `measure(shape, plan)` makes the dry run under the plan's recompute and offload. It must not decrease when
  /// samples, tokens or patches grow.
  using Measure = std::function<std::int64_t(const MicroBatchShape&, const Plan&)>;
  explicit Predictor(Measure measure) : measure_(std::move(measure)) {}

  /// Of the plan only recompute and offload count: the shape says the rest.
  std::int64_t bytes(const MicroBatchShape& shape, const Plan& plan);
  /// bytes(shape, plan) <= limit, without a dry run where one of a larger or of a smaller shape tells.
  bool fits(const MicroBatchShape& shape, const Plan& plan, std::int64_t limit);
  /// What an attempt at the micro-batch is to be compared with: bytes(shape, plan) where they are known; else those of
  /// an attempt before it whose shape holds this one and is at most 1/8 larger, as long as they stay within `room`, but
  /// for every eighth time; else those of a dry run. So a run pays for dry runs while its shapes are new, compares
  /// exactly whatever is larger than what it has compared before, and keeps comparing some of the rest.
  std::int64_t attempt_bytes(const MicroBatchShape& shape, const Plan& plan, std::int64_t room);
  std::size_t dry_runs() const { return dry_runs_; }

 private:
  /// Recompute of the three towers, and offload.
  using Work = std::tuple<int, int, int, bool>;
  struct Known {
    MicroBatchShape shape;
    std::int64_t bytes = 0;
    bool attempted = false;
  };
  std::vector<Known>& known(const Plan& plan);
  Known& look_up(const MicroBatchShape& rounded, const Plan& plan);

  Measure measure_;
  std::map<Work, std::vector<Known>> known_;
  std::size_t dry_runs_ = 0, stand_ins_ = 0;
};

/// `value` rounded up to a multiple of `unit`, then to one of about 256 steps per power of two.
std::int64_t round_up_to_class(std::int64_t value, std::int64_t unit);

}  // namespace plimsoll::memory
