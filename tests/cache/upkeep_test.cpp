#include "cache/upkeep.h"

#include <gtest/gtest.h>

#include <set>

#include "core/error.h"

namespace plimsoll::cache {
namespace {

UpkeepState aged(std::int64_t epochs, std::int64_t drift = -1) {
  UpkeepState state;
  state.epochs = epochs;
  state.drift = drift;
  return state;
}

TEST(Upkeep, RebuildsForAgeWhenAnEpochEnds) {
  const UpkeepRules rules{5, 0, 0};
  EXPECT_FALSE(rebuild_due(rules, aged(4), true));
  EXPECT_FALSE(rebuild_due(rules, aged(5), false));
  ASSERT_TRUE(rebuild_due(rules, aged(5), true));
  EXPECT_EQ(*rebuild_due(rules, aged(5), true), "the features are 5 epochs old (cache.rebuild_epochs = 5)");
  EXPECT_FALSE(rebuild_due({0, 0, 0}, aged(1000), true)) << "never";
}

TEST(Upkeep, RebuildsEarlierWhenFeaturesMovedAndLaterWhenTheyDidNot) {
  const UpkeepRules rules{5, 100'000, 0};
  EXPECT_FALSE(rebuild_due(rules, aged(1, 100'000), false));
  ASSERT_TRUE(rebuild_due(rules, aged(1, 100'001), false));
  EXPECT_NE(rebuild_due(rules, aged(1, 100'001), false)->find("moved by 0.1000"), std::string::npos);
  EXPECT_FALSE(rebuild_due(rules, aged(5, 9'999), true)) << "postponed";
  EXPECT_FALSE(rebuild_due(rules, aged(6, 0), true));
  EXPECT_TRUE(rebuild_due(rules, aged(6, 10'000), true));
  EXPECT_TRUE(rebuild_due(rules, aged(5, -1), true)) << "nobody looked";
}

TEST(Upkeep, OneRebuildAtATime) {
  UpkeepState state = aged(9, 900'000);
  state.begun = 40;
  EXPECT_FALSE(rebuild_due({5, 100'000, 3}, state, true));
}

TEST(Upkeep, PartsAreAllSamplesWhateverTheWorldSize) {
  for (const std::int64_t over : {0, 1, 3, 7}) {
    for (const std::int64_t samples : {1, 5, 64, 101}) {
      for (const int world : {1, 2, 4}) {
        UpkeepState state;
        state.begun = 10;
        std::set<std::int64_t> made;
        std::int64_t count = 0, steps = 0;
        for (;; ++state.parts) {
          ++steps;
          bool last = false;
          for (int rank = 0; rank < world; ++rank) {
            const Part part = part_of_rebuild({5, 0, over}, state, samples, rank, world);
            for (std::int64_t i = part.begin; i < part.end; ++i) made.insert(i);
            count += part.end - part.begin;
            last = part.last;
          }
          if (last) break;
        }
        EXPECT_EQ(count, samples);
        EXPECT_EQ(std::ssize(made), samples);
        EXPECT_EQ(steps, std::max<std::int64_t>(1, over));
      }
    }
  }
}

TEST(Upkeep, StateGoesThroughItsText) {
  const UpkeepState state{7, 12, 3, 4500, 5, 2};
  EXPECT_EQ(upkeep_from_json(to_json(state)), state);
  EXPECT_EQ(upkeep_from_json(""), UpkeepState());
  EXPECT_THROW(upkeep_from_json("{}"), Error);
  EXPECT_THROW(upkeep_from_json("nothing"), Error);
}

}  // namespace
}  // namespace plimsoll::cache
