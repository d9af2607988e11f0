#pragma once
// What the decisions of both policies are made of: the worst rank, the words of a reason, and what the state remembers.
// For the files of this folder. Pure.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "memory/planning/policy.h"

namespace plimsoll::memory {

inline constexpr std::int64_t kWhole = 10000;                               ///< a budget in its own units
inline constexpr std::int64_t kLargestBytes = (std::int64_t{1} << 48) - 1;  ///< what a report carries

/// 8530 -> "85.3 %". Whole numbers only, rounded towards zero.
std::string percent(std::int64_t fraction);

/// peak / budget of one rank, compared exactly. Both at most kLargestBytes, which keeps products below 2^63.
struct Usage {
  int rank = 0;
  std::int64_t peak = 0;
  std::int64_t budget = 1;

  bool above(const Usage& other) const;
  /// (usage - fraction) x 10000 x budget, exact.
  std::int64_t minus(std::int64_t fraction) const { return peak * kWhole - fraction * budget; }
  std::int64_t per_10000() const { return peak * kWhole / budget; }
};

/// The rank that fills its budget most; ties go to the lowest. Throws Error(kUsage) without ranks or with a budget
/// below 1.
Usage worst_usage(std::span<const RankUsage> ranks);

/// A guardian retry or failed step. An allocator's retry is neither: it gave unused blocks back, was served then, and
/// says nothing of what is needed.
bool out_of_memory(const RankUsage& rank);
/// "rank 1 ran out of memory 2 times (largest request 3.00 MiB)"; empty when nobody did.
std::string retry_text(const WindowSummary& window);

/// Appends, and drops the oldest beyond `most`.
template <class Entry>
void remember(std::vector<Entry>& entries, Entry entry, int most) {
  entries.push_back(std::move(entry));
  if (entries.size() > static_cast<std::size_t>(most)) entries.erase(entries.begin());
}
/// What is remembered of a rank that ran out of memory under `plan`. `predicted`: the peak that was expected of it, 0:
/// none.
FailureEntry failure_of(std::int64_t step, std::size_t rank, const RankUsage& usage, const Plan& plan,
                        std::int64_t predicted);
void remember_failures(const PolicyConfig& config, const WindowSummary& window, const Plan& plan, PolicyState& state);
/// Puts the decision into the history; starts the cooldown when it changes the plan.
void note_change(const PolicyConfig& config, const Decision& decision, PolicyState& state);

/// A decision that changes nothing yet, with all that was seen.
Decision describe(const PolicyConfig& config, const WindowSummary& window, const Plan& current, const Usage& worst);

/// `plan` failed on `ranks` at `step`: it waits, or if it had been `filled`, filling does, twice as long as the last
/// time.
void begin_wait(const PolicyConfig& config, std::int64_t step, const Plan& plan, std::span<const FailedRank> ranks,
                bool filled, PolicyState& state);
/// The calibration learns that the rank needed more than its budget, or what it had and could not get if that is more.
/// Nothing when budget or prediction are not known, or when the prediction was above the budget.
void teach_failure(const FailureEntry& failure, PolicyState& state);

}  // namespace plimsoll::memory
