// The predictive policy over every branch and border of its statement.
#include "memory/planning/predictive.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "core/error.h"
#include "tests/memory/planning/policy_cases.h"

namespace plimsoll::memory {
namespace {

using testing::HasSubstr;

constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();

// Names of the plans below say micro-batch and recomputed blocks.
const Plan k16{0, 16, 0}, k8{0, 8, 0}, k16r18{0, 16, 18}, k4{0, 4, 0}, k1r18{0, 1, 18};

/// Fractions of kBudget are bytes: the target is 8500, the band begins at 8000.
CandidateTable five() {
  return CandidateTable({{k16, 12000, 1000000},
                         {k8, 8200, 1100000},
                         {k16r18, 7000, 1200000},
                         {k4, 5000, 1300000},
                         {k1r18, 2000, 2000000}});
}

PolicyConfig predictive() {
  PolicyConfig config;
  config.kind = PolicyKind::kPredictive;
  return config;
}

Plan chosen(const CandidateTable& table, std::vector<std::int64_t> budgets, const PolicyState& state = {},
            std::int64_t step = 0) {
  const Candidate* found = choose(table, {budgets, 8500, step}, state);
  return found == nullptr ? Plan{0, 99, 99} : found->plan;
}

TEST(Choose, TheFastestThatFitsEveryRank) {
  EXPECT_EQ(chosen(five(), {kBudget}), k8);
  EXPECT_EQ(chosen(five(), {20000}), k16);
  EXPECT_EQ(chosen(five(), {20000, kBudget, 20000}), k8);
  EXPECT_EQ(chosen(five(), {20000, 20000, 6000}), k4);
  EXPECT_EQ(choose(five(), {std::vector<std::int64_t>{2000}, 8500, 0}, {}), nullptr);
  EXPECT_EQ(choose({}, {std::vector<std::int64_t>{kMost}, 8500, 0}, {}), nullptr);
}

TEST(Choose, TheTargetIsExact) {
  const CandidateTable table({{k4, 8500, 1}});
  EXPECT_EQ(chosen(table, {10000}), k4);
  EXPECT_NE(chosen(table, {9999}), k4);
  const CandidateTable large({{k4, kMost, 1}});
  EXPECT_NE(chosen(large, {kMost}), k4) << "nothing overflows";
  EXPECT_EQ(choose(large, {std::vector<std::int64_t>{kMost}, 10000, 0}, {})->plan, k4);
}

TEST(Choose, TheCalibrationOfEachRankCounts) {
  PolicyState state;
  state.calibration.observe(1, k8, 8000, 8301);  // 301 more in this class
  EXPECT_EQ(chosen(five(), {kBudget, kBudget}, state), k16r18) << "8200 + 301 is above 8500";
  EXPECT_EQ(chosen(five(), {kBudget, 20000}, state), k8);
}

TEST(Choose, AWaitBlocksAllThatNeedAsMuchUntilItsStep) {
  PolicyState state;
  state.waits = {{k16r18, 1, 10, 60, {{0, kBudget}}}};
  EXPECT_EQ(chosen(five(), {kBudget, kBudget}, state, 59), k4);
  EXPECT_EQ(chosen(five(), {kBudget, kBudget}, state, 60), k8);
  state.waits = {{k8, 1, 10, 60, {{0, kBudget}}}};
  EXPECT_EQ(chosen(five(), {kBudget, kBudget}, state, 59), k16r18) << "what needs less is free";
  state.waits = {{{0, 3, 3}, 1, 10, 60, {{0, kBudget}}}};
  EXPECT_EQ(chosen(five(), {kBudget, kBudget}, state, 59), k8) << "of a plan that is no candidate nothing is known";
}

TEST(Choose, AWaitEndsEarlyOnlyWhenEveryRankThatFailedHasFivePercentMore) {
  PolicyState state;
  state.waits = {{k8, 1, 10, 60, {{0, 10000}, {1, 10000}}}};
  EXPECT_EQ(chosen(five(), {10500, 10500, 10000}, state, 59), k8);
  EXPECT_EQ(chosen(five(), {10499, 10500, 10000}, state, 59), k16r18);
  EXPECT_EQ(chosen(five(), {10500}, state, 59), k16r18) << "rank 1 is not here to say so";
  state.waits[0].ranks = {{0, 0}};
  EXPECT_EQ(chosen(five(), {kMost}, state, 59), k16r18) << "a budget that is not known";
  state.waits[0].ranks = {};
  EXPECT_EQ(chosen(five(), {kMost}, state, 59), k16r18);
}

TEST(FillBytes, GoUpToTheTargetOrToWhatThePlanWasJudgedOn) {
  const Candidate judged{k4, 5000, 1300000};
  const FillLimits limits{1, kBudget, 8500, 40};
  EXPECT_EQ(fill_bytes(judged, limits, {}), 8500);
  EXPECT_EQ(fill_bytes(judged, {1, 9999, 8500, 40}, {}), 8499) << "exact, rounded down";
  EXPECT_EQ(fill_bytes(judged, {1, 4000, 8500, 40}, {}), 5000);
  EXPECT_EQ(fill_bytes(judged, {0, kMost, 10000, 0}, {}), kMost) << "nothing overflows";
}

TEST(FillBytes, TakeTheWorseOfOffsetAndScale) {
  const Candidate judged{k4, 5000, 1300000};
  PolicyState state;
  state.calibration.observe(1, k4, 5000, 5500);  // an offset of 500, and 10 %
  EXPECT_EQ(fill_bytes(judged, {1, kBudget, 8500, 40}, state), 8500 - 850);
  EXPECT_EQ(fill_bytes(judged, {1, kBudget, 6000, 40}, state), 6000 - 600);
  EXPECT_EQ(fill_bytes(judged, {0, kBudget, 8500, 40}, state), 8500) << "another rank's is its own";
  state.calibration.observe(1, k4, 500, 1300);  // 160 % of little: nothing is filled any more
  EXPECT_EQ(fill_bytes(judged, {1, kBudget, 8500, 40}, state), 5000);
}

TEST(FillBytes, WaitWithAnyPlan) {
  const Candidate judged{k4, 5000, 1300000};
  PolicyState state;
  for (const bool filled : {false, true}) {
    state.waits = {{k8, 1, 10, 60, {{0, kBudget}}, filled}};
    EXPECT_EQ(fill_bytes(judged, {1, kBudget, 8500, 59}, state), 5000);
    EXPECT_EQ(fill_bytes(judged, {1, kBudget, 8500, 60}, state), 8500);
  }
  EXPECT_EQ(chosen(five(), {kBudget, kBudget}, state, 59), k8) << "filling waits, the plan does not";
}

TEST(Smallest, FillsTheWorstRankLeastAndIgnoresWaits) {
  const std::vector<std::int64_t> budgets{3000, 1000};
  EXPECT_EQ(smallest(five(), budgets, {})->plan, k1r18);
  EXPECT_EQ(smallest({}, budgets, {}), nullptr);
  PolicyState state;
  state.waits = {{k1r18, 1, 0, 1000, {{0, 3000}}}};
  EXPECT_EQ(smallest(five(), budgets, state)->plan, k1r18);
  state.calibration.observe(1, k1r18, 2000, 6000);
  state.calibration.observe(1, k4, 5000, 5000);
  EXPECT_EQ(smallest(five(), budgets, state)->plan, k4) << "5000 of 1000 is less than 6000 of 1000";
  EXPECT_EQ(smallest(five(), std::vector<std::int64_t>{100000, 0}, state)->plan, k4);
}

TEST(Smallest, TiesGoToTheFaster) {
  const CandidateTable table({{k4, 100, 10}, {k8, 100, 9}, {k16, 101, 8}});
  EXPECT_EQ(smallest(table, std::vector<std::int64_t>{1000, 1000}, {})->plan, k8);
}

TEST(FirstChoice, TheSmallestMayFillTheBareBudget) {
  const CandidateTable table = five();
  const auto first = [&](std::int64_t budget) {
    const Candidate* found = first_choice(table, {std::vector<std::int64_t>{budget, 20000}, 8500, 0}, {});
    return found == nullptr ? Plan{0, 99, 99} : found->plan;
  };
  EXPECT_EQ(first(10000), k8);
  EXPECT_EQ(first(2353), k1r18) << "85 % of it is 2000";
  EXPECT_EQ(first(2000), k1r18);
  EXPECT_EQ(first(1999), (Plan{0, 99, 99}));
}

struct Row {
  const char* name;
  std::int64_t usage;  // 1/10000 of the budget
  Plan before;
  std::int64_t budget;
  Plan after;
  Cause cause;
};

void PrintTo(const Row& row, std::ostream* out) { *out << row.name; }

class Predictive : public testing::TestWithParam<Row> {};

TEST_P(Predictive, Row) {
  const Row& row = GetParam();
  PolicyState state;
  WindowSummary window = window_at(row.usage * row.budget / kBudget);
  window.ranks[0].budget_bytes = row.budget;
  const Decision decision = decide_predictive(predictive(), window, row.before, five(), state);
  EXPECT_EQ(decision.plan, row.after) << decision.reason;
  EXPECT_EQ(decision.cause, row.cause) << decision.reason;
  EXPECT_EQ(decision.changed, row.before != row.after);
  EXPECT_EQ(decision.before, row.before);
  EXPECT_EQ(decision.direction == Direction::kHold, row.before == row.after);
  EXPECT_EQ(state.cooldown, decision.changed ? 1 : 0);
  EXPECT_EQ(state.last_change_step, decision.changed ? 25 : -1);
  EXPECT_EQ(state.history.size(), 1U);
}

const auto kName = [](const auto& info) { return std::string(info.param.name); };

INSTANTIATE_TEST_SUITE_P(Table, Predictive,
                         testing::Values(Row{"in_band", 8200, k8, 10000, k8, Cause::kInBand},
                                         Row{"at_the_target", 8500, k8, 10000, k8, Cause::kInBand},
                                         Row{"above_the_target", 8501, k8, 10000, k16r18, Cause::kAbove},
                                         Row{"below_the_band_but_best", 5000, k8, 10000, k8, Cause::kBest},
                                         Row{"jumps_to_the_best", 1500, k1r18, 10000, k8, Cause::kPlanned},
                                         Row{"in_band_far_above_its_prediction", 8200, k1r18, 10000, k1r18,
                                             Cause::kInBand},
                                         Row{"the_best_of_a_large_budget", 1000, k1r18, 20000, k16, Cause::kPlanned},
                                         Row{"no_candidate", 5000, {0, 5, 0}, 10000, k8, Cause::kPlanned},
                                         Row{"no_candidate_above", 9000, {0, 5, 0}, 10000, k8, Cause::kAbove},
                                         Row{"predicted_above", 5000, k16, 10000, k8, Cause::kBudget},
                                         Row{"nothing_fits", 9900, k4, 2100, k1r18, Cause::kAbove},
                                         Row{"nothing_fits_predicted", 5000, k4, 2100, k1r18, Cause::kBudget},
                                         Row{"nothing_fits_at_minimum", 5000, k1r18, 2100, k1r18, Cause::kAtMinimum}),
                         kName);

TEST(DecidePredictive, AGainMustBeAboveTheLeast) {
  for (const auto& [time, after] : {std::pair{std::int64_t{9800}, k4}, {std::int64_t{9799}, k8}}) {
    PolicyState state;
    const CandidateTable table({{k4, 5000, 10000}, {k8, 8000, time}});
    const Decision decision = decide_predictive(predictive(), window_at(4000), k4, table, state);
    EXPECT_EQ(decision.plan, after) << decision.reason;
  }
}

TEST(DecidePredictive, APartialWindowAndACooldownHold) {
  PolicyState state;
  WindowSummary window = window_at(4000);
  window.steps = 24;
  EXPECT_EQ(decide_predictive(predictive(), window, k4, five(), state).cause, Cause::kPartial);
  std::vector<Cause> causes;
  Plan plan = k4;
  for (int i = 0; i < 3; ++i) {
    const Decision decision = decide_predictive(predictive(), window_at(4000), plan, five(), state);
    causes.push_back(decision.cause);
    plan = decision.plan;
  }
  EXPECT_THAT(causes, testing::ElementsAre(Cause::kPlanned, Cause::kCooldown, Cause::kBest));
}

TEST(DecidePredictive, AFailureShrinksWaitsAndTeaches) {
  PolicyState state;
  WindowSummary window = window_at(9000);
  window.ranks = {{.budget_bytes = 10000, .peak_bytes = 100},
                  {.budget_bytes = 10000, .peak_bytes = 9900, .retries = 1, .failed_request_bytes = 300}};
  const Decision decision = decide_predictive(predictive(), window, k8, five(), state);
  EXPECT_EQ(decision.cause, Cause::kRetry);
  EXPECT_EQ(decision.direction, Direction::kShrink);
  // On rank 1 the other classes are scaled by 10200 / 8200: 7000 becomes 8708, above 8500.
  EXPECT_EQ(decision.plan, k4) << decision.reason;
  ASSERT_EQ(state.waits.size(), 1U);
  EXPECT_EQ(state.waits[0], (Wait{k8, 1, 25, 75, {{1, 10000}}}));
  EXPECT_EQ(state.calibration.corrected(1, k8, 8200), 10200) << "9900 and the 300 that it could not get";
  EXPECT_EQ(state.failures.size(), 1U);
  EXPECT_THAT(decision.reason, HasSubstr("rank 1 ran out of memory"));
}

TEST(DecidePredictive, AFailureThatWasForeseenTeachesNothing) {
  PolicyState state;
  WindowSummary window = window_at(9000);
  window.ranks = {{.budget_bytes = 8000, .peak_bytes = 7900, .retries = 1, .failed_request_bytes = 600}};
  EXPECT_EQ(decide_predictive(predictive(), window, k8, five(), state).cause, Cause::kRetry);
  EXPECT_EQ(state.waits.size(), 1U);
  EXPECT_EQ(state.calibration.corrected(0, k8, 8200), 8200) << "8200 were known not to fit into 8000";
}

TEST(DecidePredictive, AnAllocatorsRetryAloneIsNoFailure) {
  PolicyState state;
  WindowSummary window = window_at(7000);
  window.ranks[0].allocator_retries = 3;
  const Decision decision = decide_predictive(predictive(), window, k8, five(), state);
  EXPECT_FALSE(decision.changed) << decision.reason;
  EXPECT_EQ(decision.allocator_retries, 3) << "it is shown";
  EXPECT_TRUE(state.waits.empty());
  EXPECT_TRUE(state.failures.empty());
  EXPECT_EQ(state.calibration.corrected(0, k8, 8200), 8200);
}

TEST(DecidePredictive, TheWaitDoublesWithEachFurtherFailure) {
  PolicyConfig config = predictive();
  PolicyState state;
  const auto fail_at = [&](std::int64_t step) {
    WindowSummary window = window_at(7000);
    window.first_step = step - 24;
    window.last_step = step;
    window.ranks[0].retries = 1;
    state.cooldown = 0;
    decide_predictive(config, window, k8, five(), state);
    return state.waits.at(0).until_step - step;
  };
  EXPECT_EQ(fail_at(100), 50);
  EXPECT_EQ(fail_at(200), 100);
  EXPECT_EQ(fail_at(300), 200);
  std::int64_t last = 0;
  for (int i = 0; i < 100; ++i) last = fail_at(10000 + i * 1000);
  EXPECT_EQ(last, std::int64_t{50} << 20) << "the longest";
  config.first_wait_windows = std::numeric_limits<int>::max();
  config.adjustment_frequency = std::numeric_limits<int>::max();
  state = {};
  WindowSummary window = window_at(7000);
  window.last_step = kMost - 5;
  window.ranks[0].retries = 1;
  decide_predictive(config, window, k8, five(), state);
  EXPECT_EQ(state.waits.at(0).until_step, kMost);
}

TEST(DecidePredictive, WaitsAreBounded) {
  PolicyConfig config = predictive();
  config.history = 2;
  PolicyState state;
  for (const Plan& plan : {k16, k8, k4}) {
    WindowSummary window = window_at(1000);
    window.ranks[0].retries = 1;
    window.last_step = plan == k8 ? 20 : 25;  // its wait ends first
    decide_predictive(config, window, plan, five(), state);
  }
  ASSERT_EQ(state.waits.size(), 2U);
  EXPECT_EQ(state.waits[0].plan, k16);
  EXPECT_EQ(state.waits[1].plan, k4);
}

TEST(DecidePredictive, ThePairOfTheSameStepIsLearned) {
  PolicyState state;
  WindowSummary window = window_at(7000);
  window.ranks[0].predicted_peak_bytes = 4000;
  window.ranks[0].compared_peak_bytes = 4100;
  const Decision decision = decide_predictive(predictive(), window, k8, five(), state);
  EXPECT_EQ(state.calibration.corrected(0, k8, 8200), 8300);
  EXPECT_EQ(decision.predicted_bytes, 8300);
  window.ranks[0].compared_peak_bytes = 4400;
  EXPECT_EQ(decide_predictive(predictive(), window, k8, five(), state).plan, k16r18)
      << "8600 is above the target, 7000 x 1.1 is not";
}

TEST(DecidePredictive, ThePeakItselfIsLearnedWithoutAPrediction) {
  PolicyState state;
  decide_predictive(predictive(), window_at(8400), k8, five(), state);
  EXPECT_EQ(state.calibration.corrected(0, k8, 8200), 8400);
}

TEST(DecidePredictive, AnEmptyTableHolds) {
  PolicyState state;
  const Decision decision = decide_predictive(predictive(), window_at(9900), k8, {}, state);
  EXPECT_EQ(decision.plan, k8);
  EXPECT_EQ(decision.cause, Cause::kAtMinimum);
  EXPECT_THAT(decision.reason, HasSubstr("no candidates"));
  EXPECT_EQ(decision.predicted_bytes, 0);
}

TEST(DecidePredictive, WhatWaitsIsTheLastResort) {
  PolicyState state;
  state.waits = {{k1r18, 1, 0, 1000, {{0, 10000}}}};
  // Everything waits, and k4 is predicted to fit nowhere: the one that needs least is left.
  WindowSummary window = window_at(9900);
  window.ranks[0].budget_bytes = 4000;
  window.ranks[0].peak_bytes = 3960;
  EXPECT_EQ(decide_predictive(predictive(), window, k4, five(), state).plan, k1r18);
  state = {};
  state.waits = {{k4, 1, 0, 1000, {{0, 10000}}}};
  const Decision decision = decide_predictive(predictive(), window_at(4000), k4, five(), state);
  EXPECT_EQ(decision.plan, k1r18) << "k4 itself waits";
  EXPECT_EQ(decision.cause, Cause::kRetry);
}

TEST(DecidePredictive, ReasonsAreOneLineWithWhatWasSeenPredictedAndChosen) {
  PolicyState state;
  EXPECT_EQ(
      decide_predictive(predictive(), window_at(1500), k1r18, five(), state).reason,
      "steps 1-25: worst is rank 0, peak 1.46 KiB = 15.0 % of its 9.77 KiB, target 85.0 % +- 5.0 %; "
      "micro-batch 1, recompute 18 blocks -> micro-batch 8, nothing recomputed, since it fits and saves more than "
      "2.0 %; expected 1100.0 ms a step instead of 2000.0 ms, predicted 8.01 KiB = 82.0 % of the 9.77 KiB of rank 0");
}

TEST(DecidePredictive, HoldsNameTheBestAlternative) {
  const auto reason = [](const Plan& plan, const CandidateTable& table, PolicyState state = {}) {
    return decide_predictive(predictive(), window_at(1500), plan, table, state).reason;
  };
  EXPECT_THAT(reason(k8, five()),
              HasSubstr("micro-batch 16, nothing recomputed, is predicted to need 11.7 KiB = 120.0 %"));
  EXPECT_THAT(reason(k4, CandidateTable({{k4, 5000, 100}, {k8, 8000, 98}})), HasSubstr("saves no more than 2.0 %"));
  EXPECT_THAT(reason(k4, CandidateTable({{k4, 5000, 100}, {k1r18, 2000, 200}})), HasSubstr("best of 2 candidates"));
  PolicyState state;
  state.waits = {{k8, 1, 0, 1000, {{0, 10000}}}};
  EXPECT_THAT(reason(k4, CandidateTable({{k4, 5000, 100}, {k8, 8000, 50}}), state), HasSubstr("waits until step 1000"));
}

TEST(DecidePredictive, JsonHasThePrediction) {
  PolicyState state;
  const std::string line = to_json(decide_predictive(predictive(), window_at(4000), k4, five(), state));
  EXPECT_THAT(line, HasSubstr("\"predicted_bytes\":8200"));
  EXPECT_THAT(line, HasSubstr("\"cause\":\"planned\""));
  for (const auto& [cause, name] :
       {std::pair{Cause::kBudget, "budget"}, {Cause::kBest, "best"}, {Cause::kAtMinimum, "at_minimum"}}) {
    Decision decision;
    decision.cause = cause;
    EXPECT_THAT(to_json(decision), HasSubstr(std::string("\"cause\":\"") + name + "\""));
  }
}

std::vector<RankUsage> reports_at(std::int64_t budget, std::int64_t peak) {
  return {{.budget_bytes = 20000, .peak_bytes = peak}, {.budget_bytes = budget, .peak_bytes = peak}};
}

TEST(Respond, NothingWhileAllIsWell) {
  PolicyState state;
  EXPECT_FALSE(respond(predictive(), 7, reports_at(10000, 8200), k8, five(), state));
  EXPECT_FALSE(respond(predictive(), 7, reports_at(8200, 8200), k8, five(), state))
      << "above the target, not the budget";
  EXPECT_FALSE(respond(predictive(), 7, reports_at(10000, 200), {0, 5, 0}, five(), state)) << "nothing is predicted";
  EXPECT_EQ(state, PolicyState{});
}

TEST(Respond, ABudgetBelowThePredictionMovesAtOnce) {
  PolicyState state;
  state.cooldown = 0;
  const auto decision = respond(predictive(), 7, reports_at(8199, 5000), k8, five(), state);
  ASSERT_TRUE(decision);
  EXPECT_EQ(decision->plan, k4);
  EXPECT_EQ(decision->cause, Cause::kBudget);
  EXPECT_EQ(decision->step, 7);
  EXPECT_EQ(decision->window_steps, 1);
  EXPECT_EQ(state.cooldown, 1);
  EXPECT_EQ(state.last_change_step, 7);
  EXPECT_EQ(state.history.size(), 1U);
  EXPECT_TRUE(state.waits.empty()) << "nothing failed";
  EXPECT_FALSE(respond(predictive(), 8, reports_at(8199, 5000), k4, five(), state));
}

TEST(Respond, ARetryMovesAtOnceAlsoWhileCoolingDown) {
  PolicyState state;
  state.cooldown = 1;
  std::vector<RankUsage> reports = reports_at(10000, 9900);
  reports[1].retries = 2;
  reports[1].failed_request_bytes = 50;
  reports[1].predicted_peak_bytes = 8100;
  const auto decision = respond(predictive(), 7, reports, k8, five(), state);
  ASSERT_TRUE(decision);
  EXPECT_EQ(decision->cause, Cause::kRetry);
  EXPECT_EQ(decision->plan, k4) << "k16r18 is scaled to 7000 x 10001 / 8100";
  EXPECT_EQ(state.calibration.corrected(1, k8, 8100), 10001);
  EXPECT_EQ(state.waits.at(0), (Wait{k8, 1, 7, 57, {{1, 10000}}}));
  EXPECT_EQ(decision->retries, 2);
}

TEST(Respond, AFilledStepThatFailsLeavesThePlanAndEndsFilling) {
  PolicyState state;
  std::vector<RankUsage> reports = reports_at(10000, 9900);
  reports[1].retries = 1;
  reports[1].failed_request_bytes = 50;
  for (RankUsage& rank : reports) rank.predicted_peak_bytes = 9990;  // k4 itself needs 5000
  EXPECT_FALSE(respond(predictive(), 7, reports, k4, five(), state)) << "k4 is what fits";
  EXPECT_EQ(state.waits.at(0), (Wait{k4, 1, 7, 57, {{1, 10000}}, true}));
  EXPECT_EQ(fill_bytes(*five().find(k4), {0, 10000, 8500, 56}, state), 5000);
  EXPECT_EQ(chosen(five(), {10000, 10000}, state, 8), k8);
  // Nothing is filled now: if it fails again, the plan is at fault, whatever the report says.
  const auto decision = respond(predictive(), 9, reports, k4, five(), state);
  EXPECT_FALSE(state.waits.at(0).filled);
  ASSERT_TRUE(decision);
  EXPECT_EQ(decision->plan, k1r18);
}

TEST(Respond, AStepThatFailedInAnotherWayLeavesThePlan) {
  PolicyState state;
  std::vector<RankUsage> reports = reports_at(10000, 9900);
  reports[1].retries = 1;
  reports[0].predicted_peak_bytes = 9950;
  reports[1].predicted_peak_bytes = 4900;  // less than k4 itself needs
  reports[1].other_way = reports[1].other_recompute = true;
  EXPECT_FALSE(respond(predictive(), 7, reports, k4, five(), state));
  EXPECT_TRUE(state.waits.at(0).filled);
  EXPECT_EQ(state.calibration, Calibration()) << "nor does it say anything of the plan's prediction";
  PolicyState other;
  reports[1].other_way = reports[1].other_recompute = false;
  EXPECT_TRUE(respond(predictive(), 7, reports, k4, five(), other)) << "run as the plan says it is the plan's failure";
  EXPECT_FALSE(other.waits.at(0).filled);
}

TEST(Window, AStepThatRecomputedSomethingElseCountsOnlyWhereItFallsShort) {
  const auto compared = [](std::int64_t peak, bool other) {
    WindowAccumulator window(1, 1);
    RankUsage usage{.budget_bytes = 10000, .peak_bytes = peak};
    usage.predicted_peak_bytes = 5000;
    usage.other_recompute = other;
    return window.add(1, std::vector<RankUsage>{usage}, true)->ranks[0].compared_peak_bytes;
  };
  EXPECT_EQ(compared(4900, false), 4900);
  EXPECT_EQ(compared(4900, true), 0) << "the plan itself was not tried";
  EXPECT_EQ(compared(5100, true), 5100);
  // The peak of such a window is not the plan's either.
  PolicyState state;
  WindowSummary window = window_at(8400);
  for (RankUsage& rank : window.ranks) rank.other_recompute = true;
  decide_predictive(predictive(), window, k8, five(), state);
  EXPECT_EQ(state.calibration, Calibration());
}

TEST(Respond, OneRankThatFailedUnfilledBlamesThePlan) {
  PolicyState state;
  std::vector<RankUsage> reports = reports_at(10000, 9900);
  for (RankUsage& rank : reports) rank.retries = 1;
  reports[0].predicted_peak_bytes = 9990;
  reports[1].predicted_peak_bytes = 5000;
  const auto decision = respond(predictive(), 7, reports, k4, five(), state);
  ASSERT_TRUE(decision);
  EXPECT_EQ(decision->plan, k1r18);
  EXPECT_FALSE(state.waits.at(0).filled);
}

TEST(Respond, NothingIsLeftSaysTheWindow) {
  PolicyState state;
  std::vector<RankUsage> reports = reports_at(1000, 990);
  EXPECT_FALSE(respond(predictive(), 7, reports, k1r18, five(), state));
  reports[1].retries = 1;
  for (int step = 8; step < 18; ++step) EXPECT_FALSE(respond(predictive(), step, reports, k1r18, five(), state));
  ASSERT_EQ(state.waits.size(), 1U);
  EXPECT_EQ(state.waits[0].failures, 1) << "one a window";
  EXPECT_EQ(state.waits[0].until_step, 17 + 50);
  WindowSummary window{1, 25, 25, reports};
  EXPECT_EQ(decide_predictive(predictive(), window, k1r18, five(), state).cause, Cause::kAtMinimum);
  EXPECT_EQ(state.waits[0].failures, 1) << "the window's retries are known already";
  EXPECT_EQ(state.waits[0].until_step, 17 + 50);
}

TEST(Respond, AShortfallIsLearnedAtOnce) {
  PolicyState state;
  std::vector<RankUsage> reports = reports_at(8300, 6000);
  reports[1].predicted_peak_bytes = 5800;
  const auto decision = respond(predictive(), 7, reports, k8, five(), state);
  ASSERT_TRUE(decision) << "8200 + 200 is above 8300";
  EXPECT_EQ(decision->cause, Cause::kBudget);
  EXPECT_EQ(state.calibration.shortfalls(), 1);
}

TEST(Respond, AnAllocatorsRetryIsNoFailure) {
  PolicyState state;
  std::vector<RankUsage> reports = reports_at(10000, 8000);
  reports[0].allocator_retries = 3;
  EXPECT_FALSE(respond(predictive(), 7, reports, k8, five(), state));
}

TEST(Settled, WhereNothingThatFitsIsBetter) {
  const auto is = [](std::int64_t usage, const Plan& plan, std::int64_t budget = kBudget, PolicyState state = {}) {
    WindowSummary window = window_at(usage * budget / kBudget);
    window.ranks[0].budget_bytes = budget;
    return settled(predictive(), window, plan, five(), state);
  };
  EXPECT_TRUE(is(8000, k8));
  EXPECT_TRUE(is(8500, k8)) << "in the band, predicted within the target";
  EXPECT_FALSE(is(8501, k8));
  EXPECT_TRUE(is(3000, k8)) << "k16 is predicted above the target";
  EXPECT_FALSE(is(3000, k4)) << "k8 would fit";
  EXPECT_FALSE(is(8200, k4)) << "in the band, and k8 would fit all the same";
  EXPECT_TRUE(is(3000, k16, 20000));
  EXPECT_FALSE(is(3000, k16r18, 20000)) << "recomputed";
  EXPECT_FALSE(is(3000, {0, 5, 0})) << "no candidate";
  EXPECT_TRUE(is(9900, k1r18, 2000)) << "nothing fits, and this needs least";
  EXPECT_FALSE(is(9900, k4, 2000));
  PolicyState state;
  state.waits = {{k8, 1, 0, 1000, {{0, 10000}}}};
  EXPECT_FALSE(is(3000, k4, kBudget, state)) << "k16r18 is faster, needs less than k8 and fits";
  state.waits = {{k16r18, 1, 0, 1000, {{0, 10000}}}};
  EXPECT_TRUE(is(3000, k4, kBudget, state)) << "all that is faster waits";
}

TEST(FillBytes, AWaitIsOverForARankThatFailedAndHasMore) {
  const Candidate candidate{k4, 5000, 1};
  PolicyState state;
  state.waits = {{k8, 1, 0, 1000, {{0, 10000}}}};
  const auto fill = [&](int rank, std::int64_t budget) {
    return fill_bytes(candidate, {rank, budget, 8500, 10}, state);
  };
  EXPECT_EQ(fill(0, 10499), 5000);
  EXPECT_EQ(fill(0, 10500), 8925) << "5 % more than when it failed";
  EXPECT_EQ(fill(1, 20000), 5000) << "it did not fail, and does not know how rank 0 stands";
  state.waits[0].ranks.clear();
  EXPECT_EQ(fill(0, 20000), 5000);
}

/// At 448 pixels 3000 are needed, at 420 2500, at 392 2000.
CandidateTable three_resolutions() {
  return CandidateTable(
      {{{448, 4, 0}, 6000, 1000}, {{448, 1, 18}, 3000, 2000}, {{420, 1, 18}, 2500, 1500}, {{392, 1, 18}, 2000, 1200}});
}

TEST(Resolution, IsLoweredOnlyWhereNothingElseFits) {
  EXPECT_EQ(chosen(three_resolutions(), {kBudget}), (Plan{448, 4, 0}));
  EXPECT_EQ(chosen(three_resolutions(), {4000}), (Plan{448, 1, 18})) << "slower than the smaller pictures";
  EXPECT_EQ(chosen(three_resolutions(), {3000}), (Plan{420, 1, 18}));
  EXPECT_EQ(chosen(three_resolutions(), {2400}), (Plan{392, 1, 18}));
  EXPECT_TRUE(sharper({0, 1, 0}, {448, 1, 0})) << "pictures as they are";
  EXPECT_FALSE(sharper({0, 1, 0}, {0, 1, 0}));
  EXPECT_FALSE(sharper({448, 1, 0}, {0, 1, 0}));
}

TEST(Resolution, GrowsAgainHoweverMuchLongerAStepTakes) {
  PolicyState state;
  const Decision decision = decide_predictive(predictive(), window_at(2500), {420, 1, 18}, three_resolutions(), state);
  EXPECT_EQ(decision.plan, (Plan{448, 4, 0}));
  EXPECT_THAT(decision.reason, HasSubstr("larger pictures"));
  EXPECT_FALSE(settled(predictive(), window_at(2500), {420, 1, 18}, three_resolutions(), state));
}

TEST(Resolution, FallsWithTheBudgetAtOnce) {
  PolicyState state;
  RankUsage usage{.budget_bytes = 2400, .peak_bytes = 2400};
  const auto decision = respond(predictive(), 7, std::vector{usage}, {448, 1, 18}, three_resolutions(), state);
  ASSERT_TRUE(decision);
  EXPECT_EQ(decision->plan, (Plan{392, 1, 18}));
}

}  // namespace
}  // namespace plimsoll::memory
