#include "memory/predictor.h"

#include <algorithm>
#include <bit>
#include <optional>

namespace plimsoll::memory {
namespace {

constexpr std::int64_t kClasses = 256;  // per power of two: what is rounded up stays under half a per cent
constexpr std::int64_t kNear = 8;       // an attempt may be compared with one that is larger by this part
constexpr std::size_t kStandIns = 8;    // of that many comparisons with a larger one, one is made exactly instead

// Patches come in groups of four: one token each after the merger.
MicroBatchShape rounded_up(const MicroBatchShape& shape) {
  return {shape.samples, round_up_to_class(shape.tokens, 1), round_up_to_class(shape.patches, 4)};
}

bool near(std::int64_t large, std::int64_t small) { return large - small <= small / kNear; }

bool near(const MicroBatchShape& outer, const MicroBatchShape& inner) {
  return near(outer.samples, inner.samples) && near(outer.tokens, inner.tokens) && near(outer.patches, inner.patches);
}

bool same(const MicroBatchShape& a, const MicroBatchShape& b) { return holds(a, b) && holds(b, a); }

}  // namespace

bool holds(const MicroBatchShape& outer, const MicroBatchShape& inner) {
  return outer.samples >= inner.samples && outer.tokens >= inner.tokens && outer.patches >= inner.patches;
}

std::int64_t round_up_to_class(std::int64_t value, std::int64_t unit) {
  if (value <= 0) return 0;
  const auto power = std::bit_floor(static_cast<std::uint64_t>(value));
  const std::int64_t step = std::max<std::int64_t>(unit, static_cast<std::int64_t>(power) / kClasses / unit * unit);
  return (value + step - 1) / step * step;
}

std::vector<Predictor::Known>& Predictor::known(const Plan& plan) {
  return known_[{plan.recompute_blocks, plan.recompute_vision, plan.recompute_expert, plan.offload}];
}

Predictor::Known& Predictor::look_up(const MicroBatchShape& rounded, const Plan& plan) {
  auto& all = known(plan);
  const auto found = std::find_if(all.begin(), all.end(), [&](const Known& one) { return same(one.shape, rounded); });
  if (found != all.end()) return *found;
  ++dry_runs_;
  return all.emplace_back(Known{rounded, measure_(rounded, plan), false});
}

std::int64_t Predictor::bytes(const MicroBatchShape& shape, const Plan& plan) {
  return look_up(rounded_up(shape), plan).bytes;
}

bool Predictor::fits(const MicroBatchShape& shape, const Plan& plan, std::int64_t limit) {
  const MicroBatchShape rounded = rounded_up(shape);
  for (const Known& one : known(plan)) {
    if (one.bytes <= limit && holds(one.shape, rounded)) return true;
    if (one.bytes > limit && holds(rounded, one.shape)) return false;
  }
  return look_up(rounded, plan).bytes <= limit;
}

std::int64_t Predictor::attempt_bytes(const MicroBatchShape& shape, const Plan& plan, std::int64_t room) {
  const MicroBatchShape rounded = rounded_up(shape);
  std::optional<std::int64_t> least;
  for (Known& one : known(plan)) {
    if (same(one.shape, rounded)) {
      one.attempted = true;
      return one.bytes;
    }
    if (one.attempted && one.bytes <= room && holds(one.shape, rounded) && near(one.shape, rounded))
      least = std::min(least.value_or(one.bytes), one.bytes);
  }
  if (least && ++stand_ins_ % kStandIns != 0) return *least;
  Known& exact = look_up(rounded, plan);
  exact.attempted = true;
  return exact.bytes;
}

}  // namespace plimsoll::memory
