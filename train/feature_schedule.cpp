#include "train/feature_schedule.h"

#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

namespace plimsoll::train {

FeatureSchedule::FeatureSchedule(const Config& config, std::shared_ptr<const data::StreamOrder> order,
                                 std::int64_t samples, bool ages)
    : ages_(ages),
      batch_(config.batch.effective),
      stream_(std::move(order)),
      live_([this](std::uint64_t position) { return stream_.at(position); }, samples, batch_,
            static_cast<std::int64_t>(std::llround(config.cache.live_fraction * cache::kWholeFraction))) {}

std::vector<std::uint64_t> FeatureSchedule::share_of(std::int64_t step, int rank, int world) const {
  const std::scoped_lock lock(mutex_);
  if (ages_) return cache::dealt_share(step, batch_, live_.of_step(step), rank, world);
  const auto [begin, end] = data::share_of_step(step, batch_, rank, world);
  std::vector<std::uint64_t> positions(end - begin);
  std::iota(positions.begin(), positions.end(), begin);
  return positions;
}

bool FeatureSchedule::is_live(std::uint64_t position) const {
  const std::scoped_lock lock(mutex_);
  return ages_ && live_.at(position);
}

std::uint64_t FeatureSchedule::next_read(std::uint64_t position) const {
  const std::scoped_lock lock(mutex_);
  const std::uint64_t next = stream_.next_draw(position);
  return ages_ && live_.at(next) ? std::numeric_limits<std::uint64_t>::max() : next;
}

bool FeatureSchedule::is_last_in_step(std::uint64_t position) const {
  const auto batch = static_cast<std::uint64_t>(batch_);
  const std::scoped_lock lock(mutex_);
  return stream_.next_draw(position) >= (position / batch + 1) * batch;
}

}  // namespace plimsoll::train
