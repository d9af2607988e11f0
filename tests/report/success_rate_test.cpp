#include "report/success_rate.h"

#include <gtest/gtest.h>

namespace plimsoll::report {
namespace {

// The last four: Newcombe, "Two-sided confidence intervals for the single proportion", 1998, Table I, method 3.
TEST(SuccessRate, WilsonIntervalsAreThoseOfTheBooks) {
  const auto expect = [](std::int64_t successes, std::int64_t trials, double low, double high) {
    const Interval interval = wilson_interval(successes, trials);
    EXPECT_NEAR(interval.low, low, 5e-5) << successes << " of " << trials;
    EXPECT_NEAR(interval.high, high, 5e-5) << successes << " of " << trials;
  };
  expect(5, 10, 0.2366, 0.7634);
  expect(0, 10, 0, 0.2775);
  expect(10, 10, 0.7225, 1);
  expect(81, 263, 0.2553, 0.3662);
  expect(15, 148, 0.0624, 0.1605);
  expect(0, 20, 0, 0.1611);
  expect(1, 29, 0.0061, 0.1718);
}

TEST(SuccessRate, WilsonIntervalsNarrowAndHoldTheRate) {
  double width = 1;
  for (const std::int64_t trials : {8, 40, 200, 1000}) {
    const Interval interval = wilson_interval(trials / 4, trials);
    EXPECT_LT(interval.low, 0.25);
    EXPECT_GT(interval.high, 0.25);
    EXPECT_LT(interval.high - interval.low, width);
    width = interval.high - interval.low;
  }
  for (const std::int64_t trials : {1, 6, 7, 100}) {
    EXPECT_EQ(wilson_interval(0, trials).low, 0);
    EXPECT_EQ(wilson_interval(trials, trials).high, 1);
  }
  EXPECT_EQ(wilson_interval(0, 0).low, 0);
  EXPECT_EQ(wilson_interval(0, 0).high, 1);
}

TEST(SuccessRate, IsOfAllAndOfEachTask) {
  const std::vector<EpisodeResult> episodes = {
      {"red", true, true, 6}, {"blue", false, true, 20}, {"red", true, true, 8}, {"red", false, false, 20}};
  const auto rates = success_rates(episodes);
  ASSERT_EQ(rates.size(), 3U);
  EXPECT_EQ(rates[0].task, "");
  EXPECT_EQ(rates[0].episodes, 4);
  EXPECT_EQ(rates[0].successes, 2);
  EXPECT_EQ(rates[0].reached, 3);
  EXPECT_DOUBLE_EQ(rates[0].rate(), 0.5);
  EXPECT_DOUBLE_EQ(rates[0].mean_steps, 13.5);
  EXPECT_DOUBLE_EQ(*rates[0].steps_to_success, 7);
  EXPECT_EQ(rates[1].task, "blue");
  EXPECT_FALSE(rates[1].steps_to_success.has_value());
  EXPECT_EQ(rates[2].task, "red");
  EXPECT_EQ(rates[2].successes, 2);
  EXPECT_EQ(success_rates({}).front().episodes, 0);
}

}  // namespace
}  // namespace plimsoll::report
