#include "memory/predictor.h"

#include <algorithm>
#include <array>
#include <bit>
#include <chrono>
#include <cmath>
#include <limits>
#include <optional>

namespace plimsoll::memory {
namespace {

constexpr std::int64_t kClasses = 256;     // per power of two: what is rounded up stays under half a per cent
constexpr std::int64_t kSlack = 4096;      // bytes: what allocators round, or do not count, bends the lines that little
constexpr std::size_t kMostKnown = 64;     // shapes of a way that lines are drawn between
constexpr std::size_t kMostBounds = 256;   // that are compared with another as they are
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
  const auto found = kind.measured.find(values_of(rounded));
  return found == kind.measured.end() ? std::nullopt : std::optional(found->second);
}

std::int64_t Predictor::look_up(const MicroBatchShape& rounded, const Plan& plan) {
  Kind& kind = kind_of(plan);
  if (const auto bytes = exact_bytes(kind, rounded)) return *bytes;
  ++dry_runs_;
  const auto start = std::chrono::steady_clock::now();
  const std::int64_t bytes = measure_(rounded, plan);
  const auto took = std::chrono::steady_clock::now() - start;
  time_ -= std::chrono::duration_cast<std::chrono::microseconds>(took).count();
  keep(kind, rounded, bytes);
  return bytes;
}

void Predictor::keep(Kind& kind, const MicroBatchShape& rounded, std::int64_t bytes) {
  if (!kind.measured.emplace(values_of(rounded), bytes).second) return;
  // The oldest gives way, but for the first.
  if (kind.bounding.size() == kMostBounds) kind.bounding.erase(kind.bounding.begin() + kMostKnown / 2);
  kind.bounding.push_back({rounded, bytes});
}

void Predictor::take_over(const MicroBatchShape& shape, const Plan& plan, std::int64_t bytes) {
  keep(kind_of(plan), rounded_up(shape), bytes);
}

std::int64_t Predictor::bytes(const MicroBatchShape& shape, const Plan& plan) {
  return look_up(rounded_up(shape), plan);
}

namespace {

/// Lines are looked for among some of `all`: the first half of kMostKnown, and the newest. The place after this one.
std::size_t next_for_lines(std::size_t place, std::size_t all) {
  constexpr std::size_t kHalf = kMostKnown / 2;
  return place + 1 == kHalf && all > kMostKnown ? all - kHalf : place + 1;
}

}  // namespace

bool Predictor::any_upper_line(const Kind& kind, const MicroBatchShape& rounded, std::int64_t most,
                               const See& see) const {
  const auto& all = kind.bounding;
  for (std::size_t o = 0; convex_ && o < all.size(); o = next_for_lines(o, all.size())) {
    const Known& outer = all[o];
    if (!holds(outer.shape, rounded)) continue;
    for (std::size_t i = 0; i < all.size(); i = next_for_lines(i, all.size())) {
      const Known& inner = all[i];
      if (inner.bytes >= outer.bytes || inner.bytes > most) continue;
      if (!same_towers(inner.shape, rounded)) continue;
      const double part = reaches(inner.shape, outer.shape, rounded);
      const double between = static_cast<double>(outer.bytes - inner.bytes) * part;
      if (see(inner.bytes + static_cast<std::int64_t>(std::ceil(between)) + kSlack)) return true;
    }
  }
  return false;
}

bool Predictor::any_lower_line(const Kind& kind, const MicroBatchShape& rounded, const See& see) const {
  const auto& all = kind.bounding;
  for (std::size_t o = 0; convex_ && o < all.size(); o = next_for_lines(o, all.size())) {
    const Known& outer = all[o];
    if (!holds(rounded, outer.shape)) continue;
    for (std::size_t i = 0; i < all.size(); i = next_for_lines(i, all.size())) {
      const Known& inner = all[i];
      if (inner.bytes >= outer.bytes || !holds(outer.shape, inner.shape)) continue;
      if (!same_towers(inner.shape, outer.shape)) continue;
      const double part = stays_within(inner.shape, outer.shape, rounded);
      if (part < 1 || part > kFurthest) continue;
      const double beyond = static_cast<double>(outer.bytes - inner.bytes) * part;
      const auto slack = static_cast<std::int64_t>(std::ceil(part)) * kSlack;
      if (see(inner.bytes + static_cast<std::int64_t>(std::floor(beyond)) - slack)) return true;
    }
  }
  return false;
}

std::optional<std::int64_t> Predictor::upper_bound(const Kind& kind, const MicroBatchShape& rounded,
                                                   std::int64_t most) const {
  std::optional<std::int64_t> least;
  const auto take = [&least](std::int64_t bound) {
    least = std::min(least.value_or(bound), bound);
    return false;
  };
  for (const Known& outer : kind.bounding)
    if (holds(outer.shape, rounded)) take(outer.bytes);
  any_upper_line(kind, rounded, most, take);
  return least;
}

std::optional<std::int64_t> Predictor::lower_bound(const Kind& kind, const MicroBatchShape& rounded) const {
  std::optional<std::int64_t> most;
  const auto take = [&most](std::int64_t bound) {
    most = std::max(most.value_or(bound), bound);
    return false;
  };
  for (const Known& inner : kind.bounding)
    if (holds(rounded, inner.shape)) take(inner.bytes);
  any_lower_line(kind, rounded, take);
  return most;
}

std::optional<bool> Predictor::told(const Kind& kind, const MicroBatchShape& rounded, std::int64_t limit) const {
  // What is held by one shape, or holds one, needs no line: mostly that is enough.
  for (const Known& one : kind.bounding) {
    if (one.bytes <= limit && holds(one.shape, rounded)) return true;
    if (one.bytes > limit && holds(rounded, one.shape)) return false;
  }
  if (any_upper_line(kind, rounded, limit, [limit](std::int64_t bound) { return bound <= limit; })) return true;
  if (any_lower_line(kind, rounded, [limit](std::int64_t bound) { return bound > limit; })) return false;
  return std::nullopt;
}

bool Predictor::fits(const MicroBatchShape& shape, const Plan& plan, std::int64_t limit) {
  if (const auto known = known_to_fit(shape, plan, limit)) return *known;
  return look_up(rounded_up(shape), plan) <= limit;
}

std::optional<bool> Predictor::known_to_fit(const MicroBatchShape& shape, const Plan& plan, std::int64_t limit) const {
  const auto kind = kinds_.find(work_of(plan));
  if (kind == kinds_.end()) return std::nullopt;
  const MicroBatchShape rounded = rounded_up(shape);
  if (const auto exact = exact_bytes(kind->second, rounded)) return *exact <= limit;
  return told(kind->second, rounded, limit);
}

bool Predictor::fits_in_time(const MicroBatchShape& shape, const Plan& plan, std::int64_t limit) {
  if (const auto known = known_to_fit(shape, plan, limit)) return *known;
  return time_is_left() && look_up(rounded_up(shape), plan) <= limit;
}

void Predictor::grant(std::int64_t microseconds) {
  if (!granted_) time_ = 0;
  granted_ = true;
  time_ += microseconds;
}

std::int64_t Predictor::attempt_bytes(const MicroBatchShape& shape, const Plan& plan, std::int64_t room) {
  const MicroBatchShape rounded = rounded_up(shape);
  Kind& kind = kind_of(plan);
  if (const auto exact = exact_bytes(kind, rounded)) return *exact;
  const auto most = upper_bound(kind, rounded, room);
  if (!most || *most > room) return look_up(rounded, plan);
  if (granted_) {
    if (!time_is_left()) return *most;
  } else {
    const auto least = lower_bound(kind, rounded);
    if (!least || *most - *least > *least / kNear) return look_up(rounded, plan);
  }
  ++kind.bounded;
  if (kind.exact >= kFirstAttempts + kind.bounded / kAttemptsPerRun) return *most;
  ++kind.exact;
  return look_up(rounded, plan);
}

}  // namespace plimsoll::memory
