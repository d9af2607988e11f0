#pragma once
// Bytes of a micro-batch, looked up: a dry run costs milliseconds, a look-up none, and shapes repeat.

#include <array>
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
  std::int64_t states = 0;    ///< rows of cached hidden states, likewise

  /// Takes a sample's weight in; does not count it among `samples`.
  MicroBatchShape& operator+=(const SampleShape& shape) {
    tokens += shape.tokens;
    patches += shape.patches;
    features += shape.features;
    states += shape.states;
    return *this;
  }
};

/// Whether a micro-batch of `inner` is no more in anything than one of `outer`, and so needs no more bytes.
bool holds(const MicroBatchShape& outer, const MicroBatchShape& inner);

/// Peak bytes of one forward and backward above what is live before it. Errs upwards: totals are rounded up by at most
/// 1/256, so that nearby shapes share one dry run. One thread.
///
/// A peak is the largest of sums of tensors, and each tensor's size is linear in samples, tokens, patches, features and
/// states: so the bytes are a convex function of the shape, that grows with each of the five. Of two shapes whose bytes
/// are known the line between them is an upper bound, and beyond them a lower one, for all shapes that the line's hold,
/// or that hold the line's, where they run the same towers. Where such bounds tell, no dry run is made.
///
/// Every shape that was dry-run stays known and is looked up by the logarithm of their number; bounds are drawn from a
/// few hundred of them. So a look-up takes no longer in the millionth step than in the hundredth.
class Predictor {
 public:
  /// `measure(shape, plan)` makes the dry run under the plan's recompute and offload. It must be as above.
  using Measure = std::function<std::int64_t(const MicroBatchShape&, const Plan&)>;
  /// `convex`: as said above. What a GPU's library takes as scratch is not, nor what its allocator reserves, which
  /// comes in segments: there only a shape that holds another, or is held by it, tells.
  explicit Predictor(Measure measure, bool convex = true) : measure_(std::move(measure)), convex_(convex) {}

  /// Of the plan only recompute and offload count: the shape says the rest.
  std::int64_t bytes(const MicroBatchShape& shape, const Plan& plan);
  /// Takes over what bytes(shape, plan) gave in another process, of the same model on the same kind of device.
  void take_over(const MicroBatchShape& shape, const Plan& plan, std::int64_t bytes);
  /// bytes(shape, plan) <= limit, without a dry run where known ones of other shapes tell.
  bool fits(const MicroBatchShape& shape, const Plan& plan, std::int64_t limit);
  /// The same for a choice that may be left: false where only a dry run would tell and no time for one is left.
  bool fits_in_time(const MicroBatchShape& shape, const Plan& plan, std::int64_t limit);
  /// Without a dry run; nothing where only that would tell.
  std::optional<bool> known_to_fit(const MicroBatchShape& shape, const Plan& plan, std::int64_t limit) const;
  /// So much more time for dry runs that nothing turns on; every dry run takes of it. Before the first grant there is
  /// no limit.
  void grant(std::int64_t microseconds);
  /// What an attempt at the micro-batch is to be compared with: bytes(shape, plan) where they are known; else an upper
  /// bound that is within `room` and at most a quarter above a lower one, in fifteen of sixteen such attempts, once
  /// the first few of the plan's kind are made; else those of a dry run. So a run pays for few dry runs and goes on
  /// comparing some attempts exactly. Where time is granted, any upper bound within `room` serves, and all of them when
  /// none is left.
  std::int64_t attempt_bytes(const MicroBatchShape& shape, const Plan& plan, std::int64_t room);
  /// bytes(shape, plan) where that is known without a dry run.
  std::optional<std::int64_t> known_bytes(const MicroBatchShape& shape, const Plan& plan) const;
  std::size_t dry_runs() const { return dry_runs_; }

 private:
  /// Recompute of the three towers, and offload.
  using Work = std::tuple<int, int, int, bool>;
  /// A shape's members, in their order.
  using Key = std::array<std::int64_t, 5>;
  struct Known {
    MicroBatchShape shape;
    std::int64_t bytes = 0;
  };
  /// What is known of one kind of work.
  struct Kind {
    std::map<Key, std::int64_t> measured;  ///< bytes of each shape that was dry-run
    /// Those of them that bound others: the first, which plans were judged on, and the newest.
    std::vector<Known> bounding;
    std::size_t bounded = 0, exact = 0;  ///< attempts that a bound would have served, and those of them made exactly
  };
  static Work work_of(const Plan& plan);
  Kind& kind_of(const Plan& plan);
  static std::optional<std::int64_t> exact_bytes(const Kind& kind, const MicroBatchShape& rounded);
  std::int64_t look_up(const MicroBatchShape& rounded, const Plan& plan);
  static void keep(Kind& kind, const MicroBatchShape& rounded, std::int64_t bytes);
  /// Whether the shape's bytes are at most `limit`; nothing where no shape that is known tells.
  std::optional<bool> told(const Kind& kind, const MicroBatchShape& rounded, std::int64_t limit) const;
  /// The nearest bounds. An upper one that is above `most` may be left out.
  std::optional<std::int64_t> upper_bound(const Kind& kind, const MicroBatchShape& rounded, std::int64_t most) const;
  std::optional<std::int64_t> lower_bound(const Kind& kind, const MicroBatchShape& rounded) const;
  /// Shows bounds by lines to `see` until it says that this is enough: true then. Upper ones begin at a shape of at
  /// most `most` bytes.
  using See = std::function<bool(std::int64_t)>;
  bool any_upper_line(const Kind& kind, const MicroBatchShape& rounded, std::int64_t most, const See& see) const;
  bool any_lower_line(const Kind& kind, const MicroBatchShape& rounded, const See& see) const;

  Measure measure_;
  bool convex_;
  std::map<Work, Kind> kinds_;
  std::size_t dry_runs_ = 0;
  bool time_is_left() const { return !granted_ || time_ > 0; }
  bool granted_ = false;
  std::int64_t time_ = 0;  ///< microseconds; below 0 where the last dry run took more than was left
};

/// `value` rounded up to a multiple of `unit`, then to one of about 256 steps per power of two.
std::int64_t round_up_to_class(std::int64_t value, std::int64_t unit);

}  // namespace plimsoll::memory
