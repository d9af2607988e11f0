#pragma once
// What the predictive policy takes in before it decides: peaks into the calibration, failures into waits.
// For the files of this folder. Pure.

#include <cstdint>
#include <span>

#include "memory/planning/candidates.h"
#include "memory/planning/policy.h"

namespace plimsoll::memory {

/// Peaks of a window beside their predictions, whatever the policy.
void learn_peaks(const WindowSummary& window, const Plan& plan, Calibration& calibration);

/// From a window under `plan`. Failures that learn_step() has taken in already do not count twice.
void learn_window(const PolicyConfig& config, const WindowSummary& window, const Plan& plan,
                  const CandidateTable& table, PolicyState& state);

/// From one step: what was measured above its prediction, and guardian retries.
void learn_step(const PolicyConfig& config, std::int64_t step, std::span<const RankUsage> reports, const Plan& plan,
                const CandidateTable& table, PolicyState& state);

}  // namespace plimsoll::memory
