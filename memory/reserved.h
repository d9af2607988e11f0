#pragma once
// From dry runs to the bytes that a caching allocator has to hold for them (memory/planning/caching_allocator.h): what
// plans are judged by where the budget bounds reserved bytes (DeviceMemory::reserves).

#include <cstdint>
#include <span>
#include <vector>

#include "memory/event.h"
#include "memory/planning/caching_allocator.h"

namespace plimsoll::memory {

/// An allocator with all that is live between micro-batches, as it is before the first one: made, and what is unused
/// given back. Each run() starts from there. One thread.
class ReservedBytes {
 public:
  /// `made`: what making the model and its buffers takes and leaves live. `held`: sizes of further blocks that stay
  /// live: libraries' workspaces, the feature cache's. Throws Error as CachingAllocatorModel does.
  ReservedBytes(const std::vector<Event>& made, std::span<const std::int64_t> held, const AllocatorRules& rules = {});

  /// What is held between micro-batches.
  const AllocatorStats& at_rest() const { return model_.stats(); }
  /// After three micro-batches of these events, one behind the other: the second finds cached what the first has freed,
  /// and the third what both have. Peaks are of the three; `failures` is above 0 where the limit was in the way.
  AllocatorStats run(const std::vector<Event>& events) const;
  /// Most bytes reserved at once in run(), above what is live at rest: so that live bytes and this are the peak.
  std::int64_t above_live(const std::vector<Event>& events) const;

 private:
  bool play(const std::vector<Event>& events);

  CachingAllocatorModel model_;
  std::uint64_t blocks_ = 0;  ///< numbers in use: those of a list count from behind them
};

}  // namespace plimsoll::memory
