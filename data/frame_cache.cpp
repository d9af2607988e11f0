#include "data/frame_cache.h"

#include <algorithm>
#include <iterator>
#include <limits>

namespace plimsoll::data {
namespace {

std::int64_t pixel_bytes(const Image& frame) { return static_cast<std::int64_t>(frame.pixels.size()); }

}  // namespace

Image FrameCache::get(const FrameKey& key, const std::function<Image()>& decode) {
  if (const auto kept = find(key)) return *kept;
  Image frame = decode();
  keep(key, frame);
  return frame;
}

std::shared_ptr<const Image> FrameCache::find(const FrameKey& key) {
  const std::lock_guard lock(mutex_);
  const auto place = places_.find(key);
  if (place == places_.end()) {
    ++misses_;
    return nullptr;
  }
  ++hits_;
  order_.splice(order_.begin(), order_, place->second);
  return place->second->frame;
}

void FrameCache::keep(const FrameKey& key, const Image& frame) {
  if (pixel_bytes(frame) > most_bytes()) return;
  Order made, dropped;  // freed after the lock is released
  made.push_front({key, std::make_shared<const Image>(frame)});
  const std::lock_guard lock(mutex_);
  if (!places_.try_emplace(key, made.begin()).second) return;  // another thread has decoded it meanwhile
  order_.splice(order_.begin(), made);
  bytes_ += pixel_bytes(frame);
  drop_surplus(dropped);
}

// Under the lock.
void FrameCache::drop(Order::iterator item, Order& dropped) {
  bytes_ -= pixel_bytes(*item->frame);
  places_.erase(item->key);
  dropped.splice(dropped.begin(), order_, item);
}

// Under the lock.
void FrameCache::drop_surplus(Order& dropped) {
  while (bytes_ > most_bytes_) drop(std::prev(order_.end()), dropped);
}

std::uint64_t FrameCache::new_dataset() {
  const std::lock_guard lock(mutex_);
  return ++datasets_;
}

void FrameCache::forget(std::uint64_t dataset) {
  Order dropped;
  const std::lock_guard lock(mutex_);
  auto place = places_.lower_bound({dataset, 0, std::numeric_limits<std::int64_t>::min()});
  while (place != places_.end() && place->first.dataset == dataset) {
    const auto item = place->second;
    ++place;  // drop() erases the one before
    drop(item, dropped);
  }
}

void FrameCache::set_most_bytes(std::int64_t bytes) {
  Order dropped;
  const std::lock_guard lock(mutex_);
  most_bytes_ = std::max<std::int64_t>(0, bytes);
  drop_surplus(dropped);
}

std::int64_t FrameCache::most_bytes() const {
  const std::lock_guard lock(mutex_);
  return most_bytes_;
}

std::int64_t FrameCache::bytes() const {
  const std::lock_guard lock(mutex_);
  return bytes_;
}

std::int64_t FrameCache::hits() const {
  const std::lock_guard lock(mutex_);
  return hits_;
}

std::int64_t FrameCache::misses() const {
  const std::lock_guard lock(mutex_);
  return misses_;
}

FrameCache& decoded_frames() {
  static FrameCache frames(kFrameBytes);
  return frames;
}

}  // namespace plimsoll::data
