// The synthetic world and the loops over it.
#include "memory/planning/simulation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/error.h"
#include "memory/planning/scenarios.h"

namespace plimsoll::memory {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

/// One rank with four samples a step of 100 bytes over 1000 static ones; 10 us a micro-batch, 5 a sample.
Scenario small() {
  Scenario scenario;
  scenario.name = "small";
  scenario.budgets = {2000};
  scenario.effective = 4;
  scenario.steps = 30;
  scenario.model.static_bytes = 1000;
  scenario.model.sample_bytes = 100;
  scenario.model.kept = 2000;
  scenario.model.language_blocks = 10;
  scenario.model.launch_us = 10'000;
  scenario.model.sample_us = 5'000;
  scenario.model.recompute = 3000;
  scenario.model.reduction_us = 1'000;
  return scenario;
}

Outcome run(const Scenario& scenario, PolicyKind kind) {
  PolicyConfig config;
  config.kind = kind;
  return simulate(SyntheticWorld(scenario), {config, {}});
}

TEST(SyntheticWorld, MemoryFallsWithRecomputeAndGrowsWithTheMicroBatch) {
  const SyntheticWorld world(small());
  EXPECT_EQ(world.predicted({0, 2, 0}, 2000), 1200);
  // Of 200 bytes in ten blocks five stay whole, five keep a fifth, and one of those is there in full: 100 + 20 + 20.
  EXPECT_EQ(world.predicted({0, 2, 5}, 2000), 1140);
  EXPECT_EQ(world.predicted({0, 2, 10}, 2000), 1060);
  EXPECT_EQ(world.predicted({.micro_batch = 2, .recompute_blocks = 10, .offload = true}, 2000), 1020);
  EXPECT_EQ(world.predicted({512, 2, 0}, 2000), 1800) << "twice the side, four times the pixels";
}

TEST(SyntheticWorld, TimeIsTheLaunchAndTheSamplesAndRecompute) {
  const SyntheticWorld world(small());
  EXPECT_EQ(world.microseconds({0, 2, 0}, 2000), 20'000);
  EXPECT_EQ(world.microseconds({0, 2, 10}, 2000), 26'000);
  EXPECT_EQ(world.microseconds({0, 2, 5}, 2000), 23'000);
}

TEST(SyntheticWorld, SharesAreDealtWholeAndInOrder) {
  Scenario scenario = small();
  scenario.ranks = 3;
  const SyntheticWorld world(scenario);
  EXPECT_EQ(world.share(), 2);
  std::int64_t next = 4;
  for (int rank = 0; rank < 3; ++rank) {
    EXPECT_EQ(world.first_sample(rank, 2), next);
    next += world.samples(rank);
  }
  EXPECT_EQ(next, 8);
}

TEST(SyntheticWorld, LengthsLieWithinTheirBoundsAndRepeat) {
  Scenario scenario = small();
  scenario.lengths = {.shortest = 500, .longest = 1500, .heavy_every = 10, .heavy = 4000};
  const SyntheticWorld world(scenario), again(scenario);
  int heavy = 0, different = 0;
  for (std::int64_t i = 0; i < 120; ++i) {
    const std::int64_t length = world.length(i, 1);
    EXPECT_EQ(length, again.length(i, 1));
    EXPECT_TRUE(length == 4000 || (length >= 500 && length <= 1500)) << length;
    heavy += length == 4000 ? 1 : 0;
    different += length != world.length(0, 1) ? 1 : 0;
  }
  EXPECT_GT(heavy, 3);
  EXPECT_LT(heavy, 30);
  EXPECT_GT(different, 100);
  scenario.seed = 2;
  EXPECT_NE(SyntheticWorld(scenario).length(0, 100), world.length(0, 100));
}

TEST(SyntheticWorld, TheHeaviestMicroBatchIsOneThatIsDrawn) {
  Scenario scenario = small();
  scenario.lengths = {.shortest = 500, .longest = 1500};
  const SyntheticWorld world(scenario);
  std::int64_t most = 0;
  bool balanced = false;
  for (std::int64_t step = 1; step <= scenario.steps; ++step) {
    // Three samples and a rest of one: as they come, or the longest of the four by itself.
    const std::int64_t first = (step - 1) * 4, all = world.length(first, 4);
    const std::int64_t as_drawn = std::max(world.length(first, 3), world.length(first + 3, 1));
    std::int64_t longest = 0;
    for (std::int64_t i = 0; i < 4; ++i) longest = std::max(longest, world.length(first + i, 1));
    balanced = balanced || std::max(longest, all - longest) < as_drawn;
    most = std::max(most, std::min(as_drawn, std::max(longest, all - longest)));
  }
  EXPECT_TRUE(balanced);
  EXPECT_EQ(world.heaviest(0, 3), most);
}

TEST(SyntheticWorld, BudgetsChangeForWhomAndWhenTheyShould) {
  Scenario scenario = small();
  scenario.ranks = 2;
  scenario.changes = {{5, 1, 1500}, {9, -1, 1800}};
  const SyntheticWorld world(scenario);
  EXPECT_THAT(world.budgets(4), ElementsAre(2000, 2000));
  EXPECT_THAT(world.budgets(5), ElementsAre(2000, 1500));
  EXPECT_THAT(world.budgets(9), ElementsAre(1800, 1800));
}

TEST(SyntheticWorld, SurprisesAreInWhatIsNeededOnly) {
  Scenario scenario = small();
  scenario.surprises = {.under = 1000, .leak_bytes = 3, .leak_from = 10, .leak_until = 20};
  const SyntheticWorld world(scenario);
  EXPECT_EQ(world.predicted({0, 2, 0}, 2000), 1200);
  EXPECT_EQ(world.needed({0, 2, 0}, 2000, 0, 10, 0), 1220);
  EXPECT_EQ(world.needed({0, 2, 0}, 2000, 0, 15, 0), 1235);
  EXPECT_EQ(world.needed({0, 2, 0}, 2000, 0, 30, 0), 1250);
  EXPECT_EQ(world.needed({0, 2, 0}, 2000, 0, 15, 13), 1226) << "a new process has leaked less";
}

TEST(SyntheticWorld, RefusesWhatIsNoWorld) {
  const auto refused = [](const Scenario& scenario) { EXPECT_THROW(SyntheticWorld{scenario}, Error); };
  Scenario scenario = small();
  scenario.ranks = 5;
  refused(scenario);
  scenario = small();
  scenario.budgets = {};
  refused(scenario);
  refused(find_scenario("classic-below"));
}

TEST(Simulation, TheWholeShareAtOnceTakesTheTimeOfOneMicroBatch) {
  const Outcome outcome = run(small(), PolicyKind::kPredictive);
  EXPECT_EQ(outcome.last, (Plan{0, 4, 0}));
  EXPECT_EQ(outcome.steps, 30);
  EXPECT_EQ(outcome.samples, 120);
  EXPECT_EQ(outcome.microseconds, 30 * (10'000 + 4 * 5'000 + 1'000));
  EXPECT_EQ(outcome.retries, 0);
  EXPECT_TRUE(outcome.changes.empty());
  EXPECT_EQ(outcome.rate(), 120 * 1'000'000 / 930);
}

TEST(Simulation, AMicroBatchThatFailsIsReplayedInHalvesAndPaidFor) {
  Scenario scenario = small();
  scenario.steps = 1;
  scenario.budgets = {1700};
  scenario.surprises.under = 9000;  // four samples need 1760
  const Outcome outcome = run(scenario, PolicyKind::kReactive);
  EXPECT_EQ(outcome.retries, 1);
  EXPECT_THAT(outcome.retried, ElementsAre(1));
  // Half of an attempt at four, then twice two.
  EXPECT_EQ(outcome.microseconds, 30'000 / 2 + 2 * 20'000 + 1'000);
  EXPECT_EQ(outcome.samples, 4);
}

TEST(Simulation, TheGuardianSplitsWhatIsKnownNotToFit) {
  Scenario scenario = small();
  scenario.steps = 2;
  scenario.changes = {{2, -1, 1250}};
  const Outcome outcome = run(scenario, PolicyKind::kFixed);
  EXPECT_EQ(outcome.retries, 0);
  EXPECT_EQ(outcome.splits, 1) << "two and two; the rest is small enough as it is";
  EXPECT_EQ(outcome.microseconds, 31'000 + 41'000);
}

TEST(Simulation, ASampleThatDoesNotFitEscalatesOrEndsTheRun) {
  Scenario scenario = small();
  scenario.steps = 3;
  scenario.changes = {{2, -1, 1090}};
  const Outcome escalated = run(scenario, PolicyKind::kFixed);
  EXPECT_TRUE(escalated.finished);
  EXPECT_EQ(escalated.failures, 1);
  EXPECT_EQ(escalated.last, (Plan{0, 1, 10}));
  EXPECT_EQ(escalated.steps, 3);
  scenario.changes = {{2, -1, 1001}};
  const Outcome ended = run(scenario, PolicyKind::kFixed);
  EXPECT_FALSE(ended.finished);
  EXPECT_EQ(ended.steps, 1);
  EXPECT_THAT(to_string(ended), HasSubstr("ended early"));
}

TEST(Simulation, NoPlanAtTheStartIsExitCode3) {
  Scenario scenario = small();
  scenario.budgets = {900};
  try {
    run(scenario, PolicyKind::kPredictive);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kMemory);
    EXPECT_THAT(error.what(), HasSubstr("900"));
  }
}

TEST(Simulation, EveryPolicyIsTheSameTwice) {
  for (PolicyKind kind : {PolicyKind::kFixed, PolicyKind::kReactive, PolicyKind::kPredictive}) {
    EXPECT_EQ(to_json(run(find_scenario("visitor"), kind)), to_json(run(find_scenario("visitor"), kind)));
  }
}

TEST(Replay, FollowsThePeaksWhateverIsDecided) {
  const Trace trace = read_trace("{\"peaks\": [0.95], \"step_ms\": 10, \"samples\": 8, \"retries\": [2]}", "t");
  PolicyConfig config;
  config.adjustment_frequency = 1;
  config.kind = PolicyKind::kReactive;
  std::vector<std::string> lines;
  const Outcome outcome =
      replay(trace, {config, {0, 8, 0}, 16, [&](const Decision& decision) { lines.push_back(decision.reason); }});
  ASSERT_EQ(lines.size(), 2U);
  EXPECT_THAT(lines[0], HasSubstr("baseline"));
  EXPECT_THAT(lines[1], HasSubstr("micro-batch 8 -> 6"));
  EXPECT_THAT(outcome.changes, ElementsAre(1));
  EXPECT_EQ(outcome.retries, 2);
  EXPECT_EQ(outcome.rate(), 800'000);
}

TEST(Replay, AnAttemptThatFailedEscalates) {
  const Trace trace = read_trace(
      R"({"plan":{"micro_batch":1,"recompute_blocks":6},"samples":8,"memory":[{"peak":800,"budget":1000}],)"
      R"("failed_attempts":[{"plan":{"micro_batch":4},"memory":[{"peak":990,"budget":1000,"failed":true}]}]})",
      "t");
  PolicyConfig config;
  config.kind = PolicyKind::kFixed;
  config.adjustment_frequency = 1;
  std::vector<Plan> plans;
  const Outcome outcome =
      replay(trace, {config, {0, 4, 0}, 8, [&](const Decision& decision) { plans.push_back(decision.plan); }});
  EXPECT_THAT(plans, ElementsAre(Plan{0, 4, 0}, Plan{0, 1, 6}, Plan{0, 1, 6}));
  EXPECT_EQ(outcome.failures, 1);
  EXPECT_EQ(outcome.steps, 1);
  EXPECT_TRUE(outcome.finished);
}

TEST(Replay, GoesOnFromWhatThePolicyKnew) {
  Trace trace = read_trace("{\"peaks\": [700], \"budgets\": [1000]}", "t");
  trace.candidates = {{{0, 8, 0}, 840, 100}, {{0, 4, 0}, 700, 120}};
  ReplayOptions options{{}, {0, 4, 0}, 16, {}};
  options.config.kind = PolicyKind::kPredictive;
  options.config.adjustment_frequency = 1;
  EXPECT_EQ(replay(trace, options).last, (Plan{0, 8, 0}));
  options.state.calibration.observe(0, {0, 8, 0}, 840, 900);
  EXPECT_EQ(replay(trace, options).last, (Plan{0, 4, 0})) << "known to need 900";
}

TEST(Replay, PredictiveNeedsCandidates) {
  PolicyConfig config;
  config.kind = PolicyKind::kPredictive;
  config.adjustment_frequency = 1;
  Trace trace = read_trace("{\"peaks\": [950], \"budgets\": [1000]}", "t");
  EXPECT_THROW(replay(trace, {config, {0, 8, 0}, 16, {}}), Error);
  trace.candidates = {{{0, 8, 0}, 940, 100}, {{0, 4, 0}, 700, 120}};
  EXPECT_EQ(replay(trace, {config, {0, 8, 0}, 16, {}}).last, (Plan{0, 4, 0}));
}

}  // namespace
}  // namespace plimsoll::memory
