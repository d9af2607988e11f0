#pragma once
// The predictive policy: jumps to the fastest plan that is predicted to fit every rank, at once when memory runs out or
// a budget falls under the plan's prediction, and remembers what failed. Pure, in whole numbers (see policy.h).

#include <cstdint>
#include <optional>
#include <span>

#include "memory/planning/candidates.h"
#include "memory/planning/policy.h"

namespace plimsoll::memory {

/// What choose() looks for.
struct ChoiceLimits {
  std::span<const std::int64_t> budgets;  ///< bytes, one a rank
  std::int64_t target = 8500;             ///< 1/10000 of the budget
  std::int64_t step = 0;                  ///< plans whose wait is not over at this step are passed over
};

/// The best candidate (the table's order) whose corrected bytes are at most target x budget on every rank and which no
/// wait blocks. Null when none fits. A wait blocks every candidate that needs as many bytes as the plan that failed, or
/// more; one of filling blocks none.
const Candidate* choose(const CandidateTable& table, const ChoiceLimits& limits, const PolicyState& state);

/// The candidate that fills the budget of the rank that is worst off least, by corrected bytes: what is left when
/// nothing fits. Waits do not count. Ties go to the faster one. Null only for an empty table.
const Candidate* smallest(const CandidateTable& table, std::span<const std::int64_t> budgets, const PolicyState& state);

/// One rank's in one step.
struct FillLimits {
  int rank = 0;
  std::int64_t budget = 0;     ///< bytes
  std::int64_t target = 8500;  ///< 1/10000 of it
  std::int64_t step = 0;
};

/// Peak, live bytes included, up to which the rank fills the micro-batches of the step under the candidate: as much as
/// stays within target x budget, corrected by the class's offset and by the largest scale of the rank; or what the
/// candidate was judged on, if that is more or if a wait is not over. For a rank that failed a wait is over when it has
/// 5 % more; one that did not fail knows no budget but its own, and waits to the end.
std::int64_t fill_bytes(const Candidate& candidate, const FillLimits& limits, const PolicyState& state);

/// The decision at a window's end. Learns first (calibration, failures), then the reactive policy's gates: a
/// window that is not full, or one within the cooldown: hold. Then: a failure or a peak above the target (unless it
/// came of filling, which waits instead), or a plan that is no candidate, waits, or is predicted above the target on
/// some rank: the best that fits, or else the smallest of those that do not wait (of all when every one waits).
/// Else the best that fits, when it shows larger pictures or the table says that it saves more than least_gain; else
/// hold, saying which it was compared with. Times are compared between plans of one resolution only.
Decision decide_predictive(const PolicyConfig& config, const WindowSummary& window, const Plan& current,
                           const CandidateTable& table, PolicyState& state);

/// Between windows, after every reduction that concluded a step: a decision at once when a rank had a guardian retry
/// (other than of a filled step),
/// or when the plan's corrected bytes exceed a rank's budget as reported (the next micro-batch would fail), and another
/// plan is left; else nothing. Records failures; learns at once what was measured above its prediction. A decision
/// starts the cooldown, and the caller restarts the window. `reports` are the step's, one a rank.
std::optional<Decision> respond(const PolicyConfig& config, std::int64_t step, std::span<const RankUsage> reports,
                                const Plan& current, const CandidateTable& table, PolicyState& state);

/// The first plan: choose() under the budgets at start, or the smallest candidate if it fits the bare budgets. Null
/// when not even that fits.
const Candidate* first_choice(const CandidateTable& table, const ChoiceLimits& limits, const PolicyState& state);

/// Whether the budget is filled as well as it can be: no candidate that shows larger pictures or saves more than
/// least_gain fits, as is so wherever the whole share runs at once with nothing recomputed. Not settled is a plan that
/// decide_predictive would leave. Call it after the window's decision, with the window that it judged and the plan that
/// it kept.
bool settled(const PolicyConfig& config, const WindowSummary& window, const Plan& current, const CandidateTable& table,
             const PolicyState& state);

}  // namespace plimsoll::memory
