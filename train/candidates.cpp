#include "train/candidates.h"

#include <algorithm>
#include <chrono>
#include <deque>
#include <map>
#include <numeric>
#include <utility>

#include "core/error.h"
#include "ddp/handshake.h"
#include "memory/planning/packing.h"
#include "memory/planning/wide.h"
#include "train/options.h"

namespace plimsoll::train {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::int64_t kWhole = 10000;
constexpr std::int64_t kEnough = 100'000;  // microseconds of repeats after which the best of them is good enough
constexpr std::int64_t kMostRepeats = 8;
constexpr std::int64_t kLeastExtra = 50;  // recomputing is never free, whatever a noisy clock says

bool turns(const Config& config, const char* knob) {
  const auto& knobs = config.memory.knobs;
  return std::find(knobs.begin(), knobs.end(), knob) != knobs.end();
}

// The numbers of language blocks worth a dry run: all of few, quarters of many.
std::vector<int> language_choices(const Config& config, int blocks) {
  if (const auto given = configured_recompute(config.memory, blocks)) return {*given};
  if (!turns(config, "recompute")) return {0};
  std::vector<int> choices;
  const int most = std::min(blocks, 4);
  for (int i = 0; i <= most; ++i) choices.push_back(static_cast<int>(static_cast<std::int64_t>(blocks) * i / most));
  return choices;
}

bool may_offload(const Config& config) {
  return !config.memory.offload.is("off") && (config.memory.offload.is("on") || turns(config, "offload"));
}

// A sample whose weight half of the training samples have at most.
std::int64_t middling(const data::SampleSource& source) {
  std::vector<std::int64_t> order = source.training();
  const auto weight = [&](std::int64_t index) { return memory::weight_of(source.shape_of(index)); };
  const auto middle = order.begin() + static_cast<std::ptrdiff_t>(order.size() / 2);
  std::nth_element(order.begin(), middle, order.end(),
                   [&](std::int64_t a, std::int64_t b) { return weight(a) < weight(b); });
  return *middle;
}

/// Times one plan after the other on all ranks.
class Stopwatch {
 public:
  /// For no longer than `allowance` microseconds, where its users ask whether time is up.
  Stopwatch(Session& session, std::int64_t resolution, std::int64_t allowance)
      : session_(session),
        allowance_(allowance),
        sample_(session.source.load_at(middling(session.source), resolution)),
        rules_(session.model->packing_rules(static_cast<std::uint64_t>(session.config.run.seed), false)) {}

  /// Microseconds of a micro-batch on the slowest rank: the best of two, or of more where they are short, after one to
  /// warm up. 0 when it does not fit some rank.
  std::int64_t time(const memory::Plan& plan) {
    std::int64_t best = time_once(plan);
    if (best == 0) return 0;
    const std::int64_t repeats = std::clamp<std::int64_t>(kEnough / best, 2, kMostRepeats);
    for (std::int64_t i = 0; i < repeats && !time_is_up(); ++i) {
      const std::int64_t took = time_once(plan);
      if (took == 0) return 0;
      best = i == 0 ? took : std::min(best, took);
    }
    return best;
  }
  /// Shares that were run: microseconds on the slowest rank, and of what sizes its micro-batches were, {size: steps}.
  struct Shares {
    std::int64_t microseconds = 0;
    std::map<int, std::int64_t> sizes;
  };
  /// One run of what every rank draws in each of the first `steps` steps, filled as it will be. No time when it does
  /// not fit some rank.
  Shares time_shares(const memory::Plan& plan, std::int64_t steps, const memory::PolicyState& known) {
    Shares sum;
    for (std::int64_t step = 1; step <= steps; ++step) {
      const auto arranged =
          arrange(share_of(step, plan.resolution), plan, session_.fill(plan, step, known), *session_.predictor);
      const auto [took, size] = slowest({run(arranged, plan), static_cast<std::int64_t>(arranged.micro_batch)});
      if (took == 0) return {};
      sum.microseconds += took;
      ++sum.sizes[static_cast<int>(size)];
    }
    return sum;
  }
  bool time_is_up() const { return spent_ > allowance_; }

 private:
  struct One {
    std::int64_t microseconds = 0, micro_batch = 1;
  };
  struct Drawn {
    std::vector<Sample> samples;
    std::vector<model::StreamSample> share;
  };

  // On the slowest rank; 0 when it does not fit some rank.
  std::int64_t time_once(const memory::Plan& plan) {
    std::vector<model::StreamSample> samples;
    for (int i = 0; i < plan.micro_batch; ++i) samples.push_back({&sample_, static_cast<std::uint64_t>(i)});
    return slowest({once(samples, plan), plan.micro_batch}).microseconds;
  }
  One slowest(const One& mine) {
    One most;
    const std::vector<std::int64_t> numbers = {mine.microseconds, mine.micro_batch};
    for (const auto& theirs : ddp::share_numbers(session_.communicator, numbers)) {
      if (theirs.at(0) == 0) return {};
      if (theirs.at(0) > most.microseconds) most = {theirs.at(0), theirs.at(1)};
    }
    spent_ += most.microseconds;
    return most;
  }
  // Read once.
  std::span<const model::StreamSample> share_of(std::int64_t step, std::int64_t resolution) {
    const auto place = static_cast<std::size_t>(step - 1);
    if (place < drawn_.size()) return drawn_[place].share;
    const auto [begin, end] = data::share_of_step(step, session_.config.batch.effective, session_.communicator.rank(),
                                                  session_.communicator.world());
    Drawn& drawn = drawn_.emplace_back();
    for (std::uint64_t position = begin; position < end; ++position)
      drawn.samples.push_back(session_.source.load_at(session_.stream.at(position), resolution));
    for (std::uint64_t position = begin; position < end; ++position)
      drawn.share.push_back({&drawn.samples[static_cast<std::size_t>(position - begin)], position});
    return drawn.share;
  }
  // 0 when it does not fit this rank.
  std::int64_t run(const ArrangedShare& arranged, const memory::Plan& plan) {
    const std::span<const model::StreamSample> all(arranged.samples);
    std::int64_t sum = 0;
    for (std::size_t begin = 0; begin < all.size(); begin += arranged.micro_batch) {
      const std::int64_t one = once(all.subspan(begin, std::min(arranged.micro_batch, all.size() - begin)), plan);
      if (one == 0) return 0;
      sum += one;
    }
    return sum;
  }
  std::int64_t once(std::span<const model::StreamSample> samples, const memory::Plan& plan) {
    Session& s = session_;
    if (s.meter.live() + s.predictor->bytes(shape_of(samples), plan) > s.meter.budget()) return 0;
    bool failed = false;
    const auto start = Clock::now();
    try {
      const auto batch = model::pack(samples, rules_, at::Device(at::kCPU));
      forward_backward(*s.model, batch, recompute_of(plan), s.config.batch.effective);
    } catch (const std::exception&) {
      if (!memory::is_out_of_memory()) throw;
      failed = true;
    }
    const auto took = std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - start).count();
    if (failed) memory::drain();
    s.buffers->discard_staging();
    return failed ? 0 : std::max<std::int64_t>(1, took);
  }

  Session& session_;
  std::int64_t allowance_;
  Sample sample_;
  std::deque<Drawn> drawn_;  // by step; shares point into it
  model::PackingRules rules_;
  std::int64_t spent_ = 0;  // microseconds; the same on every rank
};

std::int64_t extra(std::int64_t with, std::int64_t without) {
  return std::max(kLeastExtra, (with - without) * kWhole / std::max<std::int64_t>(1, without));
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
  for (const int n : sizes_to_time(useful)) {
    if (stopwatch.time_is_up()) break;
    memory::Plan plan;
    plan.micro_batch = n;
    const std::int64_t took = stopwatch.time(plan);
    if (took == 0) break;
    costs.points.push_back({n, took});
  }
  if (!costs.points.empty()) {
    time_extras(stopwatch, costs.points.front().samples, costs.points.front().microseconds, model, costs);
    return costs;
  }
  // Not even the smallest fits as it is: from what it takes with everything recomputed, by the usual share.
  memory::Plan least;
  least.micro_batch = useful.front();
  least.recompute_blocks = model.language_blocks();
  least.recompute_expert = model.expert_blocks();
  const std::int64_t took = std::max<std::int64_t>(1, stopwatch.time(least));
  const std::int64_t share = kWhole + costs.language_recompute + costs.expert_recompute;
  costs.points.push_back({least.micro_batch, std::max<std::int64_t>(1, took * kWhole / share)});
  return costs;
}

namespace {

// Whether two plans are the same work. They differ in the micro-batch that they begin with at most, and steps are
// filled: what takes the same time in the model is filled alike.
bool alike(const memory::Candidate& a, const memory::Candidate& b) {
  memory::Plan plan = a.plan;
  plan.micro_batch = b.plan.micro_batch;
  return plan == b.plan && a.microseconds == b.microseconds;
}

// The fastest of the candidates that fit and show the largest pictures, one of each that are alike, as places in the
// table.
std::vector<std::size_t> contenders(const memory::CandidateTable& table, const memory::ChoiceLimits& limits,
                                    const memory::PolicyState& known) {
  std::vector<std::size_t> places;
  const auto all = table.all();
  for (std::size_t i = 0; i < all.size() && places.size() < kContenders; ++i) {
    if (memory::choose(memory::CandidateTable({all[i]}), limits, known) == nullptr) continue;
    if (!places.empty()) {
      const memory::Candidate& fastest = all[places.front()];
      if (all[i].plan.resolution != fastest.plan.resolution) break;
      if (all[i].microseconds - fastest.microseconds > fastest.microseconds / kWhole * kContenderGap) break;
    }
    if (std::none_of(places.begin(), places.end(), [&](std::size_t place) { return alike(all[place], all[i]); }))
      places.push_back(i);
  }
  return places;
}

// The faster half of those that still run, two at least; what does not fit is out.
void keep_faster_half(std::vector<std::size_t>& running, std::span<const Stopwatch::Shares> best) {
  std::erase_if(running, [&](std::size_t i) { return best[i].microseconds == 0; });
  std::sort(running.begin(), running.end(), [&](std::size_t a, std::size_t b) {
    return std::pair(best[a].microseconds, a) < std::pair(best[b].microseconds, b);
  });
  running.resize(std::min(running.size(), std::max<std::size_t>(2, running.size() / 2)));
}

// The first steps' shares under each plan. In a round all that are still in the race take their turns, so that what
// else the machine does for a while slows all of them; the better of two rounds counts. Then half as many run shares of
// twice as many steps. No time for what does not fit; none at all where the allowance ends before all were timed twice.
std::vector<Stopwatch::Shares> time_in_turns(Session& session, std::span<const memory::Plan> plans,
                                             const memory::PolicyState& known, std::int64_t allowance) {
  std::vector<Stopwatch::Shares> best(plans.size());
  if (plans.empty()) return best;
  Stopwatch stopwatch(session, plans.front().resolution, allowance);
  std::vector<std::size_t> running(plans.size());
  std::iota(running.begin(), running.end(), std::size_t{0});
  std::int64_t steps = kFirstSteps;
  for (int round = 0; round < kRounds; ++round) {
    const bool second = round % 2 == 1;
    for (const std::size_t i : running) {
      if (stopwatch.time_is_up()) return round < 2 ? std::vector<Stopwatch::Shares>(plans.size()) : best;
      const auto took = stopwatch.time_shares(plans[i], std::min(steps, session.config.train.max_steps), known);
      // The very first only warms up.
      if (round < 2 || !second || took.microseconds == 0 || took.microseconds < best[i].microseconds) best[i] = took;
    }
    if (second) keep_faster_half(running, best);
    if (second) steps *= 2;
  }
  return best;
}

// Timing is to take a small part of a run.
std::int64_t allowance_for(const Session& session, std::span<const std::size_t> places,
                           std::span<const memory::Candidate> all) {
  const std::int64_t run = places.empty() ? 0 : all[places.front()].microseconds;
  return std::min(kMostMicroseconds, memory::scaled(run, session.config.train.max_steps, kLeastRun));
}

}  // namespace

memory::CandidateTable time_contenders(Session& session, const memory::CandidateTable& table,
                                       const memory::ChoiceLimits& limits, const memory::PolicyState& known) {
  const auto before = table.all();
  const auto places = contenders(table, limits, known);
  std::vector<memory::Plan> plans;
  for (const std::size_t place : places) plans.push_back(before[place].plan);
  const auto times = time_in_turns(session, plans, known, allowance_for(session, places, before));
  std::int64_t modelled = 0, measured = 0;
  std::vector<std::int64_t> known_times(before.size(), 0);
  for (std::size_t i = 0; i < places.size(); ++i) {
    const auto& [sum, sizes] = times[i];
    if (sum == 0) continue;
    const memory::Candidate& one = before[places[i]];
    std::int64_t steps = 0;
    for (const auto& [size, count] : sizes) steps += count;
    const std::int64_t took = std::max<std::int64_t>(1, sum / steps);
    // The first steps were timed. How much longer or shorter the run's others are, the model says.
    const std::int64_t model = memory::filled_microseconds(session.costs, one.plan, session.share, sizes);
    modelled += model;
    measured += took;
    for (std::size_t k = 0; k < before.size(); ++k)
      if (alike(before[k], one)) known_times[k] = memory::scaled(took, one.microseconds, model);
  }
  if (measured == 0) return table;
  std::vector<memory::Candidate> all(before.begin(), before.end());
  for (std::size_t k = 0; k < all.size(); ++k) {
    const std::int64_t guess = memory::scaled(all[k].microseconds, measured, modelled);
    all[k].microseconds = std::max<std::int64_t>(1, known_times[k] > 0 ? known_times[k] : guess);
  }
  return memory::CandidateTable(std::move(all));
}

namespace {

// Microseconds of the largest share in a step of the run, filled as its steps will be under the smallest budget at the
// start.
std::int64_t filled_microseconds(Session& session, const memory::Candidate& judged, const memory::FillLimits& limits,
                                 const memory::PolicyState& known) {
  const std::int64_t room = memory::fill_bytes(judged, limits, known) - session.meter.live();
  const auto fits = [&](const memory::MicroBatchShape& shape) {
    return session.predictor->fits(shape, judged.plan, room);
  };
  Draws& draws = session.draws_at(judged.plan.resolution);
  const auto sizes = draws.filled(judged.plan.micro_batch, session.fill_most(), fits);
  const std::int64_t time = memory::filled_microseconds(session.costs, judged.plan, session.share, sizes);
  // Timed was the resolution of the start. Another's time stands in no comparison but with its own; it is for people.
  const auto weight = [&](std::int64_t resolution) {
    const auto one = session.draws_at(static_cast<int>(resolution)).heaviest(1);
    return std::max<std::int64_t>(1, one.tokens + one.patches);
  };
  return std::max<std::int64_t>(
      1, memory::scaled(time, weight(judged.plan.resolution), weight(session.config.data.resolution)));
}

// What needs least at each lower resolution: pictures are made smaller only where nothing else fits.
void add_lower_resolutions(const Config& config, std::vector<memory::Plan>& plans) {
  const auto lean = [](const memory::Plan& plan) { return std::pair(-plan.micro_batch, plan.recompute_blocks); };
  std::vector<memory::Plan> leanest;
  for (const auto& plan : plans) {
    if (!leanest.empty() && lean(plan) < lean(leanest.front())) continue;
    if (!leanest.empty() && lean(plan) > lean(leanest.front())) leanest.clear();
    leanest.push_back(plan);
  }
  for (const int resolution : lower_resolutions(config)) {
    for (memory::Plan plan : leanest) {
      plan.resolution = resolution;
      plans.push_back(plan);
    }
  }
}

}  // namespace

namespace {

// Language blocks, the expert beside them or not, the vision tower where all of both are recomputed, and offload.
std::vector<memory::Plan> ways_to_recompute(const Config& config, const model::VlaModel& model) {
  const bool free = config.memory.recompute.is("auto") && turns(config, "recompute");
  std::vector<memory::Plan> ways;
  const auto add = [&](memory::Plan plan) {
    plan.offload = plan.recompute_blocks > 0 && config.memory.offload.is("on");
    ways.push_back(plan);
    if (plan.recompute_blocks == 0 || plan.offload || !may_offload(config)) return;
    plan.offload = true;
    ways.push_back(plan);
  };
  for (const int language : language_choices(config, model.language_blocks())) {
    memory::Plan plan{static_cast<int>(config.data.resolution), 1, language};
    add(plan);
    if (!free) continue;
    plan.recompute_expert = model.expert_blocks();
    add(plan);
    plan.recompute_vision = language == model.language_blocks() ? model.vision_blocks() : 0;
    if (plan.recompute_vision > 0) add(plan);
  }
  return ways;
}

}  // namespace

std::vector<memory::Plan> allowed_plans(const Config& config, const model::VlaModel& model, std::int64_t share) {
  auto sizes = memory::useful_micro_batches(share, static_cast<int>(config.batch.min_micro),
                                            static_cast<int>(config.batch.max_micro));
  if (!turns(config, "micro_batch") || !config.batch.micro.is("auto")) {
    // Where it begins must be among them; where it may not move, it is the only one.
    const int given = config.batch.micro.is("auto") ? sizes.back() : static_cast<int>(config.batch.micro.as_integer());
    if (!turns(config, "micro_batch")) sizes.clear();
    if (std::find(sizes.begin(), sizes.end(), given) == sizes.end()) sizes.push_back(given);
  }
  const auto ways = ways_to_recompute(config, model);
  std::vector<memory::Plan> plans;
  for (const int n : sizes) {
    for (memory::Plan plan : ways) {
      plan.micro_batch = n;
      plans.push_back(plan);
    }
  }
  add_lower_resolutions(config, plans);
  return plans;
}

memory::CandidateTable make_candidates(Session& session) {
  std::string text;
  if (session.communicator.rank() == 0) {
    memory::PolicyState known;
    known.calibration = session.calibration;
    const auto tightest = std::min_element(session.budgets.begin(), session.budgets.end());
    const memory::FillLimits limits{static_cast<int>(tightest - session.budgets.begin()), *tightest,
                                    memory::parse_fraction(session.config.memory.target, "memory.target"), 0};
    std::vector<memory::Candidate> all;
    for (const memory::Plan& plan : allowed_plans(session.config, *session.model, session.share)) {
      memory::Candidate& one = all.emplace_back(memory::Candidate{plan, session.predicted_peak(plan), 1});
      one.microseconds = filled_microseconds(session, one, limits, known);
    }
    text = memory::to_text(memory::CandidateTable(std::move(all)));
  }
  return memory::candidate_table_from_text(ddp::share_text(session.communicator, text).front());
}

}  // namespace plimsoll::train
