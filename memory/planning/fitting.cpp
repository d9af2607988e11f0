#include "memory/planning/fitting.h"

#include <algorithm>

namespace plimsoll::memory {
namespace {

/// It has at least 5 % more now: a neighbour has left, and what failed then says nothing any more.
bool has_more(const FailedRank& failed, std::int64_t budget) {
  return failed.budget_bytes > 0 && wide(budget) * 100 >= wide(failed.budget_bytes) * 105;
}

/// Every rank that failed has more.
bool lifted(const Wait& wait, std::span<const std::int64_t> budgets) {
  return !wait.ranks.empty() && std::all_of(wait.ranks.begin(), wait.ranks.end(), [&](const FailedRank& failed) {
    const auto rank = static_cast<std::size_t>(failed.rank);
    return failed.rank >= 0 && rank < budgets.size() && has_more(failed, budgets[rank]);
  });
}

/// The rank was among those that failed, and has more.
bool lifted_for(const Wait& wait, const FillLimits& limits) {
  return std::any_of(wait.ranks.begin(), wait.ranks.end(), [&](const FailedRank& failed) {
    return failed.rank == limits.rank && has_more(failed, limits.budget);
  });
}

}  // namespace

Fitting::Fitting(const CandidateTable& table, const ChoiceLimits& limits, const PolicyState& state)
    : table_(table), limits_(limits), state_(state) {
  for (const Wait& wait : state.waits) {
    if (wait.filled || limits.step >= wait.until_step || lifted(wait, limits.budgets)) continue;
    const Candidate* failed = table.find(wait.plan);
    if (failed == nullptr || (blocked_ && failed->bytes >= blocked_->bytes)) continue;
    blocked_ = Block{failed->bytes, wait.until_step};
  }
}

bool Fitting::holds(std::int64_t bytes, std::int64_t fraction, std::size_t rank) const {
  return wide(bytes) * 10000 <= wide(fraction) * wide(limits_.budgets[rank]);
}

bool Fitting::within(const Candidate& candidate, std::int64_t fraction) const {
  const std::size_t world = limits_.budgets.size();
  if (tightest_ < world && !holds(need_on(candidate, tightest_).bytes, fraction, tightest_)) return false;
  Calibration::Walk walk(state_.calibration, candidate.plan);
  for (std::size_t rank = 0; rank < world; ++rank) {
    if (holds(walk.corrected(static_cast<int>(rank), candidate.bytes), fraction, rank)) continue;
    tightest_ = rank;
    return false;
  }
  return true;
}

Need Fitting::need_of(std::size_t rank, std::int64_t bytes) const {
  return {static_cast<int>(rank), bytes, std::max<std::int64_t>(1, limits_.budgets[rank])};
}

Need Fitting::need_on(const Candidate& candidate, std::size_t rank) const {
  return need_of(rank, state_.calibration.corrected(static_cast<int>(rank), candidate.plan, candidate.bytes));
}

Need Fitting::need(const Candidate& candidate) const {
  Need most;
  Calibration::Walk walk(state_.calibration, candidate.plan);
  for (std::size_t rank = 0; rank < limits_.budgets.size(); ++rank) {
    const Need here = need_of(rank, walk.corrected(static_cast<int>(rank), candidate.bytes));
    if (rank == 0 || here.above(most)) most = here;
  }
  return most;
}

const Candidate* Fitting::best() const {
  for (const Candidate& candidate : table_.all()) {  // best first
    if (fits(candidate)) return &candidate;
  }
  return nullptr;
}

const Candidate* Fitting::smallest(bool waiting) const {
  const Candidate* best = nullptr;
  Need least;
  for (const Candidate& candidate : table_.all()) {
    if (!waiting && waits(candidate)) continue;
    // Asked first where the best so far needs most: nearly every other candidate needs more there already.
    if (best != nullptr && !limits_.budgets.empty() &&
        !least.above(need_on(candidate, static_cast<std::size_t>(least.rank)))) {
      continue;
    }
    const Need most = need(candidate);
    if (best != nullptr && !least.above(most)) continue;
    best = &candidate;
    least = most;
  }
  return best;
}

const Candidate* Fitting::refuge() const {
  const Candidate* least = smallest(false);
  return least != nullptr ? least : smallest();
}

bool better(const Candidate& candidate, const Candidate& other) {
  if (candidate.plan.resolution != other.plan.resolution) return sharper(candidate.plan, other.plan);
  return candidate.microseconds < other.microseconds;
}

bool saves(std::int64_t now, std::int64_t then, std::int64_t least_gain) {
  return now > then && wide(now - then) * 10000 > wide(least_gain) * wide(now);
}

const Candidate* choose(const CandidateTable& table, const ChoiceLimits& limits, const PolicyState& state) {
  return Fitting(table, limits, state).best();
}

const Candidate* smallest(const CandidateTable& table, std::span<const std::int64_t> budgets,
                          const PolicyState& state) {
  return Fitting(table, {.budgets = budgets}, state).smallest();
}

std::int64_t fill_bytes(const Candidate& candidate, const FillLimits& limits, const PolicyState& state) {
  const bool waits = std::any_of(state.waits.begin(), state.waits.end(), [&](const Wait& wait) {
    return limits.step < wait.until_step && !lifted_for(wait, limits);
  });
  if (waits) return candidate.bytes;
  const std::int64_t aim = saturated(wide(limits.budget) * wide(limits.target) / 10000);
  // A class's offset was seen at what its plans needed then, and a fill goes beyond: what falls short may do so in
  // proportion.
  std::int64_t corrected = state.calibration.corrected(limits.rank, candidate.plan, aim);
  for (const Calibration::Entry& entry : state.calibration.entries())
    if (entry.rank == limits.rank) corrected = std::max(corrected, scaled_up(aim, entry.scale, 10000));
  return std::max(candidate.bytes, aim - (corrected - aim));
}

const Candidate* first_choice(const CandidateTable& table, const ChoiceLimits& limits, const PolicyState& state) {
  const Fitting fitting(table, limits, state);
  if (const Candidate* best = fitting.best()) return best;
  const Candidate* least = fitting.smallest();
  return least != nullptr && fitting.within(*least, 10000) ? least : nullptr;
}

}  // namespace plimsoll::memory
