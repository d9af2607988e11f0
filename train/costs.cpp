#include "train/costs.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "train/stopwatch.h"

namespace plimsoll::train {
namespace {

constexpr std::int64_t kRateOne = 10000;
constexpr std::int64_t kLeastExtra = 50;  // recomputing is never free, whatever a noisy clock says
constexpr int kRounds = 4;

std::int64_t extra(std::int64_t with, std::int64_t without) {
  return std::max(kLeastExtra, (with - without) * kRateOne / std::max<std::int64_t>(1, without));
}

// Sizes to time: powers of two apart, and the largest.
std::vector<int> sizes_to_time(const std::vector<int>& useful) {
  std::vector<int> sizes;
  for (const int n : useful) {
    if (sizes.empty() || n >= 2 * sizes.back() || n == useful.back()) sizes.push_back(n);
  }
  return sizes;
}

/// Plans that are timed, and the least that each took: whatever else a machine does, it makes nothing faster.
class Timings {
 public:
  explicit Timings(std::vector<memory::Plan> plans) : plans_(std::move(plans)), least_(plans_.size(), 0) {}

  // One after the other, again and again: what slows the machine down for a while hits all of them.
  void take(Stopwatch& stopwatch) {
    for (int round = 0; round < kRounds; ++round)
      for (std::size_t i = 0; i < plans_.size(); ++i) {
        if (stopwatch.time_is_up()) return;
        if (round > 0 && least_[i] == 0) continue;  // does not fit
        const std::int64_t took = stopwatch.time(plans_[i]);
        least_[i] = least_[i] == 0 ? took : std::min(least_[i], took);
      }
  }
  /// Microseconds; 0: it does not fit, or there was no time for it.
  std::int64_t of(std::size_t place) const { return least_[place]; }

 private:
  std::vector<memory::Plan> plans_;
  std::vector<std::int64_t> least_;
};

// Sizes as they are, then what recomputing and offloading add to the smallest, which takes least.
std::vector<memory::Plan> plans_to_time(const std::vector<int>& sizes, const model::VlaModel& model) {
  std::vector<memory::Plan> plans;
  for (const int n : sizes) plans.push_back({0, n});
  memory::Plan language{0, sizes.front()}, expert = language;
  language.recompute_blocks = model.language_blocks();
  expert.recompute_expert = model.expert_blocks();
  memory::Plan offload = language;
  offload.offload = true;
  plans.insert(plans.end(), {language, offload, expert});
  return plans;
}

void take_in(const std::vector<int>& sizes, const Timings& timings, memory::CostModel& costs) {
  for (std::size_t i = 0; i < sizes.size(); ++i)
    if (timings.of(i) > 0) costs.points.push_back({sizes[i], timings.of(i)});
  const std::int64_t plain = timings.of(0), language = timings.of(sizes.size()), offload = timings.of(sizes.size() + 1),
                     expert = timings.of(sizes.size() + 2);
  costs.points = memory::smoothed(std::move(costs.points));
  if (plain == 0) return;
  if (language > 0) costs.language_recompute = extra(language, plain);
  if (language > 0 && offload > 0)
    costs.offload = std::max(kLeastExtra, extra(offload, plain) - extra(language, plain));
  if (expert > 0) costs.expert_recompute = extra(expert, plain);
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
  stopwatch.keep_to_run({0, useful.front()});
  const auto sizes = sizes_to_time(useful);
  Timings timings(plans_to_time(sizes, model));
  timings.take(stopwatch);
  take_in(sizes, timings, costs);
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
