#include "data/tabletop.h"

#include <gmock/gmock.h>

#include <set>

#include "core/error.h"

namespace plimsoll::data {
namespace {

bool expert_succeeds(Tabletop& table, std::int64_t scene, int steps) {
  table.reset(scene);
  for (int i = 0; i < steps; ++i) table.step(table.expert_action());
  return table.success();
}

TEST(Tabletop, IsTheSameForTheSameSeedAndScene) {
  TabletopOptions options;
  options.difficulty = Difficulty::kAnywhere;
  Tabletop a(options), b(options);
  a.reset(0);
  a.step(a.expert_action());
  a.reset(5);
  b.reset(5);
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(a.instruction(), b.instruction());
    EXPECT_EQ(a.observe().top.pixels, b.observe().top.pixels);
    EXPECT_EQ(a.observe().force, b.observe().force);
    EXPECT_EQ(a.expert_action(), b.expert_action());
    a.step(a.expert_action());
    b.step(b.expert_action());
  }
  options.seed = 1;
  Tabletop other(options);
  other.reset(5);
  b.reset(5);
  EXPECT_NE(other.observe().top.pixels, b.observe().top.pixels);
}

TEST(Tabletop, ExpertReachesThePadAtEveryDifficulty) {
  for (const auto difficulty : {Difficulty::kFixed, Difficulty::kPermuted, Difficulty::kAnywhere}) {
    TabletopOptions options;
    options.difficulty = difficulty;
    Tabletop table(options);
    for (std::int64_t scene = 0; scene < 50; ++scene) EXPECT_TRUE(expert_succeeds(table, scene, 14)) << scene;
  }
}

TEST(Tabletop, StandingStillFails) {
  Tabletop table({});
  int successes = 0;
  for (std::int64_t scene = 0; scene < 50; ++scene) {
    table.reset(scene);
    for (int i = 0; i < 14; ++i) table.step(std::vector<double>{0, 0, 0});
    successes += table.success() ? 1 : 0;
  }
  EXPECT_LT(successes, 10);
}

TEST(Tabletop, DifficultyDecidesWhatVaries) {
  const auto pictures = [](Difficulty difficulty) {
    TabletopOptions options;
    options.difficulty = difficulty;
    Tabletop table(options);
    std::set<std::array<std::uint8_t, 3>> corner;  // the pixel in the middle of the first fixed place
    for (std::int64_t scene = 0; scene < 40; ++scene) {
      table.reset(scene);
      const Image top = table.observe().top;
      const std::size_t at = (18 * 84 + 14) * 3;  // within the pad, clear of a gripper at its middle
      corner.insert({top.pixels[at], top.pixels[at + 1], top.pixels[at + 2]});
    }
    return corner.size();
  };
  EXPECT_LE(pictures(Difficulty::kFixed), 2u) << "the pad, and perhaps the gripper over it";
  EXPECT_GE(pictures(Difficulty::kPermuted), 4u);
  EXPECT_GE(pictures(Difficulty::kAnywhere), 4u);
}

TEST(Tabletop, HeavyScenesHaveLargerPicturesAndLongerInstructions) {
  TabletopOptions options;
  options.heavy_fraction = 0.5;
  Tabletop table(options);
  int heavy = 0;
  for (std::int64_t scene = 0; scene < 100; ++scene) {
    table.reset(scene);
    heavy += table.heavy() ? 1 : 0;
    EXPECT_EQ(table.observe().wrist.width, table.heavy() ? 168 : 56);
    EXPECT_EQ(table.instruction().size() > 100, table.heavy());
  }
  EXPECT_GT(heavy, 30);
  EXPECT_LT(heavy, 70);
}

TEST(Tabletop, RefusesBadOptionsAndActions) {
  EXPECT_THROW(parse_difficulty("hard"), Error);
  TabletopOptions options;
  options.heavy_fraction = 1.5;
  EXPECT_THROW(Tabletop{options}, Error);
  options = {};
  options.top_side = 57;
  EXPECT_THROW(Tabletop{options}, Error);
  Tabletop table({});
  table.reset(0);
  EXPECT_THROW(table.step(std::vector<double>{0, 0}), Error);
}

}  // namespace
}  // namespace plimsoll::data
