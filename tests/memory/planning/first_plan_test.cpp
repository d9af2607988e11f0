#include "memory/planning/first_plan.h"

#include <gtest/gtest.h>

namespace plimsoll::memory {
namespace {

TEST(FirstPlan, FindsTheLargestThatFitsWithFewQuestions) {
  for (int answer = 1; answer <= 64; ++answer) {
    int asked = 0;
    EXPECT_EQ(largest_micro_batch(1, 64, [&](int n) { return ++asked, n <= answer; }), answer);
    EXPECT_LE(asked, 8);
  }
}

TEST(FirstPlan, SaysZeroWhenNotEvenTheSmallestFits) {
  EXPECT_EQ(largest_micro_batch(1, 64, [](int) { return false; }), 0);
  EXPECT_EQ(largest_micro_batch(4, 64, [](int n) { return n < 4; }), 0);
  EXPECT_EQ(largest_micro_batch(4, 2, [](int) { return true; }), 0);
}

TEST(FirstPlan, PicksTheHeaviest) {
  const auto top = heaviest({{10, 20}, {50, 0}, {10, 90}, {60, 40}}, 2);
  ASSERT_EQ(top.size(), 2U);
  EXPECT_EQ(top[0], (SampleShape{60, 40}));
  EXPECT_EQ(top[1], (SampleShape{10, 90}));
  EXPECT_EQ(heaviest({{1, 1}}, 5).size(), 1U);
}

}  // namespace
}  // namespace plimsoll::memory
