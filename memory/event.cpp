#include "memory/event.h"

#include <algorithm>

namespace plimsoll::memory {

std::uint64_t Ledger::add(std::int64_t bytes, const char* label) {
  live_ += bytes;
  peak_ = std::max(peak_, live_);
  ++allocations_;
  const auto block = static_cast<std::uint64_t>(allocations_);
  if (keep_events_) events_.push_back({bytes, label, block});
  return block;
}

void Ledger::remove(std::int64_t bytes, const char* label, std::uint64_t block) {
  live_ -= bytes;
  if (keep_events_) events_.push_back({-bytes, label, block});
}

Breakdown Ledger::breakdown_at_peak() const {
  Breakdown live, best;
  std::int64_t total = 0, highest = 0;
  for (const Event& event : events_) {
    live[event.label] += event.bytes;
    total += event.bytes;
    if (total <= highest) continue;
    highest = total;
    best = live;
  }
  return best;
}

}  // namespace plimsoll::memory
