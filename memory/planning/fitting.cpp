#include "memory/planning/fitting.h"

#include <algorithm>

namespace plimsoll::memory {
namespace {

constexpr std::int64_t kLongest = std::int64_t{1} << 50;  // microseconds: 35 years; keeps sums and products in range

bool makes_sense(const MeasuredTime& time) { return time.predicted_microseconds > 0 && time.measured_microseconds > 0; }

std::int64_t capped(std::int64_t microseconds) { return std::clamp<std::int64_t>(microseconds, 1, kLongest); }

/// Every rank that failed has at least 5 % more now: a neighbour has left, and what failed then says nothing any more.
bool lifted(const Wait& wait, std::span<const std::int64_t> budgets) {
  return !wait.ranks.empty() && std::all_of(wait.ranks.begin(), wait.ranks.end(), [&](const FailedRank& failed) {
    if (failed.budget_bytes < 1 || failed.rank < 0 || static_cast<std::size_t>(failed.rank) >= budgets.size())
      return false;
    return wide(budgets[static_cast<std::size_t>(failed.rank)]) * 100 >= wide(failed.budget_bytes) * 105;
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
  for (const MeasuredTime& time : state.times) {
    if (!makes_sense(time)) continue;
    measured_ += wide(capped(time.measured_microseconds));
    predicted_ += wide(capped(time.predicted_microseconds));
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

std::int64_t Fitting::expected(const Candidate& candidate) const {
  const auto measured = std::find_if(state_.times.begin(), state_.times.end(), [&](const MeasuredTime& time) {
    return time.plan == candidate.plan && makes_sense(time);
  });
  const std::int64_t predicted = capped(candidate.microseconds);
  if (measured != state_.times.end()) {
    return std::max<std::int64_t>(
        1, scaled(predicted, capped(measured->measured_microseconds), capped(measured->predicted_microseconds)));
  }
  if (predicted_ == 0) return predicted;
  return std::max<std::int64_t>(1, saturated((wide(predicted) * measured_ + predicted_ / 2) / predicted_));
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

std::int64_t expected_microseconds(const CandidateTable& table, const Candidate& candidate, const PolicyState& state) {
  return Fitting(table, {}, state).expected(candidate);
}

std::int64_t fill_bytes(const Candidate& candidate, const FillLimits& limits, const PolicyState& state) {
  const bool waits = std::any_of(state.waits.begin(), state.waits.end(),
                                 [&](const Wait& wait) { return limits.step < wait.until_step; });
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
