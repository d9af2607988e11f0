#pragma once
// The arena that library scratch comes from: one block, first fit, a handful of pieces live at once.

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>

namespace plimsoll::memory {

/// Hands out pieces of a block it does not own. Thread-safe.
class Workspace {
 public:
  static constexpr std::int64_t kAlignment = 64;

  /// Forgets the old block; no piece may be in use.
  void reset(std::byte* block, std::int64_t bytes);
  /// A piece of at least `bytes`, aligned to kAlignment, or null when none is free.
  void* take(std::int64_t bytes);
  /// Gives a piece back.
  void give(void* piece);
  bool owns(const void* pointer) const;
  std::int64_t size() const;
  /// Highest end of a piece since reset: what an arena must have held.
  std::int64_t peak() const;

 private:
  mutable std::mutex mutex_;
  std::byte* block_ = nullptr;
  std::int64_t size_ = 0;
  std::int64_t peak_ = 0;
  std::map<std::int64_t, std::int64_t> used_;  // offset -> bytes, in order of offset
};

}  // namespace plimsoll::memory
