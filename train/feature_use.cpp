#include "train/feature_use.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "ddp/handshake.h"

namespace plimsoll::train {

void FeatureUse::read(FeaturesFrom from, std::int64_t age) {
  const std::scoped_lock lock(mutex_);
  ++loads_.read;
  if (from == FeaturesFrom::kMemory) ++loads_.from_memory;
  if (from == FeaturesFrom::kDevice) ++loads_.from_device;
  loads_.age += age;
}

void FeatureUse::missed() {
  const std::scoped_lock lock(mutex_);
  ++loads_.missed;
}

void FeatureUse::took(const FeatureTimes& times) {
  times_.with += times.with;
  times_.with_us += times.with_us;
  times_.without += times.without;
  times_.without_us += times.without_us;
  came_with_ += times.came_with;
}

FeatureUse::Loads FeatureUse::take_loads() {
  const std::scoped_lock lock(mutex_);
  return std::exchange(loads_, {});
}

// -1 where not both kinds of samples were timed.
std::int64_t FeatureUse::saved_us(std::int64_t came_with) const {
  if (times_.with == 0 || times_.without == 0) return -1;
  const auto mean = [](std::int64_t us, std::int64_t samples) {
    return static_cast<double>(us) / static_cast<double>(samples);
  };
  const double each = mean(times_.without_us, times_.without) - mean(times_.with_us, times_.with);
  return std::max<std::int64_t>(0, std::llround(each * static_cast<double>(came_with)));
}

report::CacheUseRecord FeatureUse::take(ddp::Communicator& communicator, std::int64_t memory_bytes,
                                        std::int64_t device_bytes) {
  const std::int64_t saved = saved_us(std::exchange(came_with_, 0));
  const Loads loads = take_loads();
  const std::vector<std::int64_t> mine = {loads.read,        loads.missed, loads.from_memory,
                                          loads.from_device, loads.age,    saved,
                                          memory_bytes,      device_bytes, std::exchange(kept_, 0)};
  std::vector<std::int64_t> sums(mine.size());
  std::int64_t timed = 0;
  for (const auto& theirs : ddp::share_numbers(communicator, mine)) {
    for (std::size_t i = 0; i < sums.size(); ++i) sums[i] += std::max<std::int64_t>(0, theirs.at(i));
    timed += theirs.at(5) >= 0 ? 1 : 0;
  }
  const std::int64_t read = sums[0], age = sums[4];
  report::CacheUseRecord record;
  record.loaded = read + sums[1];
  record.from_memory = sums[2];
  record.from_device = sums[3];
  record.from_disk = read - record.from_memory - record.from_device;
  record.memory_bytes = sums[6];
  record.device_bytes = sums[7];
  record.kept = sums[8];
  if (read > 0) record.age = static_cast<double>(age) / static_cast<double>(read);
  if (timed > 0) record.saved_ms = static_cast<double>(sums[5]) / static_cast<double>(timed) / 1000.0;
  return record;
}

}  // namespace plimsoll::train
