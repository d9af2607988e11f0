#include "train/feature_schedule.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

namespace plimsoll::train {

FeatureSchedule::FeatureSchedule(const Config& config, std::shared_ptr<const data::StreamOrder> order,
                                 std::int64_t samples, bool ages, Place place)
    : ages_(ages),
      batch_(config.batch.effective),
      place_(place),
      ahead_(place.world == 1 ? 1 : std::min(kMostAhead, 2 * place.world)),
      stream_(std::move(order), ahead_),
      live_([this](std::uint64_t position) { return stream_.at(position); }, samples, batch_,
            static_cast<std::int64_t>(std::llround(config.cache.live_fraction * cache::kWholeFraction))) {}

// Under the lock.
std::vector<std::uint64_t> FeatureSchedule::dealt(std::int64_t step) const {
  return cache::dealt_share(step, batch_, live_.of_step(step), place_.rank, place_.world);
}

std::vector<std::uint64_t> FeatureSchedule::share_of(std::int64_t step) const {
  const std::scoped_lock lock(mutex_);
  if (ages_) return dealt(step);
  const auto [begin, end] = data::share_of_step(step, batch_, place_.rank, place_.world);
  std::vector<std::uint64_t> positions(end - begin);
  std::iota(positions.begin(), positions.end(), begin);
  return positions;
}

// Under the lock.
bool FeatureSchedule::is_own(std::uint64_t position) const {
  if (place_.world == 1) return true;
  const auto batch = static_cast<std::uint64_t>(batch_);
  if (!ages_) {
    const auto step = static_cast<std::int64_t>(position / batch) + 1;
    const auto [begin, end] = data::share_of_step(step, batch_, place_.rank, place_.world);
    return begin <= position && position < end;
  }
  while (own_.size() <= position) {
    const auto step = static_cast<std::int64_t>(own_.size() / batch) + 1;
    own_.resize(own_.size() + batch, false);
    for (const std::uint64_t mine : dealt(step)) own_[mine] = true;
  }
  return own_[position];
}

bool FeatureSchedule::is_live(std::uint64_t position) const {
  const std::scoped_lock lock(mutex_);
  return ages_ && live_.at(position);
}

std::uint64_t FeatureSchedule::next_read(std::uint64_t position) const {
  const std::scoped_lock lock(mutex_);
  std::uint64_t next = position;
  for (int pass = 0; pass < ahead_; ++pass) {
    next = stream_.next_draw(next);
    if (ages_ && live_.at(next)) break;
    if (is_own(next)) return next;
  }
  return std::numeric_limits<std::uint64_t>::max();
}

bool FeatureSchedule::is_last_in_step(std::uint64_t position) const {
  const auto batch = static_cast<std::uint64_t>(batch_);
  const std::scoped_lock lock(mutex_);
  return stream_.next_draw(position) >= (position / batch + 1) * batch;
}

}  // namespace plimsoll::train
