// Properties of the predictive policy over random tables, reports, states and sequences of them.
#include <gtest/gtest.h>

#include "memory/planning/predictive.h"
#include "tests/memory/planning/policy_cases.h"
#include "tests/memory/planning/without_rapidcheck.h"

#if __has_include(<rapidcheck/gtest.h>)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wshadow"
#include <rapidcheck/gtest.h>
#pragma GCC diagnostic pop

#include <algorithm>

namespace plimsoll::memory {
namespace {

constexpr std::int64_t kLargest = std::int64_t{1} << 37;

std::int64_t any(std::int64_t low, std::int64_t high) { return *rc::gen::inRange<std::int64_t>(low, high + 1); }
bool one_in(int n) { return any(1, n) == 1; }

/// Bytes grow roughly with the micro-batch and fall with recompute, as they do; exceptions are as likely as in life.
std::vector<Candidate> any_candidates() {
  PlanSpace space;
  space.share = any(1, 20);
  space.language = {0, 9, 18};
  space.offload = one_in(2);
  if (one_in(2)) space.resolutions = {one_in(3) ? 0 : 448, 420, 392};
  std::vector<Candidate> candidates;
  for (const Plan& plan : plans_of(space)) {
    if (one_in(4)) continue;
    const std::int64_t activations = plan.micro_batch * any(50, 200) * (plan.offload ? 1 : 20 - plan.recompute_blocks);
    candidates.push_back({plan, 1000 + activations, any(1000, 1000000)});
  }
  return candidates;
}

struct Scene {
  PolicyConfig config;
  std::vector<Candidate> candidates;
  CandidateTable table;
  int world = 1;
  std::int64_t usual = 1;  ///< a budget under which something fits and something does not
  Plan plan;
};

Plan any_plan(const CandidateTable& table) {
  if (table.empty() || one_in(8)) return {0, 77, 3};
  return table.all()[static_cast<std::size_t>(any(0, static_cast<std::int64_t>(table.all().size()) - 1))].plan;
}

Scene any_scene() {
  Scene scene;
  scene.config.kind = PolicyKind::kPredictive;
  scene.config.adjustment_frequency = static_cast<int>(any(1, 30));
  scene.config.cooldown_windows = static_cast<int>(any(0, 2));
  scene.config.history = static_cast<int>(any(3, 50));
  scene.candidates = any_candidates();
  scene.table = CandidateTable(scene.candidates);
  scene.world = static_cast<int>(any(1, 4));
  if (!scene.table.empty())
    scene.usual = scene.table.find(any_plan(scene.table)) == nullptr ? any(1, 100000)
                                                                     : scene.table.all()[0].bytes * any(50, 200) / 100;
  scene.usual = std::max<std::int64_t>(scene.usual, 1);
  scene.plan = any_plan(scene.table);
  return scene;
}

std::vector<RankUsage> any_reports(const Scene& scene, bool troubled = true) {
  std::vector<RankUsage> ranks;
  for (int rank = 0; rank < scene.world; ++rank) {
    RankUsage usage;
    usage.budget_bytes = one_in(10) ? any(1, kLargest) : std::max<std::int64_t>(1, scene.usual * any(80, 120) / 100);
    usage.peak_bytes = usage.budget_bytes * any(0, 110) / 100;
    if (troubled && one_in(12)) usage.retries = 1;
    if (troubled && one_in(20)) usage.allocator_retries = 1;
    if (usage.retries > 0) usage.failed_request_bytes = any(0, scene.usual / 4 + 1);
    if (one_in(2)) usage.predicted_peak_bytes = std::max<std::int64_t>(1, usage.peak_bytes * any(90, 120) / 100);
    ranks.push_back(usage);
  }
  return ranks;
}

/// One thing that happens to a run: a step's reports, a window's end, or a sample that does not fit alone.
struct Event {
  bool window = false;
  std::int64_t step = 0;
  std::vector<RankUsage> ranks;
  bool failed = false;
};

std::vector<Event> any_events(const Scene& scene, int most) {
  std::vector<Event> events;
  std::int64_t step = 0;
  const std::int64_t count = any(1, most);
  for (std::int64_t i = 0; i < count; ++i) {
    step += any(1, scene.config.adjustment_frequency);
    events.push_back({one_in(2), step, any_reports(scene), one_in(8)});
  }
  return events;
}

WindowSummary window_of(const Scene& scene, const Event& event) {
  const int steps = scene.config.adjustment_frequency;
  return {event.step - steps + 1, event.step, steps, event.ranks};
}

std::optional<Decision> happen(const Scene& scene, const Event& event, const Plan& plan, const CandidateTable& table,
                               PolicyState& state) {
  if (event.failed) {
    const RankUsage& rank = event.ranks.back();
    const FailureEntry failure{event.step,
                               static_cast<int>(event.ranks.size()) - 1,
                               rank.failed_request_bytes,
                               plan,
                               rank.budget_bytes,
                               rank.peak_bytes,
                               rank.predicted_peak_bytes};
    return escalate(scene.config, failure, {18, 0, 0}, state);
  }
  if (event.window) return decide_predictive(scene.config, window_of(scene, event), plan, table, state);
  return respond(scene.config, event.step, event.ranks, plan, table, state);
}

/// A state that a run may have come to; `plan` is the plan it has then.
PolicyState any_state(const Scene& scene, Plan& plan) {
  PolicyState state;
  for (const Event& event : any_events(scene, 6)) {
    if (const auto decision = happen(scene, event, plan, scene.table, state)) plan = decision->plan;
  }
  return state;
}

bool within(const CandidateTable& table, const Plan& plan, std::span<const RankUsage> ranks, std::int64_t target,
            const PolicyState& state) {
  const Candidate* candidate = table.find(plan);
  for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
    const std::int64_t bytes = state.calibration.corrected(static_cast<int>(rank), plan, candidate->bytes);
    // Far below 2^63 / 10000 unless a wild prediction scaled it, and then it does not fit either.
    if (bytes > kLargest * 100 || bytes * 10000 > target * ranks[rank].budget_bytes) return false;
  }
  return true;
}

std::vector<std::int64_t> budgets_of(std::span<const RankUsage> ranks) {
  std::vector<std::int64_t> budgets;
  for (const RankUsage& rank : ranks) budgets.push_back(rank.budget_bytes);
  return budgets;
}

RC_GTEST_PROP(PredictiveProperties, EveryRankDecidesAlikeHoweverItsStateWasStored, ()) {
  const Scene scene = any_scene();
  std::vector<Candidate> turned(scene.candidates.rbegin(), scene.candidates.rend());
  const CandidateTable made_elsewhere(turned), sent = candidate_table_from_text(to_text(scene.table));
  PolicyState kept, stored;
  Plan plan = scene.plan;
  for (const Event& event : any_events(scene, 20)) {
    PolicyState other = kept;
    const auto first = happen(scene, event, plan, scene.table, kept);
    const auto second = happen(scene, event, plan, made_elsewhere, other);
    stored = policy_state_from_json(to_json(stored));
    const auto third = happen(scene, event, plan, sent, stored);
    RC_ASSERT(first.has_value() == second.has_value() && first.has_value() == third.has_value());
    RC_ASSERT(kept == other && kept == stored);
    if (!first) continue;
    RC_ASSERT(to_json(*first) == to_json(*second) && to_json(*first) == to_json(*third));
    plan = first->plan;
  }
}

RC_GTEST_PROP(PredictiveProperties, APlanIsACandidateOrStays, ()) {
  const Scene scene = any_scene();
  PolicyState state;
  Plan plan = scene.plan;
  for (const Event& event : any_events(scene, 12)) {
    const auto decision = happen(scene, event, plan, scene.table, state);
    if (!decision) continue;
    RC_ASSERT(decision->before == plan);
    RC_ASSERT(decision->changed == (decision->plan != plan));
    RC_ASSERT((decision->direction == Direction::kHold) == !decision->changed);
    // What a failure forces need be no candidate.
    RC_ASSERT(!decision->changed || event.failed || bool{scene.table.find(decision->plan) != nullptr});
    RC_ASSERT(!event.failed ||
              (decision->plan.micro_batch <= plan.micro_batch && decision->plan.recompute_blocks >= 18));
    RC_ASSERT(event.window || decision->changed);
    plan = decision->plan;
  }
}

/// Failure after failure, to the end: no minimum is passed, nothing that saves memory is taken back, and pictures
/// become smaller only where nothing else is left.
RC_GTEST_PROP(PredictiveProperties, EscalationsStayAboveTheMinimumsAndEnd, ()) {
  Scene scene = any_scene();
  scene.config.kind = one_in(2) ? PolicyKind::kPredictive : PolicyKind::kFixed;
  scene.config.knobs = {Knob::kMicroBatch};
  if (one_in(2)) scene.config.knobs.push_back(Knob::kOffload);
  if (one_in(2)) scene.config.knobs.push_back(Knob::kResolution);
  scene.config.micro_batch.minimum = static_cast<int>(any(1, 6));
  scene.config.resolution.minimum = static_cast<int>(any(28, 448));
  const TowerBlocks blocks{static_cast<int>(any(0, 18)), static_cast<int>(any(0, 4)), static_cast<int>(any(0, 4))};
  const Plan start = scene.plan;
  const int least_micro = std::min(start.micro_batch, scene.config.micro_batch.minimum);
  const int least_side = std::min(start.resolution, scene.config.resolution.minimum);
  PolicyState state;
  Plan plan = start;
  int steps = 0;
  while (const auto decision = escalate(scene.config, {100 + steps, 0, 50, plan, 1000, 900, 800}, blocks, state)) {
    const Plan next = decision->plan;
    RC_ASSERT(decision->changed && decision->before == plan && next != plan);
    RC_ASSERT(next.micro_batch == least_micro && next.resolution >= least_side);
    RC_ASSERT(next.recompute_blocks >= blocks.language && next.recompute_blocks >= plan.recompute_blocks);
    RC_ASSERT(next.offload || !plan.offload);
    RC_ASSERT(next.resolution == plan.resolution || recomputes_alike(next, plan));
    RC_ASSERT(next.resolution <= plan.resolution && plan.resolution - next.resolution <= scene.config.resolution.step);
    plan = next;
    ++steps;
    RC_ASSERT(steps <= 20);
  }
}

RC_GTEST_PROP(PredictiveProperties, AChangeNeverGoesAboveTheTargetWhenAnythingFits, ()) {
  const Scene scene = any_scene();
  Plan plan = scene.plan;
  PolicyState state = any_state(scene, plan);
  const Event event{one_in(2), 1000, any_reports(scene), false};
  const auto decision = happen(scene, event, plan, scene.table, state);
  const std::vector<std::int64_t> budgets = budgets_of(event.ranks);
  const Candidate* best = choose(scene.table, {budgets, scene.config.target, event.step}, state);
  if (best != nullptr) RC_ASSERT(within(scene.table, best->plan, event.ranks, scene.config.target, state));
  if (!decision || !decision->changed || best == nullptr) return;
  RC_ASSERT(within(scene.table, decision->plan, event.ranks, scene.config.target, state));
}

RC_GTEST_PROP(PredictiveProperties, LessBudgetNeverPredictsMoreThroughput, ()) {
  const Scene scene = any_scene();
  Plan plan = scene.plan;
  const PolicyState state = any_state(scene, plan);
  const std::vector<std::int64_t> budgets = budgets_of(any_reports(scene));
  std::vector<std::int64_t> lower = budgets;
  for (std::int64_t& budget : lower) budget = budget * any(50, 100) / 100;
  const std::int64_t step = any(0, 400);
  const Candidate* before = choose(scene.table, {budgets, scene.config.target, step}, state);
  const Candidate* after = choose(scene.table, {lower, scene.config.target, step}, state);
  if (after == nullptr) return;
  RC_ASSERT(bool{before != nullptr});
  RC_ASSERT(!sharper(after->plan, before->plan));
  if (after->plan.resolution == before->plan.resolution) RC_ASSERT(after->microseconds >= before->microseconds);
}

/// Without what the failure taught: only the wait can keep the plan away.
RC_GTEST_PROP(PredictiveProperties, APlanThatFailedIsNotChosenBeforeItsWaitIsOver, ()) {
  Scene scene = any_scene();
  scene.config.history = 50;
  scene.candidates.push_back({{0, 40, 0}, 500, 1000001});  // needs less and takes longer than any other
  scene.candidates.push_back({{0, 41, 0}, 700, 999});      // is faster, and needs less than all but it
  scene.table = CandidateTable(scene.candidates);
  const Candidate* failed = scene.table.find(scene.plan);
  if (failed == nullptr) failed = scene.table.find({0, 41, 0});
  const auto needs_less = [&](const Candidate& candidate) { return candidate.bytes < failed->bytes; };
  PolicyState state;
  std::int64_t step = 100;
  const std::int64_t failures = any(1, 4);
  std::vector<std::int64_t> failed_under(static_cast<std::size_t>(scene.world), 0);
  for (std::int64_t i = 0; i < failures; ++i) {
    step += scene.config.adjustment_frequency;
    std::vector<RankUsage> reports = any_reports(scene, false);
    reports[0].retries = 1;
    reports[0].predicted_peak_bytes = std::min(reports[0].predicted_peak_bytes, failed->bytes);  // not filled
    failed_under[0] = std::max(failed_under[0], reports[0].budget_bytes);
    if (one_in(2)) {
      respond(scene.config, step, reports, failed->plan, scene.table, state);
    } else {
      decide_predictive(scene.config, window_of(scene, {true, step, reports, false}), failed->plan, scene.table, state);
    }
  }
  state.calibration = {};
  const std::int64_t until =
      step + scene.config.first_wait_windows * (scene.config.adjustment_frequency << (failures - 1));
  Plan plan = any_plan(scene.table);
  for (step += 1; step < until; step += any(1, scene.config.adjustment_frequency)) {
    Event event{one_in(2), step, any_reports(scene, false), false};
    // Less than 5 % more than it failed under.
    event.ranks[0].budget_bytes = std::min(event.ranks[0].budget_bytes, failed_under[0] * 104 / 100 + 1);
    if (event.ranks[0].budget_bytes * 100 >= failed_under[0] * 105) continue;
    const Plan before = plan;
    if (const auto decision = happen(scene, event, plan, scene.table, state)) plan = decision->plan;
    if (plan != before) RC_ASSERT(needs_less(*scene.table.find(plan)));
    state.calibration = {};
  }
}

RC_GTEST_PROP(PredictiveProperties, AnyPlanCutsTheEffectiveBatchExactly, ()) {
  const std::int64_t effective = any(1, 100000), world = any(1, std::min<std::int64_t>(64, effective));
  const std::int64_t largest = (effective - 1) / world + 1;
  const int low = static_cast<int>(any(1, 64)), high = static_cast<int>(any(low, 128));
  for (int size : useful_micro_batches(largest, low, high)) {
    RC_ASSERT(size >= 1 && size <= high && size <= largest && (size >= low || size == largest));
    std::int64_t all = 0;
    for (std::int64_t rank = 0; rank < world; ++rank) {
      const std::int64_t share = effective / world + (rank < effective % world ? 1 : 0);
      const Cut cut = cut_share(share, size);
      RC_ASSERT(cut.rest >= 0 && cut.rest < size);
      all += cut.whole * size + cut.rest;
    }
    RC_ASSERT(all == effective);
  }
}

RC_GTEST_PROP(PredictiveProperties, ASettledPlanStays, ()) {
  const Scene scene = any_scene();
  Plan plan = scene.plan;
  PolicyState state = any_state(scene, plan);
  const Event event{true, 1000, any_reports(scene, false), false};
  decide_predictive(scene.config, window_of(scene, event), plan, scene.table, state);
  const bool is_settled = settled(scene.config, window_of(scene, event), plan, scene.table, state);
  RC_CLASSIFY(is_settled);
  if (!is_settled) return;
  state.cooldown = 0;
  const Decision again = decide_predictive(scene.config, window_of(scene, event), plan, scene.table, state);
  RC_ASSERT(!again.changed);
}

}  // namespace
}  // namespace plimsoll::memory

#else
TEST(PredictiveProperties, NeedRapidCheck) { plimsoll::memory::without_rapidcheck(); }
#endif
