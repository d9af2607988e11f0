#include "memory/planning/learning.h"

#include <algorithm>
#include <vector>

#include "memory/planning/decision_parts.h"
#include "memory/planning/wide.h"

namespace plimsoll::memory {
namespace {

/// Whether all had gone beyond the plan: in what it was judged on, or in the way that they were run. While a plan waits
/// its steps stay within what it was judged on: then it is at fault.
bool were_filled(std::int64_t step, const std::vector<FailureEntry>& failures, bool other_way,
                 const Candidate* candidate, const PolicyState& state) {
  const bool waits =
      std::any_of(state.waits.begin(), state.waits.end(), [&](const Wait& wait) { return step < wait.until_step; });
  if (waits || candidate == nullptr) return false;
  return other_way || std::all_of(failures.begin(), failures.end(), [&](const FailureEntry& failure) {
           return failure.predicted_bytes > candidate->bytes;
         });
}

void record_failures(const PolicyConfig& config, std::int64_t step, const std::vector<FailureEntry>& failures,
                     bool other_way, const Plan& plan, const Candidate* candidate, PolicyState& state) {
  std::vector<FailedRank> ranks;
  for (const FailureEntry& failure : failures) {
    remember(state.failures, failure, config.history);
    ranks.push_back({failure.rank, failure.budget_bytes});
  }
  if (!ranks.empty())
    begin_wait(config, step, plan, ranks, were_filled(step, failures, other_way, candidate, state), state);
}

/// Compares the rank's pair of the same step; `shortfalls_only` leaves the rest to the window's end.
void learn_peak(int rank, const RankUsage& usage, const Plan& plan, const Candidate* candidate, bool shortfalls_only,
                Calibration& calibration) {
  const auto short_of = [&](std::int64_t predicted, std::int64_t measured) {
    // A correction only adds: mostly there is nothing to look up.
    return predicted > 0 && measured > predicted && measured > calibration.corrected(rank, plan, predicted);
  };
  const std::int64_t measured = usage.compared_peak_bytes > 0 ? usage.compared_peak_bytes : usage.peak_bytes;
  const bool comparable = usage.compared_peak_bytes > 0 || !out_of_memory(usage);
  if (comparable && (!shortfalls_only || short_of(usage.predicted_peak_bytes, measured)))
    calibration.observe(rank, plan, usage.predicted_peak_bytes, measured);
  // The table judges the heaviest micro-batch that the plan itself makes: where a step said nothing of its own, a peak
  // above that is a shortfall.
  if (candidate != nullptr && usage.predicted_peak_bytes == 0 && !out_of_memory(usage) && !usage.other_recompute &&
      short_of(candidate->bytes, usage.peak_bytes))
    calibration.observe(rank, plan, candidate->bytes, usage.peak_bytes);
}

}  // namespace

void learn_peaks(const WindowSummary& window, const Plan& plan, Calibration& calibration) {
  for (std::size_t rank = 0; rank < window.ranks.size(); ++rank)
    learn_peak(static_cast<int>(rank), window.ranks[rank], plan, nullptr, false, calibration);
}

void learn_window(const PolicyConfig& config, const WindowSummary& window, const Plan& plan,
                  const CandidateTable& table, PolicyState& state) {
  const Candidate* candidate = table.find(plan);
  const bool known = std::any_of(state.waits.begin(), state.waits.end(), [&](const Wait& wait) {
    return wait.plan == plan && wait.failed_step >= window.first_step;
  });
  std::vector<FailureEntry> failures;
  for (std::size_t rank = 0; rank < window.ranks.size(); ++rank) {
    const RankUsage& usage = window.ranks[rank];
    learn_peak(static_cast<int>(rank), usage, plan, candidate, false, state.calibration);
    if (known || !out_of_memory(usage)) continue;
    // The pair that the window keeps is of a step that went well.
    const std::int64_t predicted = candidate != nullptr ? candidate->bytes : usage.predicted_peak_bytes;
    failures.push_back(failure_of(window.last_step, rank, usage, plan, predicted));
    teach_failure(failures.back(), state);
  }
  record_failures(config, window.last_step, failures, false, plan, candidate, state);
}

void learn_step(const PolicyConfig& config, std::int64_t step, std::span<const RankUsage> reports, const Plan& plan,
                const CandidateTable& table, PolicyState& state) {
  const Candidate* candidate = table.find(plan);
  std::vector<FailureEntry> failures;
  bool other_way = true;  // all that failed
  for (std::size_t rank = 0; rank < reports.size(); ++rank) {
    const RankUsage& usage = reports[rank];
    learn_peak(static_cast<int>(rank), usage, plan, candidate, true, state.calibration);
    if (!out_of_memory(usage)) continue;
    other_way = other_way && usage.other_way;
    const std::int64_t table_bytes = candidate != nullptr ? candidate->bytes : 0;
    failures.push_back(
        failure_of(step, rank, usage, plan, usage.predicted_peak_bytes > 0 ? usage.predicted_peak_bytes : table_bytes));
    if (!usage.other_recompute) teach_failure(failures.back(), state);
  }
  record_failures(config, step, failures, other_way, plan, candidate, state);
}

}  // namespace plimsoll::memory
