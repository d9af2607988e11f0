#include "train/costs.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "memory/planning/wide.h"
#include "model/qwen_config.h"
#include "model/work.h"
#include "train/stopwatch.h"

namespace plimsoll::train {
namespace {

constexpr std::int64_t kRateOne = 10000;
constexpr std::int64_t kLeastExtra = 50;  // recomputing is never free, whatever a noisy clock says
constexpr int kRounds = 4;
constexpr std::int64_t kLeastRun = 100;  // times what timing may take: what a run is worth that much for

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

std::vector<Timing*> all_of(Timings& timings) {
  std::vector<Timing*> all;
  for (Timing& timing : timings.plain) all.push_back(&timing);
  all.insert(all.end(), {&timings.language, &timings.offload, &timings.expert});
  return all;
}

// One after the other, again and again: what slows the machine down for a while hits all of them. The least counts:
// whatever else a machine does, it makes nothing faster.
void take(Timings& timings, Stopwatch& stopwatch, std::int64_t allowance) {
  for (int round = 0; round < kRounds; ++round)
    for (Timing* timing : all_of(timings)) {
      if (stopwatch.spent() > allowance) return;
      if (round > 0 && timing->least == 0) continue;  // does not fit
      const std::int64_t took = stopwatch.time(timing->plan);
      timing->least = timing->least == 0 ? took : std::min(timing->least, took);
    }
}

// The smallest two, of which the first of a process is slow; returns what two rounds of all take by that.
std::int64_t begin(Timings& timings, Stopwatch& stopwatch) {
  Timing& smallest = timings.plain.front();
  stopwatch.time(smallest.plan);
  smallest.least = stopwatch.time(smallest.plan);
  if (timings.plain.size() > 1) timings.plain[1].least = stopwatch.time(timings.plain[1].plan);
  std::int64_t samples = 0;
  for (const Timing* timing : all_of(timings)) samples += timing->plan.micro_batch;
  return 2 * memory::scaled(smallest.least, samples, smallest.plan.micro_batch);
}

// Microseconds that timing may take, by what the smallest micro-batch takes.
std::int64_t allowance_of(const Session& session, const Timing& smallest) {
  const std::int64_t step = memory::scaled(smallest.least, session.share, smallest.plan.micro_batch);
  return std::min(memory::scaled(step, session.steps, kLeastRun), kMostMicroseconds);
}

// The smallest two say what a micro-batch takes that has no sample in it: a twentieth of a sample's time to all of it.
void take_in_smallest(const Timings& timings, memory::CostModel& costs) {
  const Timing& one = timings.plain.front();
  const std::int64_t n = one.plan.micro_batch, least = std::max<std::int64_t>(20, one.least);
  std::int64_t fixed = least / 20;
  if (timings.plain.size() > 1 && timings.plain[1].least > 0) {
    const std::int64_t more = timings.plain[1].plan.micro_batch - n, took = timings.plain[1].least;
    fixed = std::clamp(least - memory::scaled(took - least, n, more), fixed, least / 2);
  }
  const std::int64_t sample_time = (least - fixed) / n;
  for (const int samples : {1, 2})
    costs.points.push_back({samples, fixed + samples * std::max<std::int64_t>(1, sample_time)});
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

/// Before any timing: rates by how much there is to compute.
memory::CostModel by_work(const Session& session, const SampleShape& sample) {
  const model::VlaModel& model = *session.model;
  memory::CostModel costs;
  costs.language_blocks = std::max(1, model.language_blocks());
  costs.vision_blocks = std::max(1, model.vision_blocks());
  costs.expert_blocks = std::max(1, model.expert_blocks());
  const auto work = model::forward_work(model::read_qwen_config(session.options.path), session.options.expert, sample);
  const auto rate = [&](double of) {
    return std::max(kLeastExtra, static_cast<std::int64_t>(of / work.step() * static_cast<double>(kRateOne)));
  };
  costs.language_recompute = rate(work.language);
  costs.vision_recompute = model.vision_blocks() > 0 ? rate(work.vision) : 0;
  costs.expert_recompute = rate(work.expert);
  return costs;
}

}  // namespace

memory::CostModel measure_costs(Session& session, std::int64_t sample) {
  const auto& model = *session.model;
  const auto resolution = session.config.data.resolution;
  memory::CostModel costs = by_work(session, session.source.shape_at(sample, resolution));
  const auto useful = memory::useful_micro_batches(session.share, static_cast<int>(session.config.batch.min_micro),
                                                   static_cast<int>(session.config.batch.max_micro));
  Stopwatch stopwatch(session, sample, resolution);
  Timings timings(sizes_to_time(useful), model);
  const std::int64_t rounds = begin(timings, stopwatch);
  const std::int64_t allowance = allowance_of(session, timings.plain.front());
  if (allowance < rounds) {
    // Half of the timings would be worth less than none. What its steps take, the run learns from them (WayTimes).
    take_in_smallest(timings, costs);
    return costs;
  }
  take(timings, stopwatch, allowance);
  take_in(timings, costs);
  if (!costs.points.empty()) return costs;
  // Not even the smallest fits as it is: from what it takes with everything recomputed, by the usual share.
  memory::Plan leanest;
  leanest.micro_batch = useful.front();
  leanest.recompute_blocks = model.language_blocks();
  leanest.recompute_expert = model.expert_blocks();
  const std::int64_t took = std::max<std::int64_t>(1, stopwatch.time(leanest));
  const std::int64_t share = kRateOne + costs.language_recompute + costs.expert_recompute;
  costs.points.push_back({leanest.micro_batch, std::max<std::int64_t>(1, took * kRateOne / share)});
  return costs;
}

}  // namespace plimsoll::train
