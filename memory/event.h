#pragma once
// What an allocator did: the list that a dry run and a real run are compared by, and that a breakdown is made of.

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace plimsoll::memory {

/// Requests under this size are not counted: libraries wrap scalars in such tensors on CPU and not on meta.
inline constexpr std::int64_t kSmallestCounted = 64;

/// One counted allocation (bytes > 0) or free (bytes < 0). `label` is the AllocationLabel at the time of the
/// allocation. `block` tells which free ends which allocation: a ledger numbers its allocations from 1, and a free
/// carries the number of the one that it ends; 0 when that was made before the recording began. To compare what two
/// runs allocate, compare bytes and labels.
struct Event {
  std::int64_t bytes = 0;
  const char* label = "";
  std::uint64_t block = 0;
};

/// Bytes live at the highest point of an event list, by label.
using Breakdown = std::map<std::string, std::int64_t>;

/// The live bytes of one thread's allocations, their peak, and, if asked for, the whole list of events.
class Ledger {
 public:
  explicit Ledger(bool keep_events = false) : keep_events_(keep_events) {}

  /// The number of this allocation, for remove().
  std::uint64_t add(std::int64_t bytes, const char* label);
  /// `block`: what add() gave, or 0 for an allocation that this ledger did not see.
  void remove(std::int64_t bytes, const char* label, std::uint64_t block);

  std::int64_t live() const { return live_; }
  std::int64_t peak() const { return peak_; }
  std::int64_t allocations() const { return allocations_; }
  const std::vector<Event>& events() const { return events_; }
  /// Empty unless events are kept.
  Breakdown breakdown_at_peak() const;

 private:
  bool keep_events_;
  std::int64_t live_ = 0;
  std::int64_t peak_ = 0;
  std::int64_t allocations_ = 0;
  std::vector<Event> events_;
};

}  // namespace plimsoll::memory
