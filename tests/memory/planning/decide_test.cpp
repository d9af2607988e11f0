// The reactive policy over every branch and border of its statement.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/error.h"
#include "tests/memory/planning/policy_cases.h"

namespace plimsoll::memory {
namespace {

using testing::HasSubstr;
using testing::Not;

struct Case {
  const char* name;
  std::int64_t usage;  // 1/10000 of the budget
  Plan before;
  std::int64_t share;
  Plan after;
  Cause cause;
};

void PrintTo(const Case& row, std::ostream* out) { *out << row.name; }

class OneKnob : public testing::TestWithParam<Case> {};
class BothKnobs : public testing::TestWithParam<Case> {};
class Classic : public testing::TestWithParam<Case> {};

void expect_row(const PolicyConfig& config, const Case& row) {
  PolicyState state;
  const Decision decision = decide(config, window_at(row.usage), row.before, row.share, state);
  EXPECT_EQ(decision.plan, row.after) << decision.reason;
  EXPECT_EQ(decision.cause, row.cause) << decision.reason;
  EXPECT_EQ(decision.changed, row.before != row.after);
  EXPECT_EQ(decision.before, row.before);
  EXPECT_EQ(decision.usage, row.usage);
  EXPECT_EQ(decision.direction == Direction::kHold, row.before == row.after);
  EXPECT_EQ(state.cooldown, decision.changed ? 1 : 0);
  EXPECT_EQ(state.last_change_step, decision.changed ? 25 : -1);
}

TEST_P(OneKnob, Row) { expect_row({}, GetParam()); }
TEST_P(BothKnobs, Row) { expect_row(both_knobs(), GetParam()); }
TEST_P(Classic, Row) { expect_row(classic_profile(), GetParam()); }

const auto kName = [](const auto& info) { return std::string(info.param.name); };

// Target 85 %, margin 5 %: the band is 80 % to 90 %.
INSTANTIATE_TEST_SUITE_P(
    Table, OneKnob,
    testing::Values(Case{"at_target", 8500, {0, 4, 0}, 64, {0, 4, 0}, Cause::kInBand},
                    Case{"lower_border", 8000, {0, 4, 0}, 64, {0, 4, 0}, Cause::kInBand},
                    Case{"upper_border", 9000, {0, 4, 0}, 64, {0, 4, 0}, Cause::kInBand},
                    Case{"just_below", 7999, {0, 4, 0}, 64, {0, 6, 0}, Cause::kBelow},
                    Case{"just_above", 9001, {0, 8, 0}, 64, {0, 6, 0}, Cause::kAbove},
                    // available 14.99 % is 2 whole times 5 %, 15 % is 3; 40 % is the most that counts.
                    Case{"two_up", 7001, {0, 4, 0}, 64, {0, 6, 0}, Cause::kBelow},
                    Case{"three_up", 7000, {0, 4, 0}, 64, {0, 7, 0}, Cause::kBelow},
                    Case{"seven_up", 4501, {0, 4, 0}, 64, {0, 11, 0}, Cause::kBelow},
                    Case{"eight_up", 4500, {0, 4, 0}, 64, {0, 12, 0}, Cause::kBelow},
                    Case{"no_more_than_eight_up", 0, {0, 4, 0}, 64, {0, 12, 0}, Cause::kBelow},
                    // over 10 % is 2 times 5 %, 10.01 % begins the third; 4 is the most.
                    Case{"two_down", 9500, {0, 9, 0}, 64, {0, 7, 0}, Cause::kAbove},
                    Case{"three_down", 9501, {0, 9, 0}, 64, {0, 6, 0}, Cause::kAbove},
                    Case{"three_down_still", 10000, {0, 9, 0}, 64, {0, 6, 0}, Cause::kAbove},
                    Case{"four_down", 10001, {0, 9, 0}, 64, {0, 5, 0}, Cause::kAbove},
                    Case{"no_more_than_four_down", 30000, {0, 9, 0}, 64, {0, 5, 0}, Cause::kAbove},
                    Case{"ends_at_minimum", 9900, {0, 2, 0}, 64, {0, 1, 0}, Cause::kAbove},
                    Case{"at_minimum", 9900, {0, 1, 0}, 64, {0, 1, 0}, Cause::kAtMinimum},
                    Case{"ends_at_maximum", 1000, {0, 60, 0}, 100, {0, 64, 0}, Cause::kBelow},
                    Case{"at_maximum", 1000, {0, 64, 0}, 100, {0, 64, 0}, Cause::kAtMaximum},
                    Case{"ends_at_share", 1000, {0, 5, 0}, 8, {0, 8, 0}, Cause::kBelow},
                    Case{"at_share", 1000, {0, 8, 0}, 8, {0, 8, 0}, Cause::kAtMaximum},
                    Case{"larger_than_share_means_share", 9500, {0, 20, 0}, 6, {0, 4, 0}, Cause::kAbove},
                    Case{"larger_than_share_stays", 1000, {0, 20, 0}, 6, {0, 20, 0}, Cause::kAtMaximum},
                    Case{"recompute_and_resolution_stay", 7999, {224, 4, 18}, 64, {224, 6, 18}, Cause::kBelow}),
    kName);

INSTANTIATE_TEST_SUITE_P(
    Table, BothKnobs,
    testing::Values(Case{"resolution_first", 7999, {224, 4, 0}, 64, {280, 4, 0}, Cause::kBelow},
                    Case{"eight_steps", 0, {112, 4, 0}, 64, {336, 4, 0}, Cause::kBelow},
                    Case{"ends_at_maximum", 5000, {420, 4, 0}, 64, {448, 4, 0}, Cause::kBelow},
                    Case{"then_micro_batch", 5000, {448, 4, 0}, 64, {448, 11, 0}, Cause::kBelow},
                    Case{"both_at_maximum", 5000, {448, 8, 0}, 8, {448, 8, 0}, Cause::kAtMaximum},
                    Case{"micro_batch_down_first", 9100, {448, 4, 0}, 64, {448, 2, 0}, Cause::kAbove},
                    Case{"then_resolution", 9600, {224, 1, 0}, 64, {140, 1, 0}, Cause::kAbove},
                    Case{"resolution_ends_at_minimum", 9900, {140, 1, 0}, 64, {112, 1, 0}, Cause::kAbove},
                    Case{"both_at_minimum", 9900, {112, 1, 0}, 64, {112, 1, 0}, Cause::kAtMinimum}),
    kName);

INSTANTIATE_TEST_SUITE_P(
    Table, Classic,
    testing::Values(Case{"one_pixel_a_step", 7999, {224, 8, 0}, 64, {226, 8, 0}, Cause::kBelow},
                    Case{"up_to_256", 1000, {250, 8, 0}, 64, {256, 8, 0}, Cause::kBelow},
                    Case{"down_to_four", 9900, {224, 5, 0}, 64, {224, 4, 0}, Cause::kAbove},
                    Case{"then_pixels", 9900, {224, 4, 0}, 64, {221, 4, 0}, Cause::kAbove},
                    Case{"down_to_64", 9900, {65, 4, 0}, 64, {64, 4, 0}, Cause::kAbove},
                    Case{"a_share_below_the_minimum", 9900, {64, 2, 0}, 2, {64, 2, 0}, Cause::kAtMinimum}),
    kName);

TEST(Decide, ThresholdsOfOneAndTwoPercent) {
  PolicyConfig config = both_knobs();
  config.margin = 50;  // only a margin below them lets the thresholds bite
  const Plan low{112, 1, 0}, high{448, 1, 0};
  const auto cause = [&](std::int64_t usage, const Plan& plan) {
    PolicyState state;
    return decide(config, window_at(usage), plan, 64, state).cause;
  };
  EXPECT_EQ(cause(8300, low), Cause::kTooLittle) << "exactly 2 %";
  EXPECT_EQ(cause(8299, low), Cause::kBelow);
  EXPECT_EQ(cause(8400, high), Cause::kTooLittle) << "exactly 1 %";
  EXPECT_EQ(cause(8399, high), Cause::kBelow);
}

TEST(Decide, BordersAreExactForBudgetsThatDoNotDivide) {
  for (std::int64_t budget : {std::int64_t{103}, std::int64_t{1000003}, (std::int64_t{1} << 48) - 1}) {
    PolicyState state;
    const std::int64_t at = budget / 10 * 9 + budget % 10 * 9 / 10;  // floor of 90 %
    WindowSummary window = window_at(0);
    window.ranks[0] = {.budget_bytes = budget, .peak_bytes = at};
    EXPECT_EQ(decide({}, window, {0, 8, 0}, 64, state).cause, Cause::kInBand) << budget;
    window.ranks[0].peak_bytes = at + 1;
    EXPECT_EQ(decide({}, window, {0, 8, 0}, 64, state).cause, Cause::kAbove) << budget;
  }
}

TEST(Decide, NothingOverflows) {
  PolicyState state;
  WindowSummary window = window_at(0);
  window.ranks[0] = {.budget_bytes = INT64_MAX, .peak_bytes = INT64_MAX};
  EXPECT_EQ(decide({}, window, {0, 8, 0}, INT64_MAX, state).plan.micro_batch, 5);
  state = {};
  window.ranks[0] = {.budget_bytes = 1, .peak_bytes = INT64_MAX};
  EXPECT_EQ(decide({}, window, {0, 8, 0}, 64, state).plan.micro_batch, 4);
  state = {};
  window.ranks[0] = {.budget_bytes = INT64_MAX, .peak_bytes = -5};
  EXPECT_EQ(decide({}, window, {0, 8, 0}, 64, state).plan.micro_batch, 16);
}

TEST(Decide, TheWorstFractionDecidesNotTheLargestPeak) {
  PolicyState state;
  WindowSummary window = window_at(0);
  window.ranks = {{.budget_bytes = 100000, .peak_bytes = 50000},
                  {.budget_bytes = 10000, .peak_bytes = 9400},
                  {.budget_bytes = 20000, .peak_bytes = 18800}};
  const Decision decision = decide({}, window, {0, 8, 0}, 64, state);
  EXPECT_EQ(decision.worst_rank, 1) << "a tie goes to the lower rank";
  EXPECT_EQ(decision.plan.micro_batch, 6);
  EXPECT_THAT(decision.reason, HasSubstr("rank 1"));
}

TEST(Decide, ARetryAnywhereCountsAsAboveTheTarget) {
  for (const RankUsage& trouble : {RankUsage{.budget_bytes = kBudget, .peak_bytes = 100, .retries = 1},
                                   RankUsage{.budget_bytes = kBudget, .peak_bytes = 100, .failed = true}}) {
    PolicyState state;
    WindowSummary window = window_at(3000);
    window.ranks.push_back(trouble);
    const Decision decision = decide({}, window, {0, 8, 0}, 64, state);
    EXPECT_EQ(decision.cause, Cause::kRetry);
    EXPECT_EQ(decision.plan.micro_batch, 6);
    EXPECT_EQ(decision.worst_rank, 0);
    EXPECT_THAT(decision.reason, HasSubstr("rank 1 ran out of memory"));
    ASSERT_EQ(state.failures.size(), 1U);
    EXPECT_EQ(state.failures[0].rank, 1);
    EXPECT_EQ(state.failures[0].plan.micro_batch, 8);
  }
}

TEST(Decide, AnAllocatorsRetryAloneShrinksNothing) {
  PolicyState state;
  WindowSummary window = window_at(8500);
  window.ranks[0].allocator_retries = 4;
  const Decision decision = decide({}, window, {0, 8, 0}, 64, state);
  EXPECT_EQ(decision.cause, Cause::kInBand) << decision.reason;
  EXPECT_FALSE(decision.changed);
  EXPECT_TRUE(state.failures.empty());
}

TEST(Decide, ARetryFarAboveTheTargetShrinksByTheFormula) {
  PolicyState state;
  WindowSummary window = window_at(9600);
  window.ranks[0].retries = 3;
  EXPECT_EQ(decide({}, window, {0, 9, 0}, 64, state).plan.micro_batch, 6);
}

TEST(Decide, OneWindowOfCooldownAfterAChange) {
  PolicyState state;
  Plan plan{0, 4, 0};
  std::vector<Cause> causes;
  for (int window = 0; window < 5; ++window) {
    const Decision decision = decide({}, window_at(5000), plan, 64, state);
    plan = decision.plan;
    causes.push_back(decision.cause);
  }
  EXPECT_THAT(causes,
              testing::ElementsAre(Cause::kBelow, Cause::kCooldown, Cause::kBelow, Cause::kCooldown, Cause::kBelow));
  EXPECT_EQ(plan.micro_batch, 4 + 3 * 7);
}

TEST(Decide, ARetryWhileCoolingDownIsSaidAndRemembered) {
  PolicyState state;
  state.cooldown = 1;
  state.last_change_step = 25;
  WindowSummary window = window_at(5000);
  window.ranks[0].retries = 2;
  const Decision decision = decide({}, window, {0, 8, 0}, 64, state);
  EXPECT_EQ(decision.cause, Cause::kCooldown);
  EXPECT_FALSE(decision.changed);
  EXPECT_THAT(decision.reason, HasSubstr("guardian retries 2"));
  EXPECT_EQ(state.failures.size(), 1U);
  EXPECT_EQ(state.cooldown, 0);
}

TEST(Decide, NoDecisionBeforeAFullWindow) {
  PolicyState state;
  WindowSummary window = window_at(1000);
  window.steps = 24;
  const Decision decision = decide({}, window, {0, 4, 0}, 64, state);
  EXPECT_EQ(decision.cause, Cause::kPartial);
  EXPECT_FALSE(decision.changed);
}

TEST(Decide, FixedNeverMoves) {
  PolicyConfig config;
  config.kind = PolicyKind::kFixed;
  for (std::int64_t usage : {0, 8500, 20000}) {
    PolicyState state;
    WindowSummary window = window_at(usage);
    window.ranks[0].retries = 1;
    const Decision decision = decide(config, window, {0, 8, 0}, 64, state);
    EXPECT_EQ(decision.cause, Cause::kFixed);
    EXPECT_FALSE(decision.changed);
  }
}

TEST(Decide, AKnobThatIsNotNamedNeverMoves) {
  PolicyConfig config;
  config.knobs = {};
  for (std::int64_t usage : {1000, 9900}) {
    PolicyState state;
    EXPECT_FALSE(decide(config, window_at(usage), {224, 8, 0}, 64, state).changed);
  }
}

TEST(Decide, KnobOrderIsConfiguration) {
  PolicyConfig config;
  config.knobs = {Knob::kMicroBatch, Knob::kResolution};
  PolicyState state;
  EXPECT_EQ(decide(config, window_at(7999), {224, 4, 0}, 64, state).plan, (Plan{224, 6, 0}));
  state = {};
  EXPECT_EQ(decide(config, window_at(9100), {224, 4, 0}, 64, state).plan, (Plan{168, 4, 0}))
      << "shrinks in the opposite order";
}

TEST(Decide, TheReasonSaysThatTheShareCaps) {
  PolicyState state;
  EXPECT_THAT(decide({}, window_at(1000), {0, 5, 0}, 8, state).reason, HasSubstr("micro-batch 5 -> 8"));
  state = {};
  EXPECT_THAT(decide({}, window_at(1000), {0, 5, 0}, 8, state).reason, HasSubstr("share of this step caps"));
  state = {};
  EXPECT_THAT(decide({}, window_at(1000), {0, 8, 0}, 8, state).reason, HasSubstr("whole share"));
  state = {};
  EXPECT_THAT(decide({}, window_at(7999), {0, 4, 0}, 64, state).reason, Not(HasSubstr("caps")));
}

TEST(Decide, TheReasonIsOneLineWithWhatWasSeenAndChosen) {
  PolicyState state;
  WindowSummary window{26, 50, 25, {{.budget_bytes = 300 << 20, .peak_bytes = 200 << 20}}};
  EXPECT_EQ(decide({}, window, {0, 4, 0}, 64, state).reason,
            "steps 26-50: worst is rank 0, peak 200.0 MiB = 66.6 % of its 300.0 MiB, target 85.0 % +- 5.0 %; "
            "micro-batch 4 -> 7, since "
            "18.3 % is available below the target");
}

TEST(Decide, EqualReportsGiveEqualDecisions) {
  PolicyState a, b;
  Plan plan{224, 8, 3};
  for (std::int64_t usage : {5000, 5000, 9500, 9500, 8500, 100, 100, 100}) {
    const Decision first = decide(both_knobs(), window_at(usage), plan, 16, a);
    const Decision second = decide(both_knobs(), window_at(usage), plan, 16, b);
    EXPECT_EQ(to_json(first), to_json(second));
    EXPECT_EQ(a, b);
    plan = first.plan;
  }
}

TEST(Decide, HistoryKeepsTheNewest) {
  PolicyConfig config;
  config.history = 3;
  PolicyState state;
  for (int i = 0; i < 5; ++i) {
    WindowSummary window = window_at(8500);
    window.last_step = 25 * (i + 1);
    window.ranks[0].retries = 1;
    decide(config, window, {0, 1, 0}, 64, state);
  }
  ASSERT_EQ(state.history.size(), 3U);
  EXPECT_EQ(state.history.front().step, 75);
  EXPECT_EQ(state.history.back().step, 125);
  EXPECT_EQ(state.failures.size(), 3U);
}

TEST(Decide, ABudgetOfNothingIsRefused) {
  PolicyState state;
  WindowSummary window = window_at(5000);
  window.ranks.push_back({});
  EXPECT_THROW(decide({}, window, {0, 4, 0}, 64, state), Error);
  window.ranks.clear();
  EXPECT_THROW(decide({}, window, {0, 4, 0}, 64, state), Error);
}

TEST(Baseline, SaysPlanBudgetsAndBounds) {
  PolicyState state;
  const std::vector<std::int64_t> budgets{300 << 20, 1 << 30};
  const Decision decision = baseline({}, 0, {0, 2, 0}, 8, budgets, state);
  EXPECT_TRUE(state.baseline_done);
  EXPECT_FALSE(decision.changed);
  EXPECT_EQ(decision.cause, Cause::kBaseline);
  EXPECT_EQ(decision.reason,
            "baseline: micro-batch 2, nothing recomputed; budgets 300.0 MiB, 1.00 GiB; target 85.0 % +- 5.0 %; "
            "micro-batch 2 in 1..8 (the "
            "whole share); a decision every 25 steps");
}

TEST(Baseline, AFirstPlanOutsideTheBoundsIsRefused) {
  PolicyState state;
  const std::vector<std::int64_t> budgets{1 << 30};
  EXPECT_THROW(baseline(both_knobs(), 0, {0, 2, 0}, 8, budgets, state), Error)
      << "images as they are, yet the resolution is a knob";
  EXPECT_THROW(baseline(both_knobs(), 0, {476, 2, 0}, 8, budgets, state), Error);
  EXPECT_THROW(baseline(classic_profile(), 0, {224, 2, 0}, 64, budgets, state), Error);
  EXPECT_NO_THROW(baseline(classic_profile(), 0, {224, 2, 0}, 2, budgets, state))
      << "the share is smaller than the minimum";
  EXPECT_FALSE(state.failures.size());
}

TEST(Decide, KnobsOfThePredictivePolicyArePassedOver) {
  PolicyConfig config;
  config.knobs = {Knob::kOffload, Knob::kMicroBatch, Knob::kRecompute};
  for (std::int64_t usage : {1000, 9900}) {
    PolicyState state, plain;
    EXPECT_EQ(decide(config, window_at(usage), {0, 8, 3}, 64, state).reason,
              decide({}, window_at(usage), {0, 8, 3}, 64, plain).reason);
  }
  PolicyState state;
  EXPECT_NO_THROW(baseline(config, 0, {0, 2, 0}, 8, std::vector<std::int64_t>{1 << 30}, state));
  config.knobs = {Knob::kRecompute};
  EXPECT_EQ(decide(config, window_at(9900), {0, 8, 3}, 64, state).cause, Cause::kAtMinimum);
}

TEST(Decide, ThePredictivePolicyNeedsItsTable) {
  PolicyConfig config;
  config.kind = PolicyKind::kPredictive;
  PolicyState state;
  EXPECT_THROW(decide(config, window_at(8500), {0, 8, 0}, 64, state), Error);
}

TEST(Escalate, RecomputesEverythingThenLowersTheResolutionIfAllowed) {
  PolicyState state;
  const TowerBlocks blocks{6, 0, 0};
  const FailureEntry first{17, 1, 3 << 20, {168, 4, 2}};
  const auto one = escalate(both_knobs(), first, blocks, state);
  ASSERT_TRUE(one);
  EXPECT_EQ(one->plan, (Plan{168, 1, 6}));
  EXPECT_THAT(one->reason, HasSubstr("rank 1"));
  EXPECT_EQ(state.cooldown, 1);
  const auto two = escalate(both_knobs(), {17, 1, 3 << 20, one->plan}, blocks, state);
  EXPECT_EQ(two->plan, (Plan{140, 1, 6}));
  const auto three = escalate(both_knobs(), {17, 1, 3 << 20, {112, 1, 6}}, blocks, state);
  EXPECT_FALSE(three) << "nothing left to give";
  EXPECT_EQ(state.failures.size(), 3U);
  EXPECT_TRUE(state.waits.empty()) << "only the predictive policy waits";
}

TEST(Escalate, GoesNoLowerThanTheSmallestMicroBatch) {
  PolicyState state;
  PolicyConfig config;
  config.micro_batch.minimum = 2;
  EXPECT_EQ(escalate(config, {1, 0, 0, {0, 4, 0}}, {6, 0, 0}, state)->plan, (Plan{0, 2, 6}));
  EXPECT_EQ(escalate(config, {1, 0, 0, {0, 1, 0}}, {6, 0, 0}, state)->plan, (Plan{0, 1, 6})) << "the share is smaller";
}

TEST(Escalate, WithoutTheResolutionKnobImagesStay) {
  PolicyState state;
  EXPECT_FALSE(escalate({}, {1, 0, 0, {224, 1, 6}}, {6, 0, 0}, state));
  EXPECT_TRUE(escalate({}, {1, 0, 0, {224, 1, 5}}, {6, 0, 0}, state));
}

TEST(Escalate, EveryTowerThenOffloadThenResolution) {
  PolicyConfig config = both_knobs();
  config.knobs.push_back(Knob::kOffload);
  const TowerBlocks blocks{6, 2, 3};
  Plan plan{140, 4, 2, 0, 1};
  std::vector<Plan> plans;
  PolicyState state;
  while (const auto next = escalate(config, {5, 0, 1, plan}, blocks, state)) plans.push_back(plan = next->plan);
  EXPECT_THAT(plans,
              testing::ElementsAre(Plan{140, 1, 6, 2, 3}, Plan{140, 1, 6, 2, 3, true}, Plan{112, 1, 6, 2, 3, true}));
  EXPECT_FALSE(escalate({}, {5, 0, 1, {0, 1, 6, 2, 3}}, blocks, state)) << "offload is no knob";
  config.knobs = {Knob::kOffload};
  EXPECT_FALSE(escalate(config, {5, 0, 1, {0, 1, 0}}, {0, 0, 0}, state)) << "nothing recomputed, nothing to offload";
}

TEST(Escalate, UnderThePredictivePolicyThePlanWaitsAndTheFailureTeaches) {
  PolicyConfig config;
  config.kind = PolicyKind::kPredictive;
  PolicyState state;
  const Plan plan{0, 4, 0};
  ASSERT_TRUE(escalate(config, {10, 1, 50, plan, 1000, 900, 800}, {6, 0, 0}, state));
  ASSERT_EQ(state.waits.size(), 1U);
  EXPECT_EQ(state.waits[0], (Wait{plan, 1, 10, 10 + 2 * 25, {{1, 1000}}}));
  EXPECT_EQ(state.calibration.corrected(1, plan, 800), 1001) << "900 + 50 is less than the budget and 1";
}

}  // namespace
}  // namespace plimsoll::memory
