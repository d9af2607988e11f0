// Properties of the reactive policy over random windows, plans and settings.
#include <gtest/gtest.h>

#include "tests/memory/planning/policy_cases.h"
#include "tests/memory/planning/without_rapidcheck.h"

#if __has_include(<rapidcheck/gtest.h>)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wshadow"
#include <rapidcheck/gtest.h>
#pragma GCC diagnostic pop

namespace plimsoll::memory {
namespace {

struct Scene {
  PolicyConfig config;
  WindowSummary window;
  Plan plan;
  std::int64_t share = 1;
};

RankUsage any_rank() {
  const auto budget = *rc::gen::inRange<std::int64_t>(1, std::int64_t{1} << 37);
  // Around the band as often as anywhere.
  const auto percent = *rc::gen::inRange<std::int64_t>(0, 130);
  return {.budget_bytes = budget,
          .peak_bytes = budget * percent / 100,
          .retries = *rc::gen::element<std::int64_t>(0, 0, 0, 0, 0, 1)};
}

Scene any_scene() {
  Scene scene;
  scene.config = *rc::gen::element(PolicyConfig{}, both_knobs(), classic_profile());
  scene.share = *rc::gen::inRange<std::int64_t>(1, 100);
  const KnobRange micro = scene.config.micro_batch, pixels = scene.config.resolution;
  const int cap = static_cast<int>(std::min<std::int64_t>(micro.maximum, scene.share));
  scene.plan.micro_batch = *rc::gen::inRange(std::min(micro.minimum, cap), cap + 1);
  scene.plan.resolution =
      pixels.minimum + pixels.step * *rc::gen::inRange(0, (pixels.maximum - pixels.minimum) / pixels.step + 1);
  scene.plan.recompute_blocks = *rc::gen::inRange(0, 10);
  scene.window = {1, 25, 25, {}};
  const int world = *rc::gen::inRange(1, 5);
  for (int rank = 0; rank < world; ++rank) scene.window.ranks.push_back(any_rank());
  return scene;
}

bool any_rank_above(const Scene& scene, std::int64_t fraction) {
  return std::any_of(scene.window.ranks.begin(), scene.window.ranks.end(),
                     [&](const RankUsage& rank) { return rank.peak_bytes * 10000 > fraction * rank.budget_bytes; });
}

bool any_retry(const Scene& scene) {
  return std::any_of(scene.window.ranks.begin(), scene.window.ranks.end(),
                     [](const RankUsage& rank) { return rank.retries > 0; });
}

Decision decide_fresh(const Scene& scene) {
  PolicyState state;
  return decide(scene.config, scene.window, scene.plan, scene.share, state);
}

RC_GTEST_PROP(PolicyProperties, PlansStayWithinTheBounds, ()) {
  const Scene scene = any_scene();
  const Plan plan = decide_fresh(scene).plan;
  RC_ASSERT(plan.micro_batch >= std::min<std::int64_t>(scene.config.micro_batch.minimum, scene.share));
  RC_ASSERT(plan.micro_batch <= std::min<std::int64_t>(scene.config.micro_batch.maximum, scene.share));
  RC_ASSERT(plan.resolution >= scene.config.resolution.minimum && plan.resolution <= scene.config.resolution.maximum);
  RC_ASSERT(plan.recompute_blocks == scene.plan.recompute_blocks);
}

RC_GTEST_PROP(PolicyProperties, NeverGrowsWhenAnyRankIsAboveOrHadARetry, ()) {
  const Scene scene = any_scene();
  RC_PRE(any_retry(scene) || any_rank_above(scene, scene.config.target + scene.config.margin));
  const Decision decision = decide_fresh(scene);
  RC_ASSERT(decision.direction != Direction::kGrow);
  RC_ASSERT(decision.plan.micro_batch <= scene.plan.micro_batch && decision.plan.resolution <= scene.plan.resolution);
}

RC_GTEST_PROP(PolicyProperties, NeverShrinksWithoutAReason, ()) {
  const Scene scene = any_scene();
  RC_PRE(!any_retry(scene) && !any_rank_above(scene, scene.config.target + scene.config.margin));
  RC_ASSERT(decide_fresh(scene).direction != Direction::kShrink);
}

RC_GTEST_PROP(PolicyProperties, NothingChangesWhenTheWorstIsInsideTheBand, ()) {
  Scene scene = any_scene();
  for (RankUsage& rank : scene.window.ranks) {
    rank.retries = 0;
    rank.budget_bytes = (rank.budget_bytes / 10000 + 1) * 10000;  // so that the fractions below are exact
    rank.peak_bytes = rank.budget_bytes / 10000 * *rc::gen::inRange<std::int64_t>(0, 9001);
  }
  scene.window.ranks[0].peak_bytes =
      scene.window.ranks[0].budget_bytes / 10000 * *rc::gen::inRange<std::int64_t>(8000, 9001);
  RC_ASSERT(decide_fresh(scene).plan == scene.plan);
}

RC_GTEST_PROP(PolicyProperties, MovesOneKnobByTwoToEightSteps, ()) {
  const Scene scene = any_scene();
  const Decision decision = decide_fresh(scene);
  const int micro = std::abs(decision.plan.micro_batch - scene.plan.micro_batch);
  const int pixels = std::abs(decision.plan.resolution - scene.plan.resolution);
  RC_ASSERT(micro == 0 || pixels == 0);
  RC_ASSERT(micro <= 8 && pixels <= 8 * scene.config.resolution.step);
  RC_ASSERT((decision.direction == Direction::kHold) == (micro + pixels == 0));
}

/// One thing after the other, on a rank that keeps its state and on one that reads it back before each.
RC_GTEST_PROP(PolicyProperties, EveryRankDecidesAlikeHoweverItsStateWasStored, ()) {
  Scene scene = any_scene();
  PolicyState kept, stored;
  for (int i = 0; i < 8; ++i) {
    scene.window.first_step += 25;
    scene.window.last_step += 25;
    for (RankUsage& rank : scene.window.ranks) rank = any_rank();
    stored = policy_state_from_json(to_json(stored));
    std::optional<Decision> first, second;
    if (*rc::gen::inRange(0, 8) == 0) {
      const RankUsage& rank = scene.window.ranks[0];
      const FailureEntry failure{scene.window.last_step, 0, 1000, scene.plan, rank.budget_bytes, rank.peak_bytes, 0};
      first = escalate(scene.config, failure, {9, 0, 0}, kept);
      second = escalate(scene.config, failure, {9, 0, 0}, stored);
    } else {
      first = decide(scene.config, scene.window, scene.plan, scene.share, kept);
      second = decide(scene.config, scene.window, scene.plan, scene.share, stored);
    }
    RC_ASSERT(first.has_value() == second.has_value() && kept == stored);
    if (!first) continue;
    RC_ASSERT(to_json(*first) == to_json(*second));
    scene.plan = first->plan;
  }
}

RC_GTEST_PROP(PolicyProperties, AWindowGoesOnFromItsJsonAsIfNothingHadBeen, ()) {
  const Scene scene = any_scene();
  const int world = static_cast<int>(scene.window.ranks.size());
  WindowAccumulator kept(5, world), restored(5, world);
  const int stored_at = *rc::gen::inRange(0, 5);
  for (int step = 1; step <= 5; ++step) {
    if (step == stored_at + 1) {
      const WindowSummary read = window_from_json(to_json(kept.current()));
      RC_ASSERT(read == kept.current());
      RC_ASSERT(restored.restore(read));
    }
    std::vector<RankUsage> ranks;
    for (int rank = 0; rank < world; ++rank) ranks.push_back(any_rank());
    const auto whole = kept.add(step, ranks);
    if (step <= stored_at) continue;
    RC_ASSERT(restored.add(step, ranks) == whole);
    RC_ASSERT(whole.has_value() == (step == 5));
  }
}

RC_GTEST_PROP(PolicyProperties, TheStateSurvivesItsJson, ()) {
  PolicyState state;
  const Scene scene = any_scene();
  Plan plan = scene.plan;
  for (int i = 0; i < 5; ++i) plan = decide(scene.config, scene.window, plan, scene.share, state).plan;
  RC_ASSERT(policy_state_from_json(to_json(state)) == state);
}

}  // namespace
}  // namespace plimsoll::memory

#else
TEST(PolicyProperties, NeedRapidCheck) { plimsoll::memory::without_rapidcheck(); }
#endif
