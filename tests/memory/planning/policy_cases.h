#pragma once
// Windows and plans that the policy's tests share.

#include "memory/planning/policy.h"

namespace plimsoll::memory {

/// A budget in whose bytes a fraction of 1/10000 is one byte.
inline constexpr std::int64_t kBudget = 10000;

/// A full window of 25 steps in which one rank peaked at `usage` / 10000.
inline WindowSummary window_at(std::int64_t usage) {
  return {1, 25, 25, {{.budget_bytes = kBudget, .peak_bytes = usage}}};
}

inline PolicyConfig both_knobs() {
  PolicyConfig config;
  config.knobs = {Knob::kResolution, Knob::kMicroBatch};
  return config;
}

}  // namespace plimsoll::memory
