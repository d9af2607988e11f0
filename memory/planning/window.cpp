#include <algorithm>

#include "core/error.h"
#include "memory/planning/policy.h"

namespace plimsoll::memory {
namespace {

/// Keeps the pair of the step with the largest shortfall. A failed attempt was stopped before its peak, so it says
/// nothing here.
void compare(const RankUsage& step, RankUsage& window) {
  const std::int64_t measured = step.compared_peak_bytes > 0 ? step.compared_peak_bytes : step.peak_bytes;
  if (step.predicted_peak_bytes < 1 || measured < 1 || step.retries > 0 || step.failed) return;
  if (step.other_recompute && measured <= step.predicted_peak_bytes)
    return;  // the plan itself has not shown that it fits
  // Both are positive, so neither difference overflows.
  if (window.predicted_peak_bytes > 0 &&
      measured - step.predicted_peak_bytes <= window.compared_peak_bytes - window.predicted_peak_bytes) {
    return;
  }
  window.predicted_peak_bytes = step.predicted_peak_bytes;
  window.compared_peak_bytes = measured;
}

void merge(const RankUsage& step, RankUsage& window) {
  window.budget_bytes = step.budget_bytes;
  window.peak_bytes = std::max(window.peak_bytes, step.peak_bytes);
  window.retries += step.retries;
  window.allocator_retries += step.allocator_retries;
  window.failed_request_bytes = std::max(window.failed_request_bytes, step.failed_request_bytes);
  window.failed = window.failed || step.failed;
  window.other_recompute = window.other_recompute || step.other_recompute;
  compare(step, window);
}

}  // namespace

WindowAccumulator::WindowAccumulator(int adjustment_frequency, int world)
    : frequency_(adjustment_frequency), world_(world) {
  if (adjustment_frequency < 1 || world < 1) {
    fail(ExitCode::kUsage, "a window of {} steps over {} ranks: memory.adjustment_frequency must be at least 1",
         adjustment_frequency, world);
  }
}

std::optional<WindowSummary> WindowAccumulator::add(std::int64_t step, std::span<const RankUsage> reports,
                                                    bool concluded) {
  if (reports.size() != static_cast<std::size_t>(world_)) {
    fail(ExitCode::kUsage, "step {} brought {} reports for a world of {}", step, reports.size(), world_);
  }
  if (current_.ranks.empty()) {
    current_.first_step = step;
    current_.ranks.resize(reports.size());
  }
  current_.last_step = step;
  for (std::size_t rank = 0; rank < reports.size(); ++rank) merge(reports[rank], current_.ranks[rank]);
  if (concluded) ++current_.steps;
  if (current_.steps < frequency_) return std::nullopt;
  WindowSummary full = std::move(current_);
  restart();
  return full;
}

bool WindowAccumulator::restore(const WindowSummary& saved) {
  restart();
  if (saved.ranks.size() != static_cast<std::size_t>(world_) || saved.steps >= frequency_) return saved.ranks.empty();
  current_ = saved;
  return true;
}

void WindowAccumulator::restart() { current_ = {}; }

}  // namespace plimsoll::memory
