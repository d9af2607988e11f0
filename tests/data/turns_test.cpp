// Turns dealt in given parts, and parts out of fractions and weights.
#include "data/turns.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

namespace plimsoll::data {
namespace {

using ::testing::ElementsAre;

std::vector<std::int64_t> random_parts(std::mt19937& random) {
  std::vector<std::int64_t> parts(1 + random() % 8);
  for (std::int64_t& part : parts) part = static_cast<std::int64_t>(random() % 13);
  parts.front() += 1;  // not all 0
  return parts;
}

TEST(Turns, AreAsEvenAsCanBeAtEveryMoment) {
  std::mt19937 random(5);
  for (int i = 0; i < 200; ++i) {
    const std::vector<std::int64_t> parts = random_parts(random);
    const Turns turns(parts);
    const auto all = std::accumulate(parts.begin(), parts.end(), std::int64_t{0});
    std::vector<std::uint64_t> counts(parts.size());
    for (std::uint64_t position = 0; position < 2 * static_cast<std::uint64_t>(all); ++position) {
      const Turns::Turn turn = turns.at(position);
      ASSERT_EQ(turn.number, counts[turn.taker]++);
      ASSERT_EQ(turns.position_of(turn), position);
      for (std::size_t taker = 0; taker < parts.size(); ++taker) {
        const double part = static_cast<double>(parts[taker]) / static_cast<double>(all);
        const double due = part * static_cast<double>(position + 1);
        ASSERT_LT(std::abs(static_cast<double>(counts[taker]) - due), static_cast<double>(parts.size()));
      }
    }
    for (std::size_t taker = 0; taker < parts.size(); ++taker)
      ASSERT_EQ(counts[taker], 2 * static_cast<std::uint64_t>(parts[taker])) << "after two periods";
  }
}

/// Of so many turns in a row that begin within the first `starts` ones.
std::int64_t most_counted(const Turns& turns, std::size_t taker, std::int64_t in_a_row, std::int64_t starts) {
  std::int64_t most = 0;
  for (std::int64_t start = 0; start < starts; ++start) {
    std::int64_t own = 0;
    for (std::int64_t i = start; i < start + in_a_row; ++i)
      if (turns.at(static_cast<std::uint64_t>(i)).taker == taker) ++own;
    most = std::max(most, own);
  }
  return most;
}

TEST(Turns, SayHowManyOfThoseInARowOneTakerHas) {
  std::mt19937 random(6);
  for (int i = 0; i < 40; ++i) {
    const std::vector<std::int64_t> parts = random_parts(random);
    const Turns turns(parts);
    const auto all = std::accumulate(parts.begin(), parts.end(), std::int64_t{0});
    for (std::size_t taker = 0; taker < parts.size(); ++taker)
      for (const std::int64_t in_a_row : {std::int64_t{1}, std::int64_t{5}, all - 1, all, 2 * all + 3})
        ASSERT_EQ(turns.most_of(taker, in_a_row), most_counted(turns, taker, in_a_row, all))
            << in_a_row << " of " << all;
  }
}

TEST(Turns, HavePartsByFractionsAndWeights) {
  EXPECT_THAT(whole_parts({0.4, 0.3, 0.3}, 10000), ElementsAre(4000, 3000, 3000));
  EXPECT_THAT(whole_parts({1e-9, 0, 1}, 10000), ElementsAre(1, 0, 9999)) << "what has a fraction has a part";
  EXPECT_THAT(parts_by_weight({1, 1, 1}, 10000), ElementsAre(3334, 3333, 3333));
  EXPECT_THAT(parts_by_weight({0, 3, 1}, 10000), ElementsAre(0, 7500, 2500));
  EXPECT_THAT(parts_by_weight({1e308, 1e308}, 10000), ElementsAre(5000, 5000)) << "whose sum is none";
  EXPECT_THAT(parts_by_weight({1e-300, 3e-300}, 10000), ElementsAre(2500, 7500));
}

}  // namespace
}  // namespace plimsoll::data
