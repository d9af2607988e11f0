#include "memory/planning/decision_parts.h"

#include <fmt/ranges.h>

#include <algorithm>

#include "core/bytes.h"
#include "core/error.h"
#include "memory/planning/wide.h"

namespace plimsoll::memory {
namespace {

constexpr std::int64_t kMostDoublings = 20;
constexpr std::int64_t kLongestWait = std::int64_t{1} << 48;  // steps; no run is that long, and no sum of it overflows

/// Steps of a wait after so many failures.
std::int64_t wait_steps(const PolicyConfig& config, std::int64_t failures) {
  const std::int64_t doublings = std::clamp<std::int64_t>(failures - 1, 0, kMostDoublings);
  const std::int64_t first = std::int64_t{config.first_wait_windows} * config.adjustment_frequency;
  return std::min(kLongestWait, saturated(wide(first) << doublings));
}

/// A rank that failed before keeps the larger of both budgets: what did not fit there fits no smaller one either.
void merge_ranks(std::span<const FailedRank> failed, std::vector<FailedRank>& ranks) {
  for (const FailedRank& rank : failed) {
    const auto place = std::lower_bound(ranks.begin(), ranks.end(), rank.rank,
                                        [](const FailedRank& known, int wanted) { return known.rank < wanted; });
    if (place != ranks.end() && place->rank == rank.rank) {
      place->budget_bytes = std::max(place->budget_bytes, rank.budget_bytes);
    } else {
      ranks.insert(place, rank);
    }
  }
}

/// The wait of a plan, made anew if there is none. When the list is full, the one that ends first gives way.
Wait& wait_of(const PolicyConfig& config, const Plan& plan, PolicyState& state) {
  const auto known =
      std::find_if(state.waits.begin(), state.waits.end(), [&](const Wait& wait) { return wait.plan == plan; });
  if (known != state.waits.end()) return *known;
  if (state.waits.size() >= static_cast<std::size_t>(config.history)) {
    state.waits.erase(std::min_element(state.waits.begin(), state.waits.end(),
                                       [](const Wait& a, const Wait& b) { return a.until_step < b.until_step; }));
  }
  Wait& added = state.waits.emplace_back();
  added.plan = plan;
  return added;
}

}  // namespace

/// 8530 -> "85.3 %". Whole numbers only, rounded towards zero.
std::string percent(std::int64_t fraction) {
  const std::int64_t size = fraction < 0 ? -fraction : fraction;
  return fmt::format("{}{}.{} %", fraction < 0 ? "-" : "", size / 100, size % 100 / 10);
}

bool Usage::above(const Usage& other) const {
  return wide(peak) * wide(other.budget) > wide(other.peak) * wide(budget);
}

Usage worst_usage(std::span<const RankUsage> ranks) {
  if (ranks.empty()) fail(ExitCode::kUsage, "a decision needs the reports of at least one rank");
  Usage worst;
  for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
    if (ranks[rank].budget_bytes < 1)
      fail(ExitCode::kUsage, "rank {} reports a budget of {} bytes: set memory.budget", rank, ranks[rank].budget_bytes);
    const Usage usage{static_cast<int>(rank), std::clamp<std::int64_t>(ranks[rank].peak_bytes, 0, kLargestBytes),
                      std::min(ranks[rank].budget_bytes, kLargestBytes)};
    if (rank == 0 || usage.above(worst)) worst = usage;
  }
  return worst;
}

bool out_of_memory(const RankUsage& rank) { return rank.retries > 0 || rank.failed; }

/// "rank 1 ran out of memory 2 times (largest request 3.00 MiB)"; empty when nobody did.
std::string retry_text(const WindowSummary& window) {
  std::vector<std::string> texts;
  for (std::size_t rank = 0; rank < window.ranks.size(); ++rank) {
    const RankUsage& usage = window.ranks[rank];
    if (!out_of_memory(usage)) continue;
    const std::string what = usage.failed_request_bytes > 0
                                 ? fmt::format(", largest request {}", format_bytes(usage.failed_request_bytes))
                                 : "";
    texts.push_back(fmt::format("rank {} ran out of memory (guardian retries {}, allocator retries {}{})", rank,
                                usage.retries, usage.allocator_retries, what));
  }
  return fmt::format("{}", fmt::join(texts, ", "));
}

FailureEntry failure_of(std::int64_t step, std::size_t rank, const RankUsage& usage, const Plan& plan,
                        std::int64_t predicted) {
  return {step,     static_cast<int>(rank), usage.failed_request_bytes, plan, usage.budget_bytes, usage.peak_bytes,
          predicted};
}

void remember_failures(const PolicyConfig& config, const WindowSummary& window, const Plan& plan, PolicyState& state) {
  for (std::size_t rank = 0; rank < window.ranks.size(); ++rank) {
    const RankUsage& usage = window.ranks[rank];
    if (!out_of_memory(usage)) continue;
    remember(state.failures, failure_of(window.last_step, rank, usage, plan, usage.predicted_peak_bytes),
             config.history);
  }
}

void note_change(const PolicyConfig& config, const Decision& decision, PolicyState& state) {
  remember(state.history, {decision.step, decision.usage, decision.plan, decision.direction}, config.history);
  if (!decision.changed) return;
  state.cooldown = config.cooldown_windows;
  state.last_change_step = decision.step;
}

Decision describe(const PolicyConfig& config, const WindowSummary& window, const Plan& current, const Usage& worst) {
  Decision decision;
  decision.plan = decision.before = current;
  decision.step = window.last_step;
  decision.window_steps = window.steps;
  decision.worst_rank = worst.rank;
  decision.peak_bytes = worst.peak;
  decision.budget_bytes = worst.budget;
  decision.usage = worst.per_10000();
  decision.target = config.target;
  decision.margin = config.margin;
  for (const RankUsage& rank : window.ranks) {
    decision.retries += rank.retries;
    decision.allocator_retries += rank.allocator_retries;
  }
  decision.reason =
      fmt::format("steps {}-{}: worst is rank {}, peak {} = {} of its {}, target {} +- {}", window.first_step,
                  window.last_step, worst.rank, format_bytes(worst.peak), percent(decision.usage),
                  format_bytes(worst.budget), percent(config.target), percent(config.margin));
  return decision;
}

void begin_wait(const PolicyConfig& config, std::int64_t step, const Plan& plan, std::span<const FailedRank> ranks,
                bool filled, PolicyState& state) {
  Wait& wait = wait_of(config, plan, state);
  // A plan that must stay, since it needs least, may fail in every step: that is one failure a window.
  const bool again = wait.failures > 0 && step - wait.failed_step < config.adjustment_frequency;
  if (!again) wait.failures = sum(wait.failures, 1);
  wait.failed_step = step;
  wait.filled = filled;
  wait.until_step = std::max(wait.until_step, sum(step, wait_steps(config, wait.failures)));
  merge_ranks(ranks, wait.ranks);
}

void teach_failure(const FailureEntry& failure, PolicyState& state) {
  // A failure that was foreseen, under a budget that had sunk, says nothing against the prediction.
  if (failure.budget_bytes < 1 || failure.predicted_bytes > failure.budget_bytes) return;
  const std::int64_t needed = std::max(sum(failure.budget_bytes, 1), sum(failure.peak_bytes, failure.request_bytes));
  state.calibration.observe(failure.rank, failure.plan, failure.predicted_bytes, needed);
}

}  // namespace plimsoll::memory
