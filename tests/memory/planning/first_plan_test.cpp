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

TEST(FirstPlan, TheHeaviestBoundAnySamples) {
  const std::vector<SampleShape> shapes = {{10, 4}, {300, 0}, {95, 256}, {40, 64}};
  const auto text = [](const std::vector<SampleShape>& bounds) {
    std::vector<std::pair<std::int64_t, std::int64_t>> pairs;
    for (const auto& shape : bounds) pairs.emplace_back(shape.tokens, shape.patches);
    return pairs;
  };
  using Pairs = std::vector<std::pair<std::int64_t, std::int64_t>>;
  EXPECT_EQ(text(heaviest(shapes, 2)), (Pairs{{300, 256}, {95, 64}}));
  EXPECT_EQ(text(heaviest(shapes, 3, 2)), (Pairs{{300, 256}, {300, 256}, {95, 64}})) << "drawn twice in a step";
  EXPECT_EQ(heaviest(shapes, 9).size(), 4U);
  EXPECT_EQ(heaviest(shapes, 9, 3).size(), 9U);
  EXPECT_TRUE(heaviest({}, 3).empty());
}

}  // namespace
}  // namespace plimsoll::memory
