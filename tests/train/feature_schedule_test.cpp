// When features are needed, against the sample stream looked through draw by draw.
#include "train/feature_schedule.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <optional>
#include <vector>

#include "data/sample_source.h"

namespace plimsoll::train {
namespace {

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
  const FeatureSchedule schedule(config_, order_, 13, false);
  for (std::uint64_t position = 0; position < 5 * length_; ++position) {
    EXPECT_EQ(schedule.next_read(position), drawn_next(position)) << position;
    EXPECT_FALSE(schedule.is_live(position));
  }
  EXPECT_EQ(schedule.share_of(2, 1, 2), (std::vector<std::uint64_t>{7, 8, 9}));
}

TEST_F(FeatureScheduleTest, ALiveDrawReadsNothing) {
  const FeatureSchedule schedule(config_, order_, 13, true);
  std::int64_t live = 0;
  for (std::uint64_t position = 0; position < 5 * length_; ++position) {
    const std::uint64_t next = drawn_next(position);
    const std::uint64_t expected = schedule.is_live(next) ? std::numeric_limits<std::uint64_t>::max() : next;
    EXPECT_EQ(schedule.next_read(position), expected) << position;
    live += schedule.is_live(position) ? 1 : 0;
  }
  EXPECT_EQ(live, static_cast<std::int64_t>(2 * length_));
  std::vector<std::uint64_t> all;
  for (int rank = 0; rank < 2; ++rank)
    for (const std::uint64_t position : schedule.share_of(3, rank, 2)) all.push_back(position);
  std::ranges::sort(all);
  EXPECT_EQ(all, (std::vector<std::uint64_t>{10, 11, 12, 13, 14})) << "each rank its own";
}

TEST_F(FeatureScheduleTest, OfTwoDrawsInOneStepTheLaterOneIsTheLast) {
  const FeatureSchedule schedule(config_, order_, 13, true);
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
