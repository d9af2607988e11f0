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

struct Timing {
  memory::Plan plan;
  std::int64_t least = 0;  ///< microseconds; 0: it does not fit, or there was no time for it
};

/// Sizes as they are, then what recomputing and offloading add to the smallest, which takes least.
struct Timings {
  Timings(const std::vector<int>& sizes, const model::VlaModel& model) {
    for (const int n : sizes) plain.push_back({{0, n}});
    language.plan = offload.plan = expert.plan = plain.front().plan;
    language.plan.recompute_blocks = offload.plan.recompute_blocks = model.language_blocks();
    offload.plan.offload = true;
    expert.plan.recompute_expert = model.expert_blocks();
  }

  std::vector<Timing> plain;
  Timing language, offload, expert;
};

// One after the other, again and again: what slows the machine down for a while hits all of them. The least counts:
// whatever else a machine does, it makes nothing faster.
void take(Timings& timings, Stopwatch& stopwatch) {
  std::vector<Timing*> all;
  for (Timing& timing : timings.plain) all.push_back(&timing);
  all.insert(all.end(), {&timings.language, &timings.offload, &timings.expert});
  for (int round = 0; round < kRounds; ++round)
    for (Timing* timing : all) {
      if (stopwatch.time_is_up()) return;
      if (round > 0 && timing->least == 0) continue;  // does not fit
      const std::int64_t took = stopwatch.time(timing->plan);
      timing->least = timing->least == 0 ? took : std::min(timing->least, took);
    }
}

void take_in(const Timings& timings, memory::CostModel& costs) {
  for (const Timing& timing : timings.plain)
    if (timing.least > 0) costs.points.push_back({timing.plan.micro_batch, timing.least});
  costs.points = memory::smoothed(std::move(costs.points));
  const std::int64_t plain = timings.plain.front().least, language = timings.language.least,
                     offload = timings.offload.least, expert = timings.expert.least;
  if (plain == 0) return;
  if (language > 0) costs.language_recompute = extra(language, plain);
  if (language > 0 && offload > 0)
    costs.offload = std::max(kLeastExtra, extra(offload, plain) - extra(language, plain));
  if (expert > 0) costs.expert_recompute = extra(expert, plain);
}

}  // namespace

memory::CostModel measure_costs(Session& session, std::int64_t sample) {
  const auto& model = *session.model;
  memory::CostModel costs;
  costs.language_blocks = std::max(1, model.language_blocks());
  costs.vision_blocks = std::max(1, model.vision_blocks());
  costs.expert_blocks = std::max(1, model.expert_blocks());
  costs.vision_recompute = model.vision_blocks() > 0 ? costs.language_recompute : 0;
  const auto useful = memory::useful_micro_batches(session.share, static_cast<int>(session.config.batch.min_micro),
                                                   static_cast<int>(session.config.batch.max_micro));
  Stopwatch stopwatch(session, sample, session.config.data.resolution, kMostMicroseconds);
  stopwatch.keep_to_run({0, useful.front()});
  Timings timings(sizes_to_time(useful), model);
  take(timings, stopwatch);
  take_in(timings, costs);
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
