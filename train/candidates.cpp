#include "train/candidates.h"

#include <algorithm>
#include <chrono>

#include "core/error.h"
#include "ddp/handshake.h"
#include "memory/planning/packing.h"
#include "memory/planning/wide.h"
#include "train/options.h"

namespace plimsoll::train {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::int64_t kWhole = 10000;
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
  Stopwatch(Session& session, std::int64_t resolution)
      : session_(session),
        sample_(session.source.load_at(middling(session.source), resolution)),
        rules_(session.model->packing_rules(static_cast<std::uint64_t>(session.config.run.seed), false)) {}

  /// Microseconds of a micro-batch on the slowest rank: the better of two, after one to warm up. 0 when it does not fit
  /// some rank.
  std::int64_t time(const memory::Plan& plan) {
    const std::int64_t warming = time_once(plan);
    if (warming == 0 || time_is_up()) return warming;
    const std::int64_t best = time_once(plan);
    if (best == 0 || time_is_up()) return best;
    const std::int64_t again = time_once(plan);
    return again == 0 ? 0 : std::min(best, again);
  }
  /// Microseconds of a share on the slowest rank, and how many samples it took together.
  struct Share {
    std::int64_t microseconds = 0, micro_batch = 1;
  };
  /// One run of what every rank draws in the first step, filled as that step will be. No time when it does not fit some
  /// rank.
  Share time_share(const memory::Plan& plan, const memory::Fill& fill) {
    const auto arranged = arrange(first_share(plan.resolution), plan, fill, *session_.predictor);
    const std::span<const model::StreamSample> all(arranged.samples);
    std::int64_t sum = 0;
    for (std::size_t begin = 0; begin < all.size(); begin += arranged.micro_batch) {
      const std::int64_t one = once(all.subspan(begin, std::min(arranged.micro_batch, all.size() - begin)), plan);
      if (one == 0) {
        sum = 0;
        break;
      }
      sum += one;
    }
    return slowest({sum, static_cast<std::int64_t>(arranged.micro_batch)});
  }
  bool time_is_up() const { return static_cast<double>(spent_) > kMostSeconds * 1e6; }

 private:
  // On the slowest rank; 0 when it does not fit some rank.
  std::int64_t time_once(const memory::Plan& plan) {
    std::vector<model::StreamSample> samples;
    for (int i = 0; i < plan.micro_batch; ++i) samples.push_back({&sample_, static_cast<std::uint64_t>(i)});
    return slowest({once(samples, plan), plan.micro_batch}).microseconds;
  }
  Share slowest(const Share& mine) {
    Share most;
    const std::vector<std::int64_t> numbers = {mine.microseconds, mine.micro_batch};
    for (const auto& theirs : ddp::share_numbers(session_.communicator, numbers)) {
      if (theirs.at(0) == 0) return {};
      if (theirs.at(0) > most.microseconds) most = {theirs.at(0), theirs.at(1)};
    }
    spent_ += most.microseconds;
    return most;
  }
  // Read once.
  const std::vector<model::StreamSample>& first_share(std::int64_t resolution) {
    if (!share_.empty()) return share_;
    const auto [begin, end] = data::share_of_step(1, session_.config.batch.effective, session_.communicator.rank(),
                                                  session_.communicator.world());
    for (std::uint64_t position = begin; position < end; ++position)
      drawn_.push_back(session_.source.load_at(session_.stream.at(position), resolution));
    for (std::uint64_t position = begin; position < end; ++position)
      share_.push_back({&drawn_[static_cast<std::size_t>(position - begin)], position});
    return share_;
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
  Sample sample_;
  std::vector<Sample> drawn_;
  std::vector<model::StreamSample> share_;
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
  Stopwatch stopwatch(session, session.config.data.resolution);
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

// The fastest of the candidates that fit and show the largest pictures, as places in the table.
std::vector<std::size_t> contenders(const memory::CandidateTable& table, const memory::ChoiceLimits& limits,
                                    const memory::PolicyState& known) {
  std::vector<std::size_t> places;
  std::int64_t fastest = 0;
  const auto all = table.all();
  for (std::size_t i = 0; i < all.size() && places.size() < kContenders; ++i) {
    if (memory::choose(memory::CandidateTable({all[i]}), limits, known) == nullptr) continue;
    if (fastest == 0) fastest = all[i].microseconds;
    if (!places.empty() && all[i].plan.resolution != all[places.front()].plan.resolution) break;
    if (all[i].microseconds - fastest > fastest / kWhole * kContenderGap) break;
    places.push_back(i);
  }
  return places;
}

// The first step's share under each plan: the best of some rounds in which all take their turns, so that what else the
// machine does for a while slows all of them. No time for what does not fit.
std::vector<Stopwatch::Share> time_in_turns(Session& session, std::span<const memory::Plan> plans,
                                            const memory::PolicyState& known) {
  std::vector<Stopwatch::Share> best(plans.size());
  if (plans.empty()) return best;
  Stopwatch stopwatch(session, plans.front().resolution);
  for (int round = 0; round <= kRounds && !stopwatch.time_is_up(); ++round) {
    for (std::size_t i = 0; i < plans.size() && !stopwatch.time_is_up(); ++i) {
      if (round > 0 && best[i].microseconds == 0) continue;
      const auto took = stopwatch.time_share(plans[i], session.fill(plans[i], 1, known));
      const bool faster = took.microseconds < best[i].microseconds;
      if (round < 2 || took.microseconds == 0 || faster) best[i] = took;  // the first round warms up
    }
  }
  return best;
}

}  // namespace

memory::CandidateTable time_contenders(Session& session, const memory::CandidateTable& table,
                                       const memory::ChoiceLimits& limits, const memory::PolicyState& known) {
  std::vector<memory::Candidate> all(table.all().begin(), table.all().end());
  const auto places = contenders(table, limits, known);
  std::vector<memory::Plan> plans;
  for (const std::size_t place : places) plans.push_back(all[place].plan);
  const auto times = time_in_turns(session, plans, known);
  std::vector<bool> timed(all.size(), false);
  std::int64_t modelled = 0, measured = 0;
  for (std::size_t i = 0; i < places.size(); ++i) {
    const auto& [took, size] = times[i];
    if (took == 0) continue;
    memory::Candidate& one = all[places[i]];
    timed[places[i]] = true;
    // One step was timed. How much longer or shorter the run's others are, the model says.
    memory::Plan filled = one.plan;
    filled.micro_batch = static_cast<int>(size);
    const std::int64_t whole = memory::share_microseconds(session.costs, filled, session.share);
    modelled += whole;
    measured += took;
    one.microseconds = std::max<std::int64_t>(1, memory::scaled(took, one.microseconds, whole));
  }
  if (measured == 0) return table;
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (!timed[i])
      all[i].microseconds = std::max<std::int64_t>(1, memory::scaled(all[i].microseconds, measured, modelled));
  }
  return memory::CandidateTable(std::move(all));
}

namespace {

// Microseconds of the largest share in a step of the run, filled as its steps will be under the smallest budget at the
// start. Bytes go nearly by tokens and patches, and a time needs no more: no dry run is made here.
std::int64_t filled_microseconds(Session& session, const memory::Candidate& judged, const memory::FillLimits& limits,
                                 const memory::PolicyState& known) {
  const std::int64_t live = session.meter.live();
  const std::int64_t room = memory::fill_bytes(judged, limits, known) - live;
  const std::int64_t needed = std::max<std::int64_t>(1, judged.bytes - live);
  Draws& draws = session.draws_at(judged.plan.resolution);
  memory::MicroBatchShape limit = draws.heaviest(judged.plan.micro_batch);
  limit.tokens = memory::scaled(limit.tokens, room, needed);
  limit.patches = memory::scaled(limit.patches, room, needed);
  const auto sizes = draws.filled(judged.plan.micro_batch, session.fill_most(), limit);
  const std::int64_t time = memory::filled_microseconds(session.costs, judged.plan, session.share, sizes);
  // Timed was the resolution of the start. Another's time stands in no comparison but with its own; it is for people.
  const auto weight = [&](std::int64_t resolution) {
    const auto one = session.draws_at(static_cast<int>(resolution)).heaviest(1);
    return std::max<std::int64_t>(1, one.tokens + one.patches);
  };
  return std::max<std::int64_t>(
      1, memory::scaled(time, weight(judged.plan.resolution), weight(session.config.data.resolution)));
}

}  // namespace

namespace {

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

std::vector<memory::Plan> allowed_plans(const Config& config, const model::VlaModel& model, std::int64_t share) {
  auto sizes = memory::useful_micro_batches(share, static_cast<int>(config.batch.min_micro),
                                            static_cast<int>(config.batch.max_micro));
  if (!turns(config, "micro_batch") || !config.batch.micro.is("auto")) {
    // Where it begins must be among them; where it may not move, it is the only one.
    const int given = config.batch.micro.is("auto") ? sizes.back() : static_cast<int>(config.batch.micro.as_integer());
    if (!turns(config, "micro_batch")) sizes.clear();
    if (std::find(sizes.begin(), sizes.end(), given) == sizes.end()) sizes.push_back(given);
  }
  const bool free_recompute = config.memory.recompute.is("auto") && turns(config, "recompute");
  std::vector<memory::Plan> plans;
  for (const int n : sizes) {
    for (const int language : language_choices(config, model.language_blocks())) {
      memory::Plan plan{static_cast<int>(config.data.resolution), n, language};
      const bool on = language > 0 && config.memory.offload.is("on");
      plan.offload = on;
      plans.push_back(plan);
      if (language == 0 || language < model.language_blocks()) continue;
      plan.offload = may_offload(config);
      if (plan.offload && !on) plans.push_back(plan);
      if (!free_recompute) continue;
      plan.recompute_vision = model.vision_blocks();
      plan.recompute_expert = model.expert_blocks();
      plans.push_back(plan);
      plan.offload = false;
      if (may_offload(config) && !on) plans.push_back(plan);
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
