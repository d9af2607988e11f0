#include "memory/predictor.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <optional>

namespace plimsoll::memory {
namespace {

constexpr std::int64_t kClasses = 256;     // per power of two: what is rounded up stays under half a per cent
constexpr std::int64_t kSlack = 4096;      // bytes: what allocators round, or do not count, bends the lines that little
constexpr std::size_t kMostKnown = 64;     // shapes of a way that lines are drawn between
constexpr double kFurthest = 4;            // times the distance of two shapes that their line is trusted for
constexpr std::int64_t kNear = 4;          // bounds of an attempt may be apart by this part
constexpr std::size_t kFirstAttempts = 4;  // are all compared exactly
constexpr std::size_t kAttemptsPerRun = 16;  // then one of so many

// Patches come in groups of four: one token each after the merger.
MicroBatchShape rounded_up(const MicroBatchShape& shape) {
  return {shape.samples, round_up_to_class(shape.tokens, 1), round_up_to_class(shape.patches, 4),
          round_up_to_class(shape.features, 1), round_up_to_class(shape.states, 1)};
}

std::array<std::int64_t, 5> values_of(const MicroBatchShape& shape) {
  return {shape.samples, shape.tokens, shape.patches, shape.features, shape.states};
}

// How far one has to go from `a` to `b`, which holds `wanted`, until a shape holds it too: 0 at `a`, 1 at `b`.
double reaches(const MicroBatchShape& a, const MicroBatchShape& b, const MicroBatchShape& wanted) {
  const auto from = values_of(a), to = values_of(b), goal = values_of(wanted);
  double part = 0;
  for (std::size_t i = 0; i < goal.size(); ++i)
    if (goal[i] > from[i])
      part = std::max(part, static_cast<double>(goal[i] - from[i]) / static_cast<double>(to[i] - from[i]));
  return part;
}

// How far one can go while `holder` holds the shape; 0 where it does not hold even `a`.
double stays_within(const MicroBatchShape& a, const MicroBatchShape& b, const MicroBatchShape& holder) {
  const auto from = values_of(a), to = values_of(b), most = values_of(holder);
  double part = std::numeric_limits<double>::infinity();
  for (std::size_t i = 0; i < most.size(); ++i) {
    if (most[i] < from[i]) return 0;
    if (to[i] > from[i])
      part = std::min(part, static_cast<double>(most[i] - from[i]) / static_cast<double>(to[i] - from[i]));
  }
  return part;
}

bool same(const MicroBatchShape& a, const MicroBatchShape& b) { return holds(a, b) && holds(b, a); }

// Whether the same towers are run: what one takes whatever the shape would be missing from a line, or be taken for
// slope.
bool same_towers(const MicroBatchShape& a, const MicroBatchShape& b) {
  return (a.patches > 0) == (b.patches > 0) && (a.states > 0) == (b.states > 0);
}

}  // namespace

bool holds(const MicroBatchShape& outer, const MicroBatchShape& inner) {
  return outer.samples >= inner.samples && outer.tokens >= inner.tokens && outer.patches >= inner.patches &&
         outer.features >= inner.features && outer.states >= inner.states;
}

std::int64_t round_up_to_class(std::int64_t value, std::int64_t unit) {
  if (value <= 0) return 0;
  const auto power = std::bit_floor(static_cast<std::uint64_t>(value));
  const std::int64_t step = std::max<std::int64_t>(unit, static_cast<std::int64_t>(power) / kClasses / unit * unit);
  return (value + step - 1) / step * step;
}

Predictor::Work Predictor::work_of(const Plan& plan) {
  return {plan.recompute_blocks, plan.recompute_vision, plan.recompute_expert, plan.offload};
}

Predictor::Kind& Predictor::kind_of(const Plan& plan) { return kinds_[work_of(plan)]; }

std::optional<std::int64_t> Predictor::known_bytes(const MicroBatchShape& shape, const Plan& plan) const {
  const auto kind = kinds_.find(work_of(plan));
  return kind == kinds_.end() ? std::nullopt : exact_bytes(kind->second, rounded_up(shape));
}

std::optional<std::int64_t> Predictor::exact_bytes(const Kind& kind, const MicroBatchShape& rounded) {
  const auto found =
      std::find_if(kind.known.begin(), kind.known.end(), [&](const Known& one) { return same(one.shape, rounded); });
  return found == kind.known.end() ? std::nullopt : std::optional(found->bytes);
}

std::int64_t Predictor::look_up(const MicroBatchShape& rounded, const Plan& plan) {
  Kind& kind = kind_of(plan);
  if (const auto bytes = exact_bytes(kind, rounded)) return *bytes;
  ++dry_runs_;
  return kind.known.emplace_back(Known{rounded, measure_(rounded, plan)}).bytes;
}

std::int64_t Predictor::bytes(const MicroBatchShape& shape, const Plan& plan) {
  return look_up(rounded_up(shape), plan);
}

namespace {

/// Lines are looked for among some: the first, which plans were judged on, and the newest.
bool serves_lines(std::size_t place, std::size_t all) {
  return place < kMostKnown / 2 || place + kMostKnown / 2 >= all;
}

}  // namespace

std::optional<std::int64_t> Predictor::upper_bound(const Kind& kind, const MicroBatchShape& rounded) const {
  std::optional<std::int64_t> least;
  const auto& all = kind.known;
  for (std::size_t o = 0; o < all.size(); ++o) {
    const Known& outer = all[o];
    if (!holds(outer.shape, rounded)) continue;
    least = std::min(least.value_or(outer.bytes), outer.bytes);
    for (std::size_t i = 0; convex_ && i < all.size() && serves_lines(o, all.size()); ++i) {
      const Known& inner = all[i];
      if (inner.bytes >= outer.bytes || !serves_lines(i, all.size())) continue;
      if (!same_towers(inner.shape, rounded)) continue;
      const double part = reaches(inner.shape, outer.shape, rounded);
      const double between = static_cast<double>(outer.bytes - inner.bytes) * part;
      least = std::min(*least, inner.bytes + static_cast<std::int64_t>(std::ceil(between)) + kSlack);
    }
  }
  return least;
}

std::optional<std::int64_t> Predictor::lower_bound(const Kind& kind, const MicroBatchShape& rounded) const {
  std::optional<std::int64_t> most;
  const auto& all = kind.known;
  for (std::size_t o = 0; o < all.size(); ++o) {
    const Known& outer = all[o];
    if (!holds(rounded, outer.shape)) continue;
    most = std::max(most.value_or(outer.bytes), outer.bytes);
    for (std::size_t i = 0; convex_ && i < all.size() && serves_lines(o, all.size()); ++i) {
      const Known& inner = all[i];
      if (inner.bytes >= outer.bytes || !serves_lines(i, all.size()) || !holds(outer.shape, inner.shape)) continue;
      if (!same_towers(inner.shape, outer.shape)) continue;
      const double part = stays_within(inner.shape, outer.shape, rounded);
      if (part < 1 || part > kFurthest) continue;
      const double beyond = static_cast<double>(outer.bytes - inner.bytes) * part;
      const auto slack = static_cast<std::int64_t>(std::ceil(part)) * kSlack;
      most = std::max(*most, inner.bytes + static_cast<std::int64_t>(std::floor(beyond)) - slack);
    }
  }
  return most;
}

bool Predictor::fits(const MicroBatchShape& shape, const Plan& plan, std::int64_t limit) {
  const MicroBatchShape rounded = rounded_up(shape);
  const Kind& kind = kind_of(plan);
  if (const auto exact = exact_bytes(kind, rounded)) return *exact <= limit;
  if (const auto most = upper_bound(kind, rounded); most && *most <= limit) return true;
  if (const auto least = lower_bound(kind, rounded); least && *least > limit) return false;
  return look_up(rounded, plan) <= limit;
}

std::int64_t Predictor::attempt_bytes(const MicroBatchShape& shape, const Plan& plan, std::int64_t room) {
  const MicroBatchShape rounded = rounded_up(shape);
  Kind& kind = kind_of(plan);
  if (const auto exact = exact_bytes(kind, rounded)) return *exact;
  const auto most = upper_bound(kind, rounded), least = lower_bound(kind, rounded);
  if (!most || !least || *most > room || *most - *least > *least / kNear) return look_up(rounded, plan);
  ++kind.bounded;
  if (kind.exact >= kFirstAttempts + kind.bounded / kAttemptsPerRun) return *most;
  ++kind.exact;
  return look_up(rounded, plan);
}

}  // namespace plimsoll::memory
