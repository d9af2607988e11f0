#include "memory/predictor.h"

#include <algorithm>
#include <bit>

namespace plimsoll::memory {
namespace {

constexpr std::int64_t kClasses = 256;  // per power of two: what is rounded up stays under half a per cent

}  // namespace

std::int64_t round_up_to_class(std::int64_t value, std::int64_t unit) {
  if (value <= 0) return 0;
  const auto power = std::bit_floor(static_cast<std::uint64_t>(value));
  const std::int64_t step = std::max<std::int64_t>(unit, static_cast<std::int64_t>(power) / kClasses / unit * unit);
  return (value + step - 1) / step * step;
}

std::int64_t Predictor::bytes(const MicroBatchShape& shape, const Plan& plan) {
  // Patches come in groups of four: one token each after the merger.
  const MicroBatchShape rounded{shape.samples, round_up_to_class(shape.tokens, 1), round_up_to_class(shape.patches, 4)};
  const Key key{rounded.samples,       rounded.tokens,        rounded.patches, plan.recompute_blocks,
                plan.recompute_vision, plan.recompute_expert, plan.offload};
  if (const auto found = known_.find(key); found != known_.end()) return found->second;
  return known_[key] = measure_(rounded, plan);
}

}  // namespace plimsoll::memory
