// What the policies do in the scenarios: the classic ones step by step, the predictive policy by what it promises.
#include "memory/planning/scenarios.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <tuple>

#include "core/error.h"
#include "memory/planning/simulation.h"

namespace plimsoll::memory {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

/// A change: the step after which it was made, resolution and micro-batch from then on.
using Change = std::tuple<std::int64_t, int, int>;

std::vector<Change> classic(const std::string& name) {
  const Scenario scenario = find_scenario(name);
  EXPECT_TRUE(scenario.classic);
  std::vector<Change> changes;
  ReplayOptions options{classic_profile(), scenario.first, 64, [&](const Decision& decision) {
                          if (decision.changed)
                            changes.emplace_back(decision.step, decision.plan.resolution, decision.plan.micro_batch);
                        }};
  options.config.kind = PolicyKind::kReactive;
  replay(script_trace(scenario), options);
  return changes;
}

TEST(ClassicScenario, BelowGrowsResolutionFirst) {
  // 0.85 - 0.65 is four times 5 %: four steps of 1 px; every second window passes in the cooldown.
  EXPECT_THAT(classic("classic-below"),
              ElementsAre(Change{25, 132, 16}, Change{75, 136, 16}, Change{125, 140, 16}, Change{175, 144, 16}));
}

TEST(ClassicScenario, NeverMoreThanEightStepsAtOnce) {
  EXPECT_THAT(classic("classic-below-far"), ElementsAre(Change{25, 136, 16}, Change{75, 144, 16}));
}

TEST(ClassicScenario, AtTheTopTheBatchGrows) {
  EXPECT_THAT(classic("classic-below-at-top"), ElementsAre(Change{25, 256, 20}, Change{75, 256, 24}));
}

TEST(ClassicScenario, InTheBandNothingChanges) { EXPECT_THAT(classic("classic-in-band"), IsEmpty()); }

TEST(ClassicScenario, AboveShrinksTheBatchFirst) {
  // 0.93 - 0.85 is 1.6 times 5 %: two steps.
  EXPECT_THAT(classic("classic-above"), ElementsAre(Change{25, 128, 14}, Change{75, 128, 12}));
}

TEST(ClassicScenario, AtTheBottomResolutionShrinks) {
  EXPECT_THAT(classic("classic-above-at-bottom"), ElementsAre(Change{25, 126, 4}, Change{75, 124, 4}));
}

TEST(ClassicScenario, AboveShrinksTheBatchThenResolution) {
  // 0.98 - 0.85 is 2.6 times 5 %: three steps, cut at the minimum of 4.
  EXPECT_THAT(classic("classic-above-both"),
              ElementsAre(Change{25, 128, 7}, Change{75, 128, 4}, Change{125, 125, 4}, Change{175, 122, 4},
                          Change{225, 119, 4}, Change{275, 116, 4}, Change{325, 113, 4}));
}

TEST(ClassicScenario, NothingBeforeTheFirstWindowIsOver) { EXPECT_THAT(classic("classic-early"), IsEmpty()); }

TEST(ClassicScenario, OneWindowOfCooldown) {
  EXPECT_THAT(classic("classic-cooldown"), ElementsAre(Change{25, 132, 16}));
}

TEST(ClassicScenario, ThePeakStartsAnew) {
  // 0.97 shrinks once; were it remembered, the window that ends at step 75 would shrink again.
  EXPECT_THAT(classic("classic-peak-anew"), ElementsAre(Change{25, 128, 13}));
}

TEST(Scenarios, AreManyWithNamesOfTheirOwn) {
  std::set<std::string> names;
  std::size_t worlds = 0;
  for (const Scenario& scenario : scenarios()) {
    EXPECT_TRUE(names.insert(scenario.name).second) << scenario.name;
    EXPECT_NE(scenario.summary, "");
    EXPECT_EQ(scenario.summary.find('\n'), std::string::npos);
    worlds += scenario.script.empty() ? 1 : 0;
  }
  EXPECT_GE(worlds, 20U);
}

TEST(Scenarios, AnUnknownNameIsToldTheNearest) {
  try {
    find_scenario("neighbor");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kUsage);
    EXPECT_THAT(error.what(), testing::AllOf(HasSubstr("--scenario neighbor:"), HasSubstr("neighbour,")));
  }
}

TEST(Scenarios, MoreRanksGetAtLeastASampleEach) {
  EXPECT_EQ(find_scenario("calm", 8).ranks, 8);
  EXPECT_EQ(find_scenario("calm", 8).effective, 32);
  EXPECT_EQ(find_scenario("calm", 100).effective, 100);
}

/// Runs a world under the predictive policy and holds what DESIGN.md promises of it.
class PredictiveScenarios : public testing::TestWithParam<std::string> {
 protected:
  static Outcome run(const Scenario& scenario) {
    PolicyConfig config;
    config.kind = PolicyKind::kPredictive;
    return simulate(SyntheticWorld(scenario), {config, {}});
  }
  /// The start, and every step at which a budget changes.
  static std::vector<std::int64_t> disturbances(const Scenario& scenario) {
    std::set<std::int64_t> steps{1};
    for (const BudgetEvent& change : scenario.changes) steps.insert(change.step);
    for (std::int64_t step = 1; scenario.epoch_steps > 0 && step <= scenario.steps; step += scenario.epoch_steps)
      steps.insert(step);
    return {steps.begin(), steps.end()};
  }
};

TEST_P(PredictiveScenarios, SettlesWithinTwoWindowsOfEveryDisturbance) {
  const Scenario scenario = find_scenario(GetParam());
  const Outcome outcome = run(scenario);
  EXPECT_TRUE(outcome.finished);
  EXPECT_TRUE(outcome.effective_batch_kept);
  EXPECT_EQ(outcome.samples, scenario.steps * scenario.effective);
  EXPECT_EQ(outcome.failures, 0);
  const auto late = std::count_if(outcome.retried.begin(), outcome.retried.end(), [](auto step) { return step > 25; });
  EXPECT_LE(late, 1) << to_string(outcome);
  std::vector<std::int64_t> ends = disturbances(scenario);
  if (scenario.surprises.leak_bytes > 0) {  // it disturbs at every step: a change whenever a plan has become too large
    EXPECT_LE(outcome.changes.size(), 4U) << testing::PrintToString(outcome.changes);
    EXPECT_LE(outcome.unsettled.size(), outcome.changes.size())
        << testing::PrintToString(outcome.unsettled) << ": after a change the next window is settled";
    return;
  }
  for (const std::int64_t step : outcome.unsettled) {
    const auto after = std::prev(std::upper_bound(ends.begin(), ends.end(), step));
    // The window in which it came, and two more; the first window begins with it.
    EXPECT_LT(step, *after + (after == ends.begin() ? 2 : 3) * outcome.window) << "not settled after " << *after;
  }
  ends.push_back(scenario.steps + 1);
  for (std::size_t i = 0; i + 1 < ends.size(); ++i) {
    std::vector<std::int64_t> within;
    for (std::int64_t step : outcome.changes) {
      if (step >= ends[i] && step < ends[i + 1]) within.push_back(step);
    }
    EXPECT_LE(within.size(), 1U) << "after step " << ends[i] << ": " << testing::PrintToString(within);
    // Two windows that began after the disturbance: the one under way does not count.
    if (!within.empty()) {
      EXPECT_LT(within.back(), ends[i] + (i == 0 ? 2 : 3) * outcome.window) << "after step " << ends[i];
    }
  }
}

std::vector<std::string> worlds() {
  std::vector<std::string> names;
  for (const Scenario& scenario : scenarios()) {
    if (scenario.script.empty()) names.push_back(scenario.name);
  }
  return names;
}

INSTANTIATE_TEST_SUITE_P(Scenarios, PredictiveScenarios, testing::ValuesIn(worlds()), [](const auto& parameter) {
  std::string name = parameter.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

}  // namespace
}  // namespace plimsoll::memory
