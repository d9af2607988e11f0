#include "cache/tiers.h"

#include <gtest/gtest.h>

namespace plimsoll::cache {
namespace {

TEST(Tiers, ByThemselvesTakeNothingOnTheCpu) {
  EXPECT_EQ(choose_tiers({}, {}, {100, 1'000'000, 900'000, 1'000'000, true}), (TierSizes{0, 0}));
  EXPECT_EQ(choose_tiers(50, 40, {100, 1'000'000, 900'000, 1'000'000, true}), (TierSizes{50, 40}))
      << "but what is asked for";
}

TEST(Tiers, ByThemselvesTakeAGpusMemoryOnlyForAll) {
  EXPECT_EQ(choose_tiers({}, {}, {100, 2000, 1000, 1000, false}), (TierSizes{100, 0}));
  EXPECT_EQ(choose_tiers({}, {}, {101, 2000, 1000, 1000, false}), (TierSizes{0, 101}));
  EXPECT_EQ(choose_tiers({}, {}, {100, 2000, 399, 1000, false}), (TierSizes{0, 100})) << "the model leaves too little";
  EXPECT_EQ(choose_tiers({}, {}, {900, 2000, 1000, 1000, false}), (TierSizes{0, 500})) << "half of what is free";
  EXPECT_EQ(choose_tiers(60, {}, {100, 2000, 1000, 1000, false}), (TierSizes{60, 40})) << "the rest";
  EXPECT_EQ(choose_tiers(0, 0, {100, 2000, 1000, 1000, false}), (TierSizes{0, 0}));
}

TEST(Tiers, TakeNoMoreThanThereAreFeatures) {
  EXPECT_EQ(choose_tiers(600, {}, {100, 2000, 1000, 1000, false}), (TierSizes{100, 0}));
  EXPECT_EQ(choose_tiers(40, 600, {100, 2000, 1000, 1000, true}), (TierSizes{40, 60}));
}

}  // namespace
}  // namespace plimsoll::cache
