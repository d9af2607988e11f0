#include "data/action_chunks.h"

#include <gmock/gmock.h>

#include <cmath>
#include <limits>

#include "core/error.h"

namespace plimsoll::data {
namespace {

/// A chunk made at `step` whose action for step t is (t, step).
std::vector<float> chunk_of(std::int64_t step, int rows) {
  std::vector<float> chunk;
  for (int row = 0; row < rows; ++row) {
    chunk.push_back(static_cast<float>(step + row));
    chunk.push_back(static_cast<float>(step));
  }
  return chunk;
}

/// Steps at which chunks were asked for, and the second element of every action: the step its chunk was made at.
struct Carried {
  std::vector<std::int64_t> asked;
  std::vector<double> made;
};

Carried carry_out(const ChunkingOptions& options, int rows, std::int64_t steps) {
  ActionChunks actions(options);
  Carried carried;
  for (std::int64_t step = 0; step < steps; ++step) {
    if (actions.wants_chunk()) {
      carried.asked.push_back(step);
      actions.add(chunk_of(step, rows));
    }
    const auto action = actions.next();
    EXPECT_NEAR(action.at(0), static_cast<double>(step), 1e-12) << "whichever chunk it comes from";
    carried.made.push_back(action.at(1));
  }
  return carried;
}

TEST(ActionChunks, AreReplacedAfterSoManySteps) {
  const Carried carried = carry_out({2, 3, {}}, 4, 8);
  EXPECT_THAT(carried.asked, ::testing::ElementsAre(0, 3, 6));
  EXPECT_THAT(carried.made, ::testing::ElementsAre(0, 0, 0, 3, 3, 3, 6, 6));
}

TEST(ActionChunks, AreReplacedWhereTheyEnd) {
  EXPECT_THAT(carry_out({2, 100, {}}, 4, 9).asked, ::testing::ElementsAre(0, 4, 8));
  EXPECT_THAT(carry_out({2, 1, {}}, 4, 3).asked, ::testing::ElementsAre(0, 1, 2));
}

TEST(ActionChunks, AnEnsembleIsTheWeightedMeanOfAllThatReachTheStep) {
  const double decay = 0.5;
  const Carried carried = carry_out({2, 1, decay}, 3, 5);
  const double a = 1, b = std::exp(-decay), c = std::exp(-2 * decay);
  EXPECT_THAT(carried.asked, ::testing::ElementsAre(0, 1, 2, 3, 4));
  EXPECT_DOUBLE_EQ(carried.made[0], 0);
  EXPECT_NEAR(carried.made[1], (a * 0 + b * 1) / (a + b), 1e-12);
  EXPECT_NEAR(carried.made[2], (a * 0 + b * 1 + c * 2) / (a + b + c), 1e-12) << "the oldest weighs most";
  EXPECT_NEAR(carried.made[4], (a * 2 + b * 3 + c * 4) / (a + b + c), 1e-12) << "those that ended count no more";
}

TEST(ActionChunks, AnEnsembleOfNoDecayIsThePlainMean) {
  const Carried carried = carry_out({2, 2, 0.0}, 4, 6);
  EXPECT_THAT(carried.asked, ::testing::ElementsAre(0, 2, 4));
  EXPECT_THAT(carried.made, ::testing::ElementsAre(0, 0, 1, 1, 3, 3));
}

TEST(ActionChunks, RefuseWhatDoesNotFit) {
  EXPECT_THROW(ActionChunks({2, 0, {}}), Error);
  EXPECT_THROW(ActionChunks({2, 1, -0.1}), Error);
  EXPECT_THROW(ActionChunks({2, 1, std::numeric_limits<double>::quiet_NaN()}), Error);
  ActionChunks actions({2, 1, {}});
  EXPECT_THROW(actions.next(), Error);
  EXPECT_THROW(actions.add({}), Error);
  EXPECT_THROW(actions.add({1, 2, 3}), Error);
}

}  // namespace
}  // namespace plimsoll::data
