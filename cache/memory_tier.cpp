#include "cache/memory_tier.h"

#include <utility>

namespace plimsoll::cache {

void MemoryTier::remove(std::unordered_map<std::int64_t, Kept>::iterator found) {
  bytes_ -= found->second.payload.size();
  by_next_.erase(found->second.place);
  kept_.erase(found);
}

std::optional<HostBytes> MemoryTier::find(std::int64_t sample, std::int64_t stamp, std::uint64_t next) {
  if (most_ == 0) return std::nullopt;
  const std::scoped_lock lock(mutex_);
  const auto found = kept_.find(sample);
  if (found == kept_.end() || found->second.stamp != stamp) {
    if (found != kept_.end()) remove(found);
    return std::nullopt;
  }
  by_next_.erase(found->second.place);
  found->second.place = by_next_.emplace(next, sample);
  return found->second.payload;
}

void MemoryTier::keep(std::int64_t sample, std::int64_t stamp, HostBytes payload, std::uint64_t next) {
  const std::uint64_t size = payload.size();
  if (size > most_) return;
  const std::scoped_lock lock(mutex_);
  if (const auto old = kept_.find(sample); old != kept_.end()) remove(old);
  while (bytes_ + size > most_) {
    const auto last = std::prev(by_next_.end());
    if (last->first <= next) return;
    remove(kept_.find(last->second));
  }
  bytes_ += size;
  kept_[sample] = {stamp, std::move(payload), by_next_.emplace(next, sample)};
}

void MemoryTier::forget(std::int64_t sample) {
  const std::scoped_lock lock(mutex_);
  if (const auto found = kept_.find(sample); found != kept_.end()) remove(found);
}

std::uint64_t MemoryTier::bytes() const {
  const std::scoped_lock lock(mutex_);
  return bytes_;
}

}  // namespace plimsoll::cache
