#include "data/pixel_buffers.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace plimsoll::data {
namespace {

std::int64_t room_bytes(const std::vector<float>& buffer) {
  return static_cast<std::int64_t>(buffer.capacity() * sizeof(float));
}

}  // namespace

std::vector<float> PixelBuffers::take(std::size_t values) {
  std::vector<float> buffer;
  {
    const std::lock_guard lock(mutex_);
    const auto found = std::find_if(kept_.begin(), kept_.end(), [&](const std::vector<float>& one) {
      return one.capacity() >= values && one.capacity() <= values + values / 4;
    });
    if (found != kept_.end()) {
      buffer = std::move(*found);
      kept_.erase(found);
      bytes_ -= room_bytes(buffer);
      ++reused_;
    }
  }
  buffer.resize(values);
  return buffer;
}

void PixelBuffers::give(std::vector<float> buffer) {
  if (buffer.capacity() == 0) return;
  Buffers given, dropped;  // the latter are freed after the lock is released
  given.push_front(std::move(buffer));
  const std::lock_guard lock(mutex_);
  bytes_ += room_bytes(given.front());
  kept_.splice(kept_.begin(), given);
  drop_surplus(dropped);
}

// Under the lock.
void PixelBuffers::drop_surplus(Buffers& dropped) {
  while (bytes_ > most_bytes_) {
    bytes_ -= room_bytes(kept_.back());
    dropped.splice(dropped.begin(), kept_, std::prev(kept_.end()));
  }
}

void PixelBuffers::set_most_bytes(std::int64_t bytes) {
  Buffers dropped;
  const std::lock_guard lock(mutex_);
  most_bytes_ = std::max<std::int64_t>(0, bytes);
  drop_surplus(dropped);
}

std::int64_t PixelBuffers::bytes() const {
  const std::lock_guard lock(mutex_);
  return bytes_;
}

std::int64_t PixelBuffers::reused() const {
  const std::lock_guard lock(mutex_);
  return reused_;
}

PixelBuffers& spare_pixels() {
  static PixelBuffers buffers(kSpareBytes);
  return buffers;
}

}  // namespace plimsoll::data
