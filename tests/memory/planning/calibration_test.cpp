// What measured peaks teach about predicted ones.
#include "memory/planning/calibration.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <set>

#include "core/error.h"

namespace plimsoll::memory {
namespace {

using testing::HasSubstr;

constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
const Plan kSmall{0, 1, 0}, kLarge{0, 8, 0};

TEST(ShapeClass, TellsApartWhatErrsDifferently) {
  EXPECT_EQ(shape_class({0, 4, 0}), shape_class({0, 7, 0})) << "one power of two";
  const std::vector<Plan> plans{{0, 4, 0},
                                {0, 8, 0},
                                {0, 3, 0},
                                {0, 4, 1},
                                {0, 4, 2},
                                {0, 4, 36},
                                {0, 4, 0, 1},
                                {0, 4, 0, 0, 1},
                                {224, 4, 0},
                                {225, 4, 0},
                                {0, 4, 0, 31},
                                {0, 4, 0, 0, 31},
                                {0, 4, 0, 0, 0, true},
                                {(1 << 17) - 1, 1 << 30, 0}};
  std::set<std::uint32_t> classes;
  for (const Plan& plan : plans) classes.insert(shape_class(plan));
  EXPECT_EQ(classes.size(), plans.size());
  EXPECT_EQ(shape_class({-1, -1, -1}), shape_class({0, 0, 0})) << "nonsense is no trap";
}

TEST(Calibration, ARankNeverHeardOfIsTakenAtItsWord) {
  Calibration calibration;
  EXPECT_EQ(calibration.corrected(0, kSmall, 1000), 1000);
  calibration.observe(1, kSmall, 1000, 1100);
  EXPECT_EQ(calibration.corrected(0, kSmall, 1000), 1000);
  EXPECT_EQ(calibration.corrected(2, kSmall, 1000), 1000);
}

TEST(Calibration, AnOffsetInASeenClassAndTheLargestScaleElsewhere) {
  Calibration calibration;
  calibration.observe(1, kSmall, 1000, 1100);
  EXPECT_EQ(calibration.corrected(1, kSmall, 5000), 5100);
  EXPECT_EQ(calibration.corrected(1, kLarge, 5000), 5500);
  calibration.observe(1, {0, 2, 0}, 3, 4);  // 13333.3 / 10000, rounded up
  EXPECT_EQ(calibration.entries().back().scale, 13334);
  EXPECT_EQ(calibration.corrected(1, kLarge, 10), 14) << "13.334, rounded up";
  EXPECT_EQ(calibration.corrected(1, kSmall, 5000), 5100);
}

TEST(Calibration, AWalkSaysOfEveryRankWhatALookUpSays) {
  Calibration calibration;
  for (int rank : {0, 1, 3, 4, 9}) {
    calibration.observe(rank, kSmall, 1000, 1000 + 10 * rank);
    if (rank % 2 == 1) calibration.observe(rank, kLarge, 1000, 1200 - rank);
  }
  for (const Plan& plan : {kSmall, kLarge, Plan{0, 2, 0}}) {
    Calibration::Walk all(calibration, plan), some(calibration, plan);
    for (int rank = 0; rank < 12; ++rank) {
      const std::int64_t expected = calibration.corrected(rank, plan, 5000);
      EXPECT_EQ(all.corrected(rank, 5000), expected) << rank;
      if (rank % 3 != 1) continue;
      EXPECT_EQ(some.corrected(rank, 5000), expected) << rank;
    }
  }
}

TEST(Calibration, NeverBelowThePredictionAndOnlyGrowing) {
  Calibration calibration;
  calibration.observe(0, kSmall, 1000, 400);
  EXPECT_EQ(calibration.corrected(0, kSmall, 1000), 1000);
  EXPECT_EQ(calibration.corrected(0, kLarge, 1000), 1000);
  calibration.observe(0, kSmall, 1000, 1050);
  calibration.observe(0, kSmall, 1000, 1020);
  EXPECT_EQ(calibration.corrected(0, kSmall, 1000), 1050);
  ASSERT_EQ(calibration.entries().size(), 1U);
  EXPECT_EQ(calibration.entries()[0], (Calibration::Entry{0, shape_class(kSmall), 50, 10500, 3, 1}));
}

TEST(Calibration, CountsWhatItsOwnCorrectionDidNotCover) {
  Calibration calibration;
  calibration.observe(0, kSmall, 100, 110);  // against the bare prediction
  calibration.observe(0, kSmall, 100, 110);  // covered
  calibration.observe(0, kSmall, 100, 111);  // not
  calibration.observe(1, kLarge, 100, 101);
  EXPECT_EQ(calibration.shortfalls(), 3);
  calibration.observe(0, kSmall, 0, 500);
  calibration.observe(0, kSmall, 500, 0);
  calibration.observe(-1, kSmall, 1, 5);
  EXPECT_EQ(calibration.shortfalls(), 3) << "what says nothing is ignored";
}

TEST(Calibration, NothingOverflows) {
  Calibration calibration;
  calibration.observe(0, kSmall, 1, kMost);
  EXPECT_EQ(calibration.corrected(0, kSmall, kMost), kMost);
  EXPECT_EQ(calibration.corrected(0, kLarge, kMost), kMost);
}

TEST(Calibration, EntriesAreSortedAndRestored) {
  Calibration calibration;
  calibration.observe(3, kSmall, 100, 110);
  calibration.observe(0, kLarge, 100, 110);
  calibration.observe(0, kSmall, 100, 110);
  ASSERT_EQ(calibration.entries().size(), 3U);
  EXPECT_EQ(calibration.entries()[0].shape_class, shape_class(kSmall));
  EXPECT_EQ(calibration.entries()[2].rank, 3);
  Calibration other;
  other.restore({calibration.entries().rbegin(), calibration.entries().rend()});
  EXPECT_EQ(other, calibration);
}

TEST(Calibration, RestoreRefusesWhatNoRunWrites) {
  const Calibration::Entry good{0, 7, 10, 10000, 2, 1};
  const auto refuses = [](std::vector<Calibration::Entry> entries) {
    Calibration calibration;
    EXPECT_THROW(calibration.restore(std::move(entries)), Error);
  };
  refuses({good, good});
  for (int field = 0; field < 5; ++field) {
    Calibration::Entry bad = good;
    if (field == 0) bad.rank = -1;
    if (field == 1) bad.offset_bytes = -1;
    if (field == 2) bad.scale = 9999;
    if (field == 3) bad.observations = bad.shortfalls = -1;
    if (field == 4) bad.shortfalls = 3;
    refuses({bad});
  }
}

TEST(Calibration, ForAnotherWorldTheLargestOfAllRanksHold) {
  Calibration calibration;
  calibration.observe(0, kSmall, 100, 150);
  calibration.observe(1, kSmall, 1000, 1060);
  calibration.observe(1, kLarge, 1000, 1010);
  const Calibration other = calibration.for_world(3);
  EXPECT_EQ(other.entries().size(), 6U);
  for (int rank = 0; rank < 3; ++rank) {
    EXPECT_EQ(other.corrected(rank, kSmall, 1000), 1060);
    EXPECT_EQ(other.corrected(rank, kLarge, 1000), 1010);
    EXPECT_EQ(other.corrected(rank, {0, 64, 0}, 1000), 1500);
  }
  EXPECT_EQ(other.shortfalls(), 0);
  EXPECT_EQ(Calibration().for_world(2), Calibration());
  for (int world = 1; world <= 4; ++world) {
    EXPECT_EQ(calibration.is_of_world(world), world == 2);
    EXPECT_EQ(other.is_of_world(world), world == 3);
    EXPECT_TRUE(Calibration().is_of_world(world));
  }
}

TEST(CalibrationJson, RoundTripsAndNamesDamage) {
  Calibration calibration;
  calibration.observe(0, kSmall, 100, 150);
  calibration.observe(1, {224, 6, 18, 2, 3, true}, 1000, 900);
  const std::string text = to_json(calibration, "model on machine \"a\"");
  EXPECT_EQ(calibration_from_json(text, "model on machine \"a\""), calibration);
  const auto damage = [](const std::string& damaged, const std::string& key) -> std::string {
    try {
      calibration_from_json(damaged, key);
    } catch (const Error& error) {
      return error.code() == ExitCode::kCheckpoint ? error.what() : "";
    }
    return "";
  };
  const std::string plain = to_json(calibration, "k");
  const auto replaced = [&](const std::string& from, const std::string& to) {
    std::string copy = plain;
    copy.replace(copy.find(from), from.size(), to);
    return damage(copy, "k");
  };
  EXPECT_THAT(damage(text, "other"), HasSubstr("another model or machine"));
  EXPECT_THAT(damage("{", "k"), HasSubstr("no JSON"));
  EXPECT_THAT(damage("3", "k"), HasSubstr("object"));
  EXPECT_THAT(damage("{}", "k"), HasSubstr("format"));
  EXPECT_THAT(replaced("\"format\": 1", "\"format\": 2"), HasSubstr("format"));
  EXPECT_THAT(replaced("\"offset_bytes\": 50", "\"offset_bytes\": -50"), HasSubstr("entries[0].offset_bytes"));
  EXPECT_THAT(replaced("\"scale_per_10000\": 15000", "\"scale_per_10000\": 1"),
              HasSubstr("entries[0].scale_per_10000"));
  EXPECT_THAT(replaced("\"rank\": 1", "\"rank\": -1"), HasSubstr("entries[1].rank"));
  EXPECT_THAT(replaced("\"rank\": 1", "\"rang\": 1"), HasSubstr("entries[1].rank"));
  EXPECT_THAT(replaced("\"shortfalls\": 1", "\"shortfalls\": 2"), HasSubstr("entries[0].shortfalls"));
  EXPECT_THAT(replaced("\"class\": ", "\"class\": -"), HasSubstr("entries[0].class"));
  EXPECT_THAT(replaced("\"entries\"", "\"entry\""), HasSubstr("entries"));
}

TEST(CalibrationJson, ADoubledEntryIsRefused) {
  Calibration calibration;
  calibration.observe(0, kSmall, 100, 150);
  std::string text = to_json(calibration, "k");
  const auto begin = text.find('{', text.find("entries")), end = text.find('}', begin) + 1;
  text.insert(end, "," + text.substr(begin, end - begin));
  EXPECT_THROW(calibration_from_json(text, "k"), Error);
}

}  // namespace
}  // namespace plimsoll::memory
