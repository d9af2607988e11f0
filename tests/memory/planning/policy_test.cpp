// Settings, windows and the saved state.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "core/error.h"
#include "tests/error_of.h"
#include "tests/memory/planning/policy_cases.h"

namespace plimsoll::memory {
namespace {

using testing::HasSubstr;

std::string refused(const PolicyConfig& config) {
  return error_of(ExitCode::kUsage, [&] { check(config); });
}

TEST(PlanHash, DependsOnEveryFieldAndFitsASlot) {
  const Plan plan{224, 4, 2};
  EXPECT_EQ(plan_hash(plan), plan_hash(Plan{224, 4, 2}));
  EXPECT_NE(plan_hash(plan), plan_hash({225, 4, 2}));
  EXPECT_NE(plan_hash(plan), plan_hash({224, 5, 2}));
  EXPECT_NE(plan_hash(plan), plan_hash({224, 4, 3}));
  EXPECT_NE(plan_hash({1, 2, 0}), plan_hash({2, 1, 0}));
  EXPECT_NE(plan_hash(plan), plan_hash({224, 4, 2, 1}));
  EXPECT_NE(plan_hash(plan), plan_hash({224, 4, 2, 0, 1}));
  EXPECT_NE(plan_hash({224, 4, 2, 1, 0}), plan_hash({224, 4, 2, 0, 1}));
  EXPECT_NE(plan_hash(plan), plan_hash({224, 4, 2, 0, 0, true}));
  for (int n = 0; n < 1000; ++n) EXPECT_LT(plan_hash({n, n, n}), 1U << 24);
}

TEST(PlanText, LeavesOutWhatDoesNotApply) {
  EXPECT_EQ(to_string(Plan{0, 4, 18}), "micro-batch 4, recompute 18 blocks");
  EXPECT_EQ(to_string(Plan{224, 1, 1}), "resolution 224 px, micro-batch 1, recompute 1 block");
  EXPECT_EQ(to_string(Plan{}), "micro-batch 1, nothing recomputed");
  EXPECT_EQ(to_string(Plan{0, 4, 18, 2, 3, true}),
            "micro-batch 4, recompute 18 blocks, recompute 2 vision blocks, recompute 3 expert blocks, offloaded");
  EXPECT_EQ(to_string(Plan{0, 4, 0, 0, 1}), "micro-batch 4, recompute 1 expert block");
}

TEST(PolicyConfig, DefaultsAndClassicAreValid) {
  EXPECT_NO_THROW(check({}));
  EXPECT_NO_THROW(check(classic_profile()));
}

TEST(PolicyConfig, OfEachPolicyIsValidByDefault) {
  for (const PolicyKind kind : {PolicyKind::kFixed, PolicyKind::kReactive, PolicyKind::kPredictive}) {
    const PolicyConfig config = default_policy(kind);
    EXPECT_NO_THROW(check(config));
    EXPECT_EQ(config.kind, kind);
    EXPECT_EQ(config.target, automatic_target(kind));
    EXPECT_LE(config.target + config.margin, 10000);
  }
  EXPECT_GT(automatic_target(PolicyKind::kPredictive), automatic_target(PolicyKind::kReactive));
}

TEST(PolicyConfig, EachSettingThatMakesNoSenseIsNamed) {
  PolicyConfig config;
  config.target = 0;
  EXPECT_THAT(refused(config), HasSubstr("memory.target"));
  config = {};
  config.target = 10001;
  EXPECT_THAT(refused(config), HasSubstr("memory.target"));
  config = {};
  config.margin = 8500;
  EXPECT_THAT(refused(config), HasSubstr("memory.margin"));
  config = {};
  config.margin = -1;
  EXPECT_THAT(refused(config), HasSubstr("memory.margin"));
  config = {};
  config.margin = 1501;
  EXPECT_THAT(refused(config), HasSubstr("at most 0.15"));
  config.margin = 1500;
  EXPECT_EQ(refused(config), "no error");
  config = {};
  config.least_gain = -1;
  EXPECT_THAT(refused(config), HasSubstr("least gain"));
  config = {};
  config.first_wait_windows = 0;
  EXPECT_THAT(refused(config), HasSubstr("first wait"));
  config = {};
  config.adjustment_frequency = 0;
  EXPECT_THAT(refused(config), HasSubstr("memory.adjustment_frequency"));
  config = {};
  config.micro_batch = {8, 4, 1};
  EXPECT_THAT(refused(config), HasSubstr("batch.max_micro"));
  config = {};
  config.micro_batch.minimum = 0;
  EXPECT_THAT(refused(config), HasSubstr("batch.min_micro"));
  config = {};
  config.resolution = {448, 112, 28};
  EXPECT_THAT(refused(config), HasSubstr("data.max_resolution"));
  config = {};
  config.resolution.step = 0;
  EXPECT_THAT(refused(config), HasSubstr("step"));
  config = {};
  config.history = 0;
  EXPECT_THAT(refused(config), HasSubstr("history"));
  config = {};
  config.cooldown_windows = -1;
  EXPECT_THAT(refused(config), HasSubstr("cooldown"));
}

TEST(PolicyConfig, ParsesNames) {
  EXPECT_EQ(parse_policy("fixed"), PolicyKind::kFixed);
  EXPECT_EQ(parse_policy("reactive"), PolicyKind::kReactive);
  EXPECT_EQ(parse_policy("predictive"), PolicyKind::kPredictive);
  EXPECT_THAT(error_of(ExitCode::kUsage, [] { parse_policy("magic"); }), HasSubstr("memory.policy = \"magic\""));
  const std::vector<std::string> both{"resolution", "micro_batch"};
  EXPECT_EQ(parse_knobs(both), (std::vector{Knob::kResolution, Knob::kMicroBatch}));
  const std::vector<std::string> others{"offload", "recompute"};
  EXPECT_EQ(parse_knobs(others), (std::vector{Knob::kOffload, Knob::kRecompute}));
  const std::vector<std::string> doubled{"micro_batch", "micro_batch"}, unknown{"resolutoin"};
  EXPECT_THAT(error_of(ExitCode::kUsage, [&] { parse_knobs(doubled); }), HasSubstr("twice"));
  EXPECT_THAT(error_of(ExitCode::kUsage, [&] { parse_knobs(unknown); }), HasSubstr("resolutoin"));
}

TEST(PolicyConfig, ParsesFractions) {
  EXPECT_EQ(parse_fraction(0.85, "memory.target"), 8500);
  EXPECT_EQ(parse_fraction(0.05, "memory.margin"), 500);
  EXPECT_EQ(parse_fraction(1.0, "memory.target"), 10000);
  EXPECT_EQ(parse_fraction(0.00005, "memory.target"), 1);
  for (double wrong : {0.0, -0.1, 1.01, 85.0, std::nan(""), 1e-9}) {
    EXPECT_THAT(error_of(ExitCode::kUsage, [&] { parse_fraction(wrong, "memory.target"); }), HasSubstr("memory.target"))
        << wrong;
  }
}

TEST(FixedPolicy, TheProductMustBeTheEffectiveBatch) {
  EXPECT_NO_THROW(check_fixed(2, 16, 1, 32));
  EXPECT_NO_THROW(check_fixed(2, 4, 4, 32));
  EXPECT_THAT(error_of(ExitCode::kUsage, [] { check_fixed(2, 16, 2, 32); }),
              HasSubstr("micro-batch 2 x accumulation 16 x 2 ranks"));
  EXPECT_NE(error_of(ExitCode::kUsage, [] { check_fixed(3, 16, 1, 32); }), "no error");
  EXPECT_NE(error_of(ExitCode::kUsage, [] { check_fixed(2, 16, 1, 0); }), "no error");
  EXPECT_NE(error_of(ExitCode::kUsage, [] { check_fixed(0, 16, 1, 32); }), "no error");
  EXPECT_NE(error_of(ExitCode::kUsage, [] { check_fixed(std::int64_t{1} << 62, 4, 1, 0); }), "no error")
      << "would overflow to 0";
}

TEST(Window, EmitsAtItsEndAndStartsAnew) {
  WindowAccumulator windows(3, 2);
  EXPECT_FALSE(windows.add(1, std::vector<RankUsage>{{100, 10, 1, 0, 5, false}, {200, 20, 0, 0, 0, false}}));
  EXPECT_FALSE(windows.add(2, std::vector<RankUsage>{{100, 70, 0, 2, 0, false}, {200, 10, 0, 0, 0, false}}));
  const auto full = windows.add(3, std::vector<RankUsage>{{90, 30, 1, 0, 9, false}, {200, 15, 0, 0, 0, true}});
  ASSERT_TRUE(full);
  EXPECT_EQ(*full, (WindowSummary{1, 3, 3, {{90, 70, 2, 2, 9, false}, {200, 20, 0, 0, 0, true}}}));
  EXPECT_EQ(windows.current(), WindowSummary{});
  EXPECT_FALSE(windows.add(4, std::vector<RankUsage>{{90, 5, 0, 0, 0, false}, {200, 6, 0, 0, 0, false}}));
  EXPECT_EQ(windows.current().ranks[0].peak_bytes, 5) << "peaks start anew";
}

TEST(Window, AReplayedStepCountsItsTroubleButNotItself) {
  WindowAccumulator windows(2, 1);
  EXPECT_FALSE(windows.add(1, std::vector<RankUsage>{{100, 99, 3, 0, 50, true}}, false));
  EXPECT_FALSE(windows.add(1, std::vector<RankUsage>{{100, 40, 0, 0, 0, false}}));
  const auto full = windows.add(2, std::vector<RankUsage>{{100, 40, 0, 0, 0, false}});
  ASSERT_TRUE(full);
  EXPECT_EQ(*full, (WindowSummary{1, 2, 2, {{100, 99, 3, 0, 50, true}}}));
}

TEST(Window, KeepsThePairOfTheStepThatFellShortMost) {
  WindowAccumulator windows(3, 1);
  const auto step = [](std::int64_t predicted, std::int64_t peak, std::int64_t retries = 0) {
    return std::vector<RankUsage>{
        {.budget_bytes = 1000, .peak_bytes = peak, .retries = retries, .predicted_peak_bytes = predicted}};
  };
  windows.add(1, step(500, 400));
  EXPECT_EQ(windows.current().ranks[0].predicted_peak_bytes, 500);
  windows.add(2, step(300, 310));
  windows.add(3, step(100, 900, 1), false);  // a retry says nothing of the prediction
  const auto full = windows.add(3, step(800, 805));
  ASSERT_TRUE(full);
  EXPECT_EQ(full->ranks[0].predicted_peak_bytes, 300);
  EXPECT_EQ(full->ranks[0].compared_peak_bytes, 310);
  EXPECT_EQ(full->ranks[0].peak_bytes, 900);
}

TEST(Window, WithoutAPredictionThereIsNoPair) {
  WindowAccumulator windows(1, 1);
  const auto full = windows.add(1, std::vector<RankUsage>{{.budget_bytes = 1000, .peak_bytes = 900}});
  EXPECT_EQ(full->ranks[0].predicted_peak_bytes, 0);
  EXPECT_EQ(full->ranks[0].compared_peak_bytes, 0);
}

TEST(Window, RestartForgets) {
  WindowAccumulator windows(2, 1);
  windows.add(1, std::vector<RankUsage>{{100, 99, 0, 0, 0, false}});
  windows.restart();
  EXPECT_FALSE(windows.add(2, std::vector<RankUsage>{{100, 10, 0, 0, 0, false}}));
  EXPECT_EQ(windows.add(3, std::vector<RankUsage>{{100, 11, 0, 0, 0, false}})->ranks[0].peak_bytes, 11);
}

TEST(Window, RefusesAnotherWorld) {
  EXPECT_THROW(WindowAccumulator(0, 1), Error);
  EXPECT_THROW(WindowAccumulator(1, 0), Error);
  WindowAccumulator windows(2, 2);
  EXPECT_THROW(windows.add(1, std::vector<RankUsage>{{}}), Error);
}

TEST(StateJson, RoundTrips) {
  PolicyState state;
  EXPECT_EQ(policy_state_from_json(to_json(state)), state);
  state.baseline_done = true;
  state.cooldown = 1;
  state.last_change_step = std::int64_t{1} << 40;
  state.history = {{25, 6100, {224, 4, 2}, Direction::kGrow},
                   {50, 9900, {224, 2, 2}, Direction::kShrink},
                   {75, 8500, {}, Direction::kHold}};
  state.failures = {{49, 3, std::int64_t{1} << 35, {224, 6, 2}, 7, 8, 9}};
  state.calibration.observe(2, {224, 6, 2}, 100, 130);
  state.calibration.observe(0, {224, 6, 2, 1, 1, true}, 100, 90);
  state.waits = {{{0, 4, 18}, 2, 30, std::int64_t{1} << 48, {{0, 100}, {3, 0}}}, {{0, 2, 0}, 1, 9, 59, {}, true}};
  EXPECT_EQ(policy_state_from_json(to_json(state)), state);
}

TEST(StateJson, AStateOfAnOlderVersionIsRead) {
  const PolicyState state = policy_state_from_json(
      R"({"baseline_done":true,"cooldown":1,"last_change_step":25,
          "history":[{"step":25,"usage":6100,"plan":{"resolution":0,"micro_batch":4,"recompute_blocks":2},"direction":"grow"}],
          "failures":[{"step":9,"rank":1,"request_bytes":5,"plan":{"resolution":0,"micro_batch":6,"recompute_blocks":0}}]})");
  PolicyState same;
  same.baseline_done = true;
  same.cooldown = 1;
  same.last_change_step = 25;
  same.history = {{25, 6100, {0, 4, 2}, Direction::kGrow}};
  same.failures = {{9, 1, 5, {0, 6, 0}}};
  EXPECT_EQ(state, same);
}

TEST(StateJson, DamageOfThePredictivePartIsNamed) {
  PolicyState state;
  state.calibration.observe(2, {224, 6, 2}, 100, 130);
  state.waits = {{{0, 4, 18}, 2, 30, 90, {{5, 100}}}};
  const std::string text = to_json(state);
  const auto replaced = [&](const std::string& from, const std::string& to) {
    std::string copy = text;
    copy.replace(copy.find(from), from.size(), to);
    return error_of(ExitCode::kCheckpoint, [&] { policy_state_from_json(copy); });
  };
  EXPECT_THAT(replaced("\"offset_bytes\":30", "\"offset_bytes\":-30"), HasSubstr("calibration[0].offset_bytes"));
  EXPECT_THAT(replaced("\"until_step\":90", "\"until_step\":null"), HasSubstr("waits[0].until_step"));
  EXPECT_THAT(replaced("\"rank\":5", "\"rank\":18446744073709551615"), HasSubstr("waits[0].ranks[0].rank"));
  EXPECT_THAT(replaced("\"offload\":false", "\"offload\":0"), HasSubstr("offload"));
}

TEST(StateJson, DamageIsNamed) {
  const auto damage = [](std::string text) {
    return error_of(ExitCode::kCheckpoint, [&] { policy_state_from_json(text); });
  };
  EXPECT_THAT(damage("{"), HasSubstr("no JSON"));
  EXPECT_THAT(damage("[]"), HasSubstr("object"));
  EXPECT_THAT(damage("{}"), HasSubstr("baseline_done"));
  PolicyState state;
  state.history = {{25, 6100, {224, 4, 2}, Direction::kGrow}};
  std::string text = to_json(state);
  const auto replaced = [&](const std::string& from, const std::string& to) {
    std::string copy = text;
    copy.replace(copy.find(from), from.size(), to);
    return damage(copy);
  };
  EXPECT_THAT(replaced("\"grow\"", "\"gorw\""), HasSubstr("history[0].direction"));
  EXPECT_THAT(replaced("224", "\"224\""), HasSubstr("history[0].plan.resolution"));
  EXPECT_THAT(replaced("224", "9999999999"), HasSubstr("history[0].plan.resolution"));
  EXPECT_THAT(replaced("\"cooldown\":0", "\"cooldown\":0.5"), HasSubstr("cooldown"));
  EXPECT_THAT(replaced("\"failures\":[]", "\"failures\":7"), HasSubstr("failures"));
  EXPECT_THAT(replaced("\"micro_batch\"", "\"micro\""), HasSubstr("history[0].plan.micro_batch"));
}

TEST(DecisionJson, IsOneLineWithItsInputs) {
  PolicyState state;
  const std::string line = to_json(decide({}, window_at(7000), {0, 4, 0}, 64, state));
  EXPECT_EQ(line.find('\n'), std::string::npos);
  for (const char* part :
       {"\"usage_per_10000\":7000", "\"changed\":true", "\"direction\":\"grow\"", "\"cause\":\"below\"",
        "\"plan\":{\"resolution\":0,\"micro_batch\":7,\"recompute_blocks\":0,\"recompute_vision\":0,"
        "\"recompute_expert\":0,\"offload\":false}",
        "\"reason\":\"steps 1-25"}) {
    EXPECT_THAT(line, HasSubstr(part));
  }
}

}  // namespace
}  // namespace plimsoll::memory
