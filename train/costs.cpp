#include "train/costs.h"

#include <algorithm>

#include "train/stopwatch.h"

namespace plimsoll::train {
namespace {

constexpr std::int64_t kRateOne = 10000;
constexpr std::int64_t kLeastExtra = 50;  // recomputing is never free, whatever a noisy clock says

std::int64_t extra(std::int64_t with, std::int64_t without) {
  return std::max(kLeastExtra, (with - without) * kRateOne / std::max<std::int64_t>(1, without));
}

// What recomputing and offloading add, on a micro-batch of `samples` that takes `plain` microseconds as it is.
void time_extras(Stopwatch& stopwatch, int samples, std::int64_t plain, const model::VlaModel& model,
                 memory::CostModel& costs) {
  memory::Plan plan;
  plan.micro_batch = samples;
  plan.recompute_blocks = model.language_blocks();
  const std::int64_t again = stopwatch.time_is_up() ? 0 : stopwatch.time(plan);
  if (again > 0) costs.language_recompute = extra(again, plain);
  plan.offload = true;
  const std::int64_t offloaded = stopwatch.time_is_up() ? 0 : stopwatch.time(plan);
  if (again > 0 && offloaded > 0) costs.offload = std::max(kLeastExtra, extra(offloaded, plain) - extra(again, plain));
  memory::Plan expert;
  expert.micro_batch = samples;
  expert.recompute_expert = model.expert_blocks();
  const std::int64_t expert_again = stopwatch.time_is_up() ? 0 : stopwatch.time(expert);
  if (expert_again > 0) costs.expert_recompute = extra(expert_again, plain);
}

// Sizes to time: powers of two apart, and the largest.
std::vector<int> sizes_to_time(const std::vector<int>& useful) {
  std::vector<int> sizes;
  for (const int n : useful) {
    if (sizes.empty() || n >= 2 * sizes.back() || n == useful.back()) sizes.push_back(n);
  }
  return sizes;
}

}  // namespace

memory::CostModel measure_costs(Session& session) {
  const auto& model = *session.model;
  memory::CostModel costs;
  costs.language_blocks = std::max(1, model.language_blocks());
  costs.vision_blocks = std::max(1, model.vision_blocks());
  costs.expert_blocks = std::max(1, model.expert_blocks());
  costs.vision_recompute = model.vision_blocks() > 0 ? costs.language_recompute : 0;
  const auto useful = memory::useful_micro_batches(session.share, static_cast<int>(session.config.batch.min_micro),
                                                   static_cast<int>(session.config.batch.max_micro));
  Stopwatch stopwatch(session, session.config.data.resolution, kMostMicroseconds);
  memory::Plan smallest;
  smallest.micro_batch = useful.front();
  stopwatch.keep_to_run(smallest);
  for (const int n : sizes_to_time(useful)) {
    if (stopwatch.time_is_up()) break;
    memory::Plan plan;
    plan.micro_batch = n;
    const std::int64_t took = stopwatch.time(plan);
    if (took == 0) break;
    costs.points.push_back({n, took});
    // On the first, which takes least: what is not timed is a guess, and that of sizes is the better one.
    if (costs.points.size() == 1) time_extras(stopwatch, n, took, model, costs);
  }
  if (!costs.points.empty()) return costs;
  // Not even the smallest fits as it is: from what it takes with everything recomputed, by the usual share.
  memory::Plan least;
  least.micro_batch = useful.front();
  least.recompute_blocks = model.language_blocks();
  least.recompute_expert = model.expert_blocks();
  const std::int64_t took = std::max<std::int64_t>(1, stopwatch.time(least));
  const std::int64_t share = kRateOne + costs.language_recompute + costs.expert_recompute;
  costs.points.push_back({least.micro_batch, std::max<std::int64_t>(1, took * kRateOne / share)});
  return costs;
}

}  // namespace plimsoll::train
