#include "train/candidates.h"

#include <algorithm>
#include <map>
#include <tuple>
#include <utility>

#include "ddp/handshake.h"
#include "memory/planning/ways.h"
#include "memory/planning/wide.h"
#include "train/options.h"

namespace plimsoll::train {
namespace {

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

/// Times of the run's steps, each in the fastest way that fits it.
class StepTimes {
 public:
  StepTimes(Session& session, const memory::CandidateTable& judged, const memory::FillLimits& limits,
            const memory::PolicyState& known)
      : session_(session), judged_(judged), limits_(limits), known_(known) {}

  // Microseconds of the largest share under the smallest budget at the start.
  std::int64_t of(const memory::Candidate& one) {
    const std::int64_t room = memory::fill_bytes(one, limits_, known_) - session_.meter.live();
    const std::int64_t own = memory::share_microseconds(session_.costs, one.plan, session_.share);
    const int resolution = one.plan.resolution;
    // Nearly all candidates have one room; where micro-batches may not move, one size has ways of its own.
    const int size = turns(session_.config, "micro_batch") ? 0 : one.plan.micro_batch;
    const auto [found, added] = times_.try_emplace({resolution, size, room});
    if (added) found->second = fastest(resolution, size, room);
    const std::int64_t time = memory::mean_microseconds(found->second, own);
    // Timed was the resolution of the start. Another's time stands in no comparison but with its own; it is for people.
    const std::int64_t timed = weight(static_cast<int>(session_.config.data.resolution));
    return std::max<std::int64_t>(1, memory::scaled(time, weight(resolution), timed));
  }

 private:
  // Of each step that is looked at the time of the first way that fits; 0 where none does.
  std::vector<std::int64_t> fastest(int resolution, int size, std::int64_t room) {
    std::vector<memory::Candidate> allowed;
    for (const auto& one : judged_.all())
      if (size == 0 || one.plan.micro_batch == size) allowed.push_back(one);
    const auto ways = memory::ways_of(allowed, session_.costs, session_.share);
    Draws& draws = session_.draws_at(resolution);
    return memory::fastest_microseconds(ways, draws.looked(), [&](std::size_t step, const memory::Plan& way) {
      const auto& shape = draws.heaviest(step, way.micro_batch);
      // Of live bytes nearly all is known by bounds, and one step more or less is worth no dry run.
      if (!session_.meter.reserves()) return session_.predictor->known_to_fit(shape, way, room).value_or(false);
      return session_.predictor->fits(shape, way, room);
    });
  }

  std::int64_t weight(int resolution) const {
    const auto one = session_.draws_at(resolution).heaviest(1);
    return std::max<std::int64_t>(1, one.tokens + one.patches);
  }

  Session& session_;
  const memory::CandidateTable& judged_;
  const memory::FillLimits& limits_;
  const memory::PolicyState& known_;
  std::map<std::tuple<int, int, std::int64_t>, std::vector<std::int64_t>> times_;
};

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
  if (!config.batch.micro.is("auto")) {
    // Where it begins must be among them; where it may not move, it is the only one.
    const int given = static_cast<int>(config.batch.micro.as_integer());
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

namespace {

// Every rank makes a part of the dry runs, and all know what came of them: else each would make many of them again in
// its first steps. Not where reserved bytes are predicted, which turn on what a rank's own allocator holds.
void share_dry_runs(const Session& session, std::span<const memory::Plan> plans) {
  const auto world = static_cast<std::size_t>(session.communicator.world());
  if (world == 1 || session.meter.reserves()) return;
  std::vector<std::int64_t> mine;
  for (auto i = static_cast<std::size_t>(session.communicator.rank()); i < plans.size(); i += world)
    mine.insert(mine.end(), {session.micro_batch_bytes(plans[i]), session.evaluation_bytes(plans[i])});
  const auto all = ddp::share_numbers(session.communicator, mine);
  for (std::size_t i = 0; i < plans.size(); ++i)
    session.take_over(plans[i], all[i % world][i / world * 2], all[i % world][i / world * 2 + 1]);
}

}  // namespace

memory::CandidateTable make_candidates(Session& session) {
  const auto plans = allowed_plans(session.config, *session.model, session.share);
  share_dry_runs(session, plans);
  std::string text;
  if (session.communicator.rank() == 0) {
    memory::PolicyState known;
    known.calibration = session.calibration;
    const auto tightest = std::min_element(session.budgets.begin(), session.budgets.end());
    const memory::FillLimits limits{static_cast<int>(tightest - session.budgets.begin()), *tightest,
                                    target_of(session.config.memory), 0};
    std::vector<memory::Candidate> all;
    for (const memory::Plan& plan : plans) all.push_back({plan, session.predicted_peak(plan), 1});
    const memory::CandidateTable judged(all);
    StepTimes times(session, judged, limits, known);
    for (memory::Candidate& one : all) one.microseconds = times.of(one);
    text = memory::to_text(memory::CandidateTable(std::move(all)));
  }
  return memory::candidate_table_from_text(ddp::share_text(session.communicator, text).front());
}

}  // namespace plimsoll::train
