#include "memory/planning/ways.h"

#include <algorithm>

#include "memory/planning/packing.h"
#include "memory/planning/wide.h"

namespace plimsoll::memory {
namespace {

using Places = std::span<const std::size_t>;

bool all_fit(std::span<const std::int64_t> weights, const Plan& plan,
             const std::function<bool(const Plan&, Places)>& fits) {
  const auto size = std::min(weights.size(), static_cast<std::size_t>(plan.micro_batch));
  const auto order = balanced_order(weights, size);
  for (std::size_t begin = 0; begin < order.size(); begin += size)
    if (!fits(plan, Places(order).subspan(begin, std::min(size, order.size() - begin)))) return false;
  return true;
}

}  // namespace

std::vector<Candidate> ways_of(std::span<const Candidate> candidates,
                               const std::function<std::int64_t(const Plan&)>& time) {
  std::vector<Candidate> timed;
  for (const Candidate& candidate : candidates) {
    if (sharper(candidates.front().plan, candidate.plan)) continue;
    timed.push_back({candidate.plan, candidate.bytes, std::max<std::int64_t>(1, time(candidate.plan))});
  }
  const CandidateTable fastest_first(std::move(timed));
  std::vector<Candidate> ways;
  for (const Candidate& way : fastest_first.all())
    if (ways.empty() || way.bytes < ways.back().bytes) ways.push_back(way);
  return ways;
}

std::vector<Candidate> ways_of(std::span<const Candidate> candidates, const CostModel& costs, std::int64_t share) {
  return ways_of(candidates, [&](const Plan& plan) { return share_microseconds(costs, plan, share); });
}

Plan way_of_share(std::span<const std::int64_t> weights, const Plan& plan, const Fill& fill,
                  const std::function<bool(const Plan&, Places)>& fits) {
  if (weights.empty()) return plan;
  for (const Candidate& way : fill.ways) {
    Plan tried = way.plan;
    tried.resolution = plan.resolution;
    if (tried == plan || all_fit(weights, tried, fits)) return tried;
  }
  return plan;
}

Plan way_of_micro_batch(const Plan& way, const Fill& fill, const std::function<bool(const Plan&)>& fits_plain) {
  if (!saves_memory(way)) return way;
  const bool allowed =
      std::any_of(fill.ways.begin(), fill.ways.end(), [](const Candidate& one) { return !saves_memory(one.plan); });
  return allowed && fits_plain(plain(way)) ? plain(way) : way;
}

std::vector<std::int64_t> fastest_microseconds(std::span<const Candidate> ways, std::size_t steps,
                                               const std::function<bool(std::size_t, const Plan&)>& fits) {
  std::vector<std::int64_t> fastest(steps, 0);
  for (std::size_t step = 0; step < steps; ++step) {
    const auto way = std::find_if(ways.begin(), ways.end(), [&](const Candidate& one) { return fits(step, one.plan); });
    if (way != ways.end()) fastest[step] = way->microseconds;
  }
  return fastest;
}

std::int64_t mean_microseconds(std::span<const std::int64_t> fastest, std::int64_t own) {
  if (fastest.empty()) return std::max<std::int64_t>(1, own);
  std::int64_t time = 0;
  for (const std::int64_t fast : fastest) time = sum(time, fast > 0 ? std::min(fast, own) : own);
  return std::max<std::int64_t>(1, time / static_cast<std::int64_t>(fastest.size()));
}

}  // namespace plimsoll::memory
