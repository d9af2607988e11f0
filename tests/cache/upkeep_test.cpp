#include "cache/upkeep.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <utility>

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

TEST(Upkeep, SaysWhatIsPostponed) {
  const UpkeepRules rules{5, 100'000, 0};
  const auto still = rebuild_postponed(rules, aged(5, 9'999), true);
  ASSERT_TRUE(still);
  EXPECT_NE(still->find("5 epochs old"), std::string::npos) << *still;
  EXPECT_NE(still->find("moved by 0.0100 only"), std::string::npos) << *still;
  for (const auto& [state, ended] : {std::pair{aged(5, 9'999), false},
                                     {aged(4, 9'999), true},
                                     {aged(5, 10'000), true},
                                     {aged(5, -1), true},
                                     {aged(5, 100'001), true}})
    EXPECT_FALSE(rebuild_postponed(rules, state, ended)) << state.epochs << " " << state.drift;
}

TEST(Upkeep, OneRebuildAtATime) {
  UpkeepState state = aged(9, 900'000);
  state.begun = 40;
  EXPECT_FALSE(rebuild_due({5, 100'000, 3}, state, true));
}

TEST(Upkeep, PartsAreAllSamples) {
  for (const std::int64_t over : {0, 1, 3, 7}) {
    for (const std::int64_t samples : {1, 5, 64, 101}) {
      UpkeepState state;
      state.begun = 10;
      std::int64_t made = 0;
      for (bool last = false; !last; ++state.parts) {
        const Part part = part_of_rebuild({5, 0, over}, state, samples);
        EXPECT_EQ(part.begin, made);
        made = part.end;
        last = part.last;
      }
      EXPECT_EQ(made, samples);
      EXPECT_EQ(state.parts, std::max<std::int64_t>(1, over));
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
