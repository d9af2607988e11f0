#include "cache/row_ranges.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

namespace plimsoll::cache {
namespace {

TEST(RowRanges, TheSmallestGapThatHoldsThemTheForemostOfSuch) {
  RowRanges ranges(10);
  EXPECT_EQ(ranges.take(3), 0);
  EXPECT_EQ(ranges.take(2), 3);
  EXPECT_EQ(ranges.take(3), 5);
  EXPECT_EQ(ranges.take(3), std::nullopt);
  EXPECT_EQ(ranges.free(), 2);
  ranges.give_back(0, 3);
  EXPECT_EQ(ranges.take(2), 8) << "not into the gap of three";
  ranges.give_back(8, 2);
  ranges.give_back(3, 2);  // now 0 to 4 and 8 to 9 are free
  EXPECT_EQ(ranges.take(2), 8);
  EXPECT_EQ(ranges.take(3), 0);
  ranges.give_back(8, 2);
  EXPECT_EQ(ranges.take(2), 3) << "of two gaps of two the foremost";
  EXPECT_EQ(ranges.take(2), 8);
  ranges.give_back(0, 3);
  ranges.give_back(5, 3);
  ranges.give_back(3, 2);
  EXPECT_EQ(ranges.take(8), 0) << "gaps that touch are one";
  EXPECT_EQ(RowRanges(0).take(1), std::nullopt);
}

TEST(RowRanges, NoRowIsTakenTwiceAndNoneIsLost) {
  constexpr std::int64_t kRows = 200;
  std::mt19937 random(3);
  RowRanges ranges(kRows);
  std::vector<bool> taken(kRows);
  std::vector<std::pair<std::int64_t, std::int64_t>> held;
  int refused = 0;
  for (int i = 0; i < 20'000; ++i) {
    if (random() % 2 == 0) {
      const auto count = static_cast<std::int64_t>(1 + random() % 30);
      const auto first = ranges.take(count);
      std::int64_t longest = 0, gap = 0;
      for (const bool one : taken) longest = std::max(longest, gap = one ? 0 : gap + 1);
      ASSERT_EQ(first.has_value(), longest >= count);
      refused += first ? 0 : 1;
      if (!first) continue;
      for (std::int64_t row = *first; row < *first + count; ++row) {
        ASSERT_FALSE(taken.at(static_cast<std::size_t>(row)));
        taken[static_cast<std::size_t>(row)] = true;
      }
      held.emplace_back(*first, count);
    } else if (!held.empty()) {
      std::swap(held[random() % held.size()], held.back());
      const auto [first, count] = held.back();
      held.pop_back();
      ranges.give_back(first, count);
      for (std::int64_t row = first; row < first + count; ++row) taken[static_cast<std::size_t>(row)] = false;
    }
    ASSERT_EQ(ranges.free(), std::count(taken.begin(), taken.end(), false));
  }
  EXPECT_GT(refused, 100);
  for (const auto& [first, count] : held) ranges.give_back(first, count);
  EXPECT_EQ(ranges.take(kRows), 0);
}

}  // namespace
}  // namespace plimsoll::cache
