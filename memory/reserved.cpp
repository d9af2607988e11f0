#include "memory/reserved.h"

#include <algorithm>

namespace plimsoll::memory {
namespace {

constexpr int kMicroBatches = 3;

std::vector<AllocatorEvent> for_allocator(const std::vector<Event>& events) {
  std::vector<AllocatorEvent> list;
  list.reserve(events.size());
  for (const Event& event : events) {
    const bool free = event.bytes < 0;
    list.push_back({free ? -event.bytes : event.bytes, event.block, free});
  }
  return list;
}

std::uint64_t last_block(const std::vector<Event>& events) {
  std::uint64_t last = 0;
  for (const Event& event : events) last = std::max(last, event.block);
  return last;
}

}  // namespace

ReservedBytes::ReservedBytes(const std::vector<Event>& made, std::span<const std::int64_t> held,
                             const AllocatorRules& rules)
    : model_(rules) {
  bool fits = play(made);
  for (const std::int64_t bytes : held) fits = fits && model_.allocate(bytes, ++blocks_);
  model_.release_cached();
  model_.reset_peaks();
}

// False where a request fails.
bool ReservedBytes::play(const std::vector<Event>& events) {
  const bool fits = model_.replay(for_allocator(events), blocks_);
  blocks_ += last_block(events);
  return fits;
}

AllocatorStats ReservedBytes::run(const std::vector<Event>& events) const {
  ReservedBytes from_here = *this;
  bool fits = from_here.at_rest().failures == 0;
  for (int i = 0; fits && i < kMicroBatches; ++i) fits = from_here.play(events);
  return from_here.at_rest();
}

std::int64_t ReservedBytes::above_live(const std::vector<Event>& events) const {
  return run(events).peak_reserved - at_rest().allocated;
}

}  // namespace plimsoll::memory
