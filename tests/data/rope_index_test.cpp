#include "data/rope_index.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/error.h"

namespace plimsoll::data {
namespace {

using ::testing::ElementsAre;
using Grid = std::array<std::int64_t, 3>;

constexpr std::int64_t kImage = 99;

TEST(RopeIndex, CountsTextOnAllAxes) {
  const std::vector<std::int64_t> ids{5, 6, 7};
  EXPECT_THAT(rope_index(ids, {}, kImage), ElementsAre(0, 1, 2, 0, 1, 2, 0, 1, 2));
  EXPECT_TRUE(rope_index({}, {}, kImage).empty());
}

TEST(RopeIndex, PutsAPictureOnAGridAndGoesOnBehindItsLongerSide) {
  const std::vector<std::int64_t> ids{1, kImage, kImage, kImage, kImage, kImage, kImage, 2};
  const std::vector<Grid> grids{{1, 4, 6}};
  EXPECT_THAT(rope_index(ids, grids, kImage), ElementsAre(0, 1, 1, 1, 1, 1, 1, 4,  //
                                                          0, 1, 1, 1, 2, 2, 2, 4,  //
                                                          0, 1, 2, 3, 1, 2, 3, 4));
}

TEST(RopeIndex, CountsFramesOfAPicture) {
  const std::vector<std::int64_t> ids{kImage, kImage, 2};
  const std::vector<Grid> grids{{2, 2, 2}};
  EXPECT_THAT(rope_index(ids, grids, kImage), ElementsAre(0, 1, 1, 0, 0, 1, 0, 0, 1));
}

TEST(RopeIndex, RefusesPromptsAndGridsThatDoNotMatch) {
  const std::vector<std::int64_t> ids{1, kImage, 2};
  const std::vector<Grid> fitting{{1, 2, 2}}, larger{{1, 2, 4}}, two{{1, 2, 2}, {1, 2, 2}};
  EXPECT_NO_THROW(rope_index(ids, fitting, kImage));
  EXPECT_THROW(rope_index(ids, {}, kImage), Error);
  EXPECT_THROW(rope_index(ids, larger, kImage), Error);
  EXPECT_THROW(rope_index(ids, two, kImage), Error);
}

}  // namespace
}  // namespace plimsoll::data
