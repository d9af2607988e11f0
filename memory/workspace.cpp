#include "memory/workspace.h"

#include <algorithm>

namespace plimsoll::memory {

void Workspace::reset(std::byte* block, std::int64_t bytes) {
  const std::scoped_lock lock(mutex_);
  block_ = block;
  size_ = bytes;
  peak_ = 0;
  used_.clear();
}

void* Workspace::take(std::int64_t bytes) {
  const std::scoped_lock lock(mutex_);
  const std::int64_t wanted = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  std::int64_t offset = 0;
  for (const auto& [start, length] : used_) {
    if (start - offset >= wanted) break;
    offset = start + length;
  }
  if (offset + wanted > size_) return nullptr;
  used_.emplace(offset, wanted);
  peak_ = std::max(peak_, offset + wanted);
  return block_ + offset;
}

void Workspace::give(void* piece) {
  const std::scoped_lock lock(mutex_);
  used_.erase(static_cast<std::byte*>(piece) - block_);
}

bool Workspace::owns(const void* pointer) const {
  const auto* at = static_cast<const std::byte*>(pointer);
  return block_ != nullptr && at >= block_ && at < block_ + size_;
}

std::int64_t Workspace::size() const { return size_; }

std::int64_t Workspace::peak() const {
  const std::scoped_lock lock(mutex_);
  return peak_;
}

}  // namespace plimsoll::memory
