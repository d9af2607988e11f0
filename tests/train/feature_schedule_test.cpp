// When features are needed, against the sample stream looked through draw by draw.
#include "train/feature_schedule.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <limits>
#include <map>
#include <memory>
#include <numeric>
#include <optional>
#include <set>
#include <vector>

#include "cache/memory_tier.h"
#include "core/host_bytes.h"
#include "data/sample_source.h"

namespace plimsoll::train {
namespace {

constexpr std::uint64_t kNever = std::numeric_limits<std::uint64_t>::max();

// Thirteen samples in steps of five: steps run across the ends of epochs.
class FeatureScheduleTest : public ::testing::Test {
 protected:
  FeatureScheduleTest() {
    config_.batch.effective = 5;
    config_.run.seed = 3;
    config_.cache.live_fraction = 0.4;
    data::SyntheticOptions options;
    options.samples = 13;
    source_ = data::make_synthetic_source(options);
    order_ = std::make_shared<const data::StreamOrder>(data::StreamOrder{source_->training(), 3, {}, {}});
    stream_.emplace(order_);
    length_ = static_cast<std::uint64_t>(source_->training().size());
  }
  /// Of the epoch after that of `position`.
  std::uint64_t drawn_next(std::uint64_t position) {
    const std::int64_t index = stream_->at(position);
    std::uint64_t next = (position / length_ + 1) * length_;
    while (stream_->at(next) != index) ++next;
    return next;
  }
  Config config_;
  std::unique_ptr<data::SampleSource> source_;
  std::shared_ptr<const data::StreamOrder> order_;
  std::optional<data::SampleStream> stream_;
  std::uint64_t length_ = 0;
};

TEST_F(FeatureScheduleTest, KnowsTheNextDraw) {
  const FeatureSchedule schedule(config_, order_, 13, false, {});
  for (std::uint64_t position = 0; position < 5 * length_; ++position) {
    EXPECT_EQ(schedule.next_read(position), drawn_next(position)) << position;
    EXPECT_FALSE(schedule.is_live(position));
  }
  EXPECT_EQ(FeatureSchedule(config_, order_, 13, false, {1, 2}).share_of(2), (std::vector<std::uint64_t>{7, 8, 9}));
}

TEST_F(FeatureScheduleTest, ALiveDrawReadsNothing) {
  const FeatureSchedule schedule(config_, order_, 13, true, {});
  std::int64_t live = 0;
  for (std::uint64_t position = 0; position < 5 * length_; ++position) {
    const std::uint64_t next = drawn_next(position);
    const std::uint64_t expected = schedule.is_live(next) ? kNever : next;
    EXPECT_EQ(schedule.next_read(position), expected) << position;
    live += schedule.is_live(position) ? 1 : 0;
  }
  EXPECT_EQ(live, static_cast<std::int64_t>(2 * length_));
  std::vector<std::uint64_t> all;
  for (int rank = 0; rank < 2; ++rank)
    for (const std::uint64_t position : FeatureSchedule(config_, order_, 13, true, {rank, 2}).share_of(3))
      all.push_back(position);
  std::ranges::sort(all);
  EXPECT_EQ(all, (std::vector<std::uint64_t>{10, 11, 12, 13, 14})) << "each rank its own";
}

// What another rank draws is read there: here it gives no reason to keep anything.
TEST_F(FeatureScheduleTest, KnowsTheNextDrawOfItsRank) {
  for (const bool ages : {false, true}) {
    for (int rank = 0; rank < 3; ++rank) {
      const FeatureSchedule schedule(config_, order_, 13, ages, {rank, 3});
      std::set<std::uint64_t> own;
      for (std::int64_t step = 1; step < 60; ++step)
        for (const std::uint64_t position : schedule.share_of(step)) own.insert(position);
      for (std::uint64_t position = 0; position < 5 * length_; ++position) {
        std::uint64_t expected = kNever, next = position;
        for (int pass = 0; pass < FeatureSchedule::kMostAhead && expected == kNever; ++pass) {
          next = drawn_next(next);
          if (schedule.is_live(next)) break;
          if (own.contains(next)) expected = next;
        }
        EXPECT_EQ(schedule.next_read(position), expected) << "rank " << rank << ", draw " << position;
      }
    }
  }
}

// A tier in memory, as the run asks it: of a rank's draws those that found their sample there.
std::int64_t hits_in(cache::MemoryTier& tier, const FeatureSchedule& schedule, data::SampleStream& stream,
                     std::int64_t steps) {
  std::int64_t hits = 0;
  for (std::int64_t step = 1; step <= steps; ++step) {
    for (const std::uint64_t position : schedule.share_of(step)) {
      const std::int64_t sample = stream.at(position);
      const std::uint64_t next = schedule.next_read(position);
      if (tier.find(sample, 0, next)) {
        ++hits;
      } else {
        tier.keep(sample, 0, HostBytes(std::vector<std::byte>(1)), next);
      }
    }
  }
  return hits;
}

// As often as can be: by a rule that knows the rank's draws to the end (Belady's), and may pass a sample by.
std::int64_t best_hits(const std::vector<std::int64_t>& draws, std::size_t room) {
  std::map<std::int64_t, std::size_t> kept;  // when each is drawn next
  std::int64_t hits = 0;
  for (std::size_t i = 0; i < draws.size(); ++i) {
    const auto later = std::find(draws.begin() + static_cast<std::ptrdiff_t>(i) + 1, draws.end(), draws[i]);
    hits += static_cast<std::int64_t>(kept.erase(draws[i]));
    kept[draws[i]] = static_cast<std::size_t>(later - draws.begin());
    if (kept.size() <= room) continue;
    kept.erase(
        std::max_element(kept.begin(), kept.end(), [](const auto& a, const auto& b) { return a.second < b.second; }));
  }
  return hits;
}

// Samples that other ranks draw next must not fill it: a tier for a tenth of all would hit a tenth of the draws then.
TEST(FeatureScheduleOfRanks, MemoryHitsNearlyAsOftenAsCanBe) {
  constexpr std::int64_t kSamples = 200, kSteps = 600;
  constexpr std::size_t kRoom = 20;
  Config config;
  config.batch.effective = 16;
  std::vector<std::int64_t> samples(kSamples);
  std::iota(samples.begin(), samples.end(), std::int64_t{0});
  const auto order = std::make_shared<const data::StreamOrder>(data::StreamOrder{samples, 3, {}, {}});
  for (const int world : {1, 2, 4}) {
    data::SampleStream stream(order);
    const FeatureSchedule schedule(config, order, kSamples, false, {world - 1, world});
    std::vector<std::int64_t> draws;
    for (std::int64_t step = 1; step <= kSteps; ++step)
      for (const std::uint64_t position : schedule.share_of(step)) draws.push_back(stream.at(position));
    cache::MemoryTier tier(kRoom);
    const std::int64_t hits = hits_in(tier, schedule, stream, kSteps), best = best_hits(draws, kRoom);
    EXPECT_GE(static_cast<double>(hits), 0.95 * static_cast<double>(best)) << world << " ranks";
    if (world > 1) {
      EXPECT_GT(static_cast<double>(hits), 0.17 * static_cast<double>(draws.size()));
    }
  }
}

TEST_F(FeatureScheduleTest, OfTwoDrawsInOneStepTheLaterOneIsTheLast) {
  const FeatureSchedule schedule(config_, order_, 13, true, {});
  std::int64_t earlier = 0;
  for (std::uint64_t position = 0; position < 25 * length_; ++position) {
    bool again = false;
    for (std::uint64_t later = position + 1; later % 5 != 0; ++later)
      again = again || stream_->at(later) == stream_->at(position);
    EXPECT_EQ(schedule.is_last_in_step(position), !again) << position;
    earlier += again ? 1 : 0;
  }
  EXPECT_GT(earlier, 0) << "there were some";
}

}  // namespace
}  // namespace plimsoll::train
