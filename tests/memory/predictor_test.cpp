#include "memory/predictor.h"

#include <gtest/gtest.h>

#include <vector>

namespace plimsoll::memory {
namespace {

TEST(Predictor, NeverRoundsDownAndNeverUpByHalfAPerCent) {
  for (std::int64_t value = 1; value < 100000; value += 7) {
    const auto rounded = round_up_to_class(value, 4);
    EXPECT_GE(rounded, value);
    EXPECT_LE(rounded, value + std::max<std::int64_t>(3, value / 256)) << value;
    EXPECT_EQ(rounded % 4, 0);
  }
  EXPECT_EQ(round_up_to_class(0, 4), 0);
}

TEST(Predictor, SharesOneDryRunAmongNearbyShapes) {
  int runs = 0;
  Predictor predictor([&](const MicroBatchShape& shape, const Plan& plan) {
    ++runs;
    return shape.tokens * 10 + shape.patches + plan.recompute_blocks;
  });
  Plan plan;
  EXPECT_EQ(predictor.bytes({2, 1000, 512}, plan), predictor.bytes({2, 999, 510}, plan));
  EXPECT_EQ(runs, 1);
  EXPECT_GE(predictor.bytes({2, 1001, 512}, plan), 10010 + 512);
  EXPECT_EQ(runs, 2);
  predictor.bytes({3, 1000, 512}, plan);
  EXPECT_EQ(runs, 3);
  // What a plan asks of the model counts, and what the shape says already does not.
  plan.micro_batch = 7;
  predictor.bytes({2, 1000, 512}, plan);
  EXPECT_EQ(runs, 3);
  for (const Plan& other : {Plan{0, 1, 1}, Plan{0, 1, 0, 1}, Plan{0, 1, 0, 0, 1}, Plan{0, 1, 1, 0, 0, true}}) {
    predictor.bytes({2, 1000, 512}, other);
  }
  EXPECT_EQ(runs, 7);
}

TEST(Predictor, SaysWhatIsKnownWithoutADryRun) {
  int runs = 0;
  Predictor predictor([&](const MicroBatchShape& shape, const Plan&) { return ++runs, shape.tokens; });
  const MicroBatchShape shape{2, 1000, 512};
  EXPECT_EQ(predictor.known_bytes(shape, {}), std::nullopt);
  const std::int64_t bytes = predictor.bytes(shape, {});
  EXPECT_EQ(predictor.known_bytes(shape, {}), bytes);
  EXPECT_EQ(predictor.known_bytes({2, 999, 510}, {}), bytes) << "of the same class";
  EXPECT_EQ(predictor.known_bytes(shape, Plan{0, 1, 1}), std::nullopt);
  EXPECT_EQ(runs, 1);
}

class CountingPredictor : public ::testing::Test {
 protected:
  static std::int64_t measured(const MicroBatchShape& shape) {
    return 1000 * (shape.samples * 100 + shape.tokens * 10 + shape.patches);
  }
  std::size_t runs_of(const auto& action) {
    const std::size_t before = predictor_.dry_runs();
    action();
    return predictor_.dry_runs() - before;
  }

  static constexpr std::int64_t kSlack = 4096;
  Predictor predictor_{[](const MicroBatchShape& shape, const Plan&) { return measured(shape); }};
  Plan plan_;
};

TEST_F(CountingPredictor, AnswersFromLargerAndSmallerShapesWhatFits) {
  const MicroBatchShape large{4, 256, 128}, small{2, 64, 32};
  ASSERT_EQ(predictor_.bytes(large, plan_), measured(large));
  ASSERT_EQ(predictor_.bytes(small, plan_), measured(small));
  EXPECT_EQ(runs_of([&] {
              EXPECT_TRUE(predictor_.fits({3, 200, 128}, plan_, measured(large)));
              EXPECT_FALSE(predictor_.fits({2, 65, 32}, plan_, measured(small) - 1));
            }),
            0U);
  // The line between the two tells, and goes on beyond them; but only under the same recompute.
  const MicroBatchShape between{3, 160, 80};
  EXPECT_EQ(runs_of([&] {
              EXPECT_TRUE(predictor_.fits(between, plan_, measured(between) + kSlack));
              EXPECT_FALSE(predictor_.fits({8, 640, 320}, plan_, 2 * measured(large) - kSlack));
            }),
            0U);
  EXPECT_EQ(runs_of([&] { EXPECT_TRUE(predictor_.fits(between, plan_, measured(between))); }), 1U) << "too near";
  EXPECT_EQ(runs_of([&] { EXPECT_TRUE(predictor_.fits(small, {0, 1, 1}, measured(large))); }), 1U);
  // More of one thing and less of another tells nothing.
  EXPECT_EQ(runs_of([&] { EXPECT_TRUE(predictor_.fits({5, 128, 64}, plan_, measured(large))); }), 1U);
}

// A run meets new shapes in every step: all stay known, and the first, which plans were judged on, bound others for
// ever.
TEST_F(CountingPredictor, KeepsAllShapesAndTheBoundsOfTheFirst) {
  const MicroBatchShape heaviest{64, 100000, 40000};
  const std::int64_t most = predictor_.bytes(heaviest, plan_);
  const auto shape_of = [](int i) { return MicroBatchShape{1 + i % 8, 500 + 40 * i, 4 * (3000 - i)}; };
  constexpr int kShapes = 2000;
  std::vector<std::int64_t> bytes;
  for (int i = 0; i < kShapes; ++i) bytes.push_back(predictor_.bytes(shape_of(i), plan_));
  EXPECT_GT(predictor_.dry_runs(), 1000U) << "hardly two of one class";
  for (int i = 0; i < kShapes; ++i)
    ASSERT_EQ(predictor_.known_bytes(shape_of(i), plan_), bytes[static_cast<std::size_t>(i)]) << i;
  EXPECT_EQ(runs_of([&] {
              EXPECT_TRUE(predictor_.fits({63, 99000, 39000}, plan_, most));
              EXPECT_FALSE(predictor_.fits({65, 101000, 41000}, plan_, most - 1));
            }),
            0U);
  // And what bounds say is what a dry run says.
  for (int i = 0; i < 200; ++i) {
    const MicroBatchShape shape{1 + i % 7, 100 + 431 * i, 4 * (20 + 37 * (200 - i))};
    const std::int64_t limit = measured(shape) + 200000 * (i % 5 - 2);
    const bool fit = predictor_.fits(shape, plan_, limit);
    ASSERT_EQ(fit, predictor_.bytes(shape, plan_) <= limit) << i;
  }
}

TEST_F(CountingPredictor, ComparesTheFirstAttemptsExactlyAndThenOneOfSixteen) {
  predictor_.bytes({4, 1000, 400}, plan_);
  predictor_.bytes({4, 100, 40}, plan_);
  std::size_t exact = 0;
  for (int i = 0; i < 164; ++i) {
    const MicroBatchShape shape{4, 200 + i, 100};
    const std::int64_t bytes = predictor_.attempt_bytes(shape, plan_, 1 << 30);
    EXPECT_GE(bytes, measured(shape));
    exact += bytes == measured(shape) ? 1 : 0;
  }
  EXPECT_EQ(exact, 1U + 4 + 163 / 16) << "the first is far from all that is known";
  // What is beyond all that is known, or may not fit by its bound, is compared exactly.
  const MicroBatchShape larger{4, 1002, 400}, tight{4, 300, 120};
  EXPECT_EQ(predictor_.attempt_bytes(larger, plan_, 1 << 30), measured(larger));
  EXPECT_EQ(predictor_.attempt_bytes(tight, plan_, measured(tight)), measured(tight));
}

TEST_F(CountingPredictor, TakesOverWhatOthersMeasured) {
  const MicroBatchShape shape{4, 256, 128};
  predictor_.take_over(shape, plan_, 12345);
  predictor_.take_over(shape, plan_, 1);  // a second word on it changes nothing
  EXPECT_EQ(runs_of([&] {
              EXPECT_EQ(predictor_.bytes(shape, plan_), 12345);
              EXPECT_EQ(predictor_.known_to_fit({3, 200, 100}, plan_, 12345), true);
              EXPECT_EQ(predictor_.known_to_fit({5, 300, 128}, plan_, 12344), false);
            }),
            0U);
}

TEST_F(CountingPredictor, MakesNoDryRunForAChoiceThatMayBeLeftWithoutTimeForIt) {
  const MicroBatchShape first{1, 100, 40}, second{2, 90, 80};
  EXPECT_EQ(predictor_.known_to_fit(first, plan_, 1 << 30), std::nullopt);
  EXPECT_TRUE(predictor_.fits_in_time(first, plan_, 1 << 30)) << "nothing is granted yet, so there is no limit";
  predictor_.grant(0);
  EXPECT_EQ(runs_of([&] { EXPECT_FALSE(predictor_.fits_in_time(second, plan_, 1 << 30)); }), 0U);
  EXPECT_EQ(runs_of([&] { EXPECT_TRUE(predictor_.fits_in_time(first, plan_, 1 << 30)); }), 0U) << "it is known";
  EXPECT_EQ(runs_of([&] { EXPECT_TRUE(predictor_.fits(second, plan_, 1 << 30)); }), 1U) << "here all turns on it";
  // An attempt is compared with a bound, where one is within its room; else it needs the dry run.
  predictor_.bytes({4, 1000, 400}, plan_);
  EXPECT_EQ(runs_of([&] { predictor_.attempt_bytes({3, 800, 300}, plan_, 1 << 30); }), 0U);
  EXPECT_EQ(runs_of([&] { predictor_.attempt_bytes({5, 1100, 440}, plan_, 1 << 30); }), 1U);
  predictor_.grant(60'000'000);
  EXPECT_EQ(runs_of([&] { EXPECT_TRUE(predictor_.fits_in_time({3, 80, 120}, plan_, 1 << 30)); }), 0U) << "held by one";
  EXPECT_EQ(runs_of([&] { EXPECT_TRUE(predictor_.fits_in_time({9, 80, 40}, plan_, 1 << 30)); }), 1U);
}

}  // namespace
}  // namespace plimsoll::memory
