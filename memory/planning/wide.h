#pragma once
// Products of two 64-bit numbers without overflow, and the quotients that fit again. Whole numbers only; pure.

#include <cstdint>
#include <limits>

namespace plimsoll::memory {

__extension__ using Wide = unsigned __int128;

/// Negative counts as 0.
constexpr Wide wide(std::int64_t value) { return value < 0 ? 0 : static_cast<Wide>(value); }

/// What does not fit becomes the largest that does.
constexpr std::int64_t saturated(Wide value) {
  constexpr std::int64_t kLargest = std::numeric_limits<std::int64_t>::max();
  return value > static_cast<Wide>(kLargest) ? kLargest : static_cast<std::int64_t>(value);
}

/// value * times / by, to the nearest; `by` is positive. Exact, saturated.
constexpr std::int64_t scaled(std::int64_t value, std::int64_t times, std::int64_t by) {
  return saturated((wide(value) * wide(times) + wide(by) / 2) / wide(by));
}

/// The same rounded up.
constexpr std::int64_t scaled_up(std::int64_t value, std::int64_t times, std::int64_t by) {
  return saturated((wide(value) * wide(times) + wide(by) - 1) / wide(by));
}

/// Both from 0 on.
constexpr std::int64_t sum(std::int64_t a, std::int64_t b) { return saturated(wide(a) + wide(b)); }

}  // namespace plimsoll::memory
