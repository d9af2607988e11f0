#include "train/feature_schedule.h"

#include <cmath>
#include <limits>
#include <numeric>

namespace plimsoll::train {

FeatureSchedule::FeatureSchedule(const Config& config, const data::SampleSource& source, bool ages)
    : ages_(ages),
      samples_(source.size()),
      batch_(config.batch.effective),
      stream_(source.training(), static_cast<std::uint64_t>(config.run.seed)),
      live_([this](std::uint64_t position) { return stream_.at(position); }, samples_, batch_,
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

std::uint64_t FeatureSchedule::next_read(std::uint64_t position, std::int64_t index) const {
  const std::scoped_lock lock(mutex_);
  const std::uint64_t next = next_draw(position, index);
  return ages_ && live_.at(next) ? std::numeric_limits<std::uint64_t>::max() : next;
}

// The position at which the sample is drawn in the epoch after that of `position`.
std::uint64_t FeatureSchedule::next_draw(std::uint64_t position, std::int64_t index) const {
  const auto length = static_cast<std::uint64_t>(stream_.epoch_length());
  const std::uint64_t epoch = position / length + 1;
  auto& places = places_[epoch];
  if (places.empty()) {
    places.resize(static_cast<std::size_t>(samples_));
    for (std::uint64_t i = 0; i < length; ++i)
      places[static_cast<std::size_t>(stream_.at(epoch * length + i))] = static_cast<std::uint32_t>(i);
  }
  const std::uint64_t next = epoch * length + places[static_cast<std::size_t>(index)];
  while (places_.size() > 2) places_.erase(places_.begin());
  return next;
}

bool FeatureSchedule::is_last_in_step(std::uint64_t position, std::int64_t index) const {
  const auto batch = static_cast<std::uint64_t>(batch_), length = static_cast<std::uint64_t>(stream_.epoch_length());
  const std::uint64_t end = (position / batch + 1) * batch;
  if ((end - batch) / length == (end - 1) / length) return true;
  const std::scoped_lock lock(mutex_);
  for (std::uint64_t later = position + 1; later < end; ++later)
    if (stream_.at(later) == index) return false;
  return true;
}

}  // namespace plimsoll::train
