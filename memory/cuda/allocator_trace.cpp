#include "memory/cuda/allocator_trace.h"

#include <ATen/Context.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <cstddef>
#include <mutex>
#include <unordered_map>

namespace plimsoll::memory {
namespace {

namespace caching = c10::cuda::CUDACachingAllocator;

constexpr auto kEverything = static_cast<std::size_t>(c10::CachingAllocator::StatType::AGGREGATE);
// A fraction of a card is a rounded number. No segment is that small, so none more fits under the limit.
constexpr std::int64_t kSlack = std::int64_t{1} << 20;

/// One list; what it leaves live is freed with it.
class DeviceReplay {
 public:
  explicit DeviceReplay(std::optional<std::int64_t> limit)
      : device_(c10::cuda::current_device()),
        stream_(c10::cuda::getStreamFromPool(/*isHighPriority=*/false, device_)),
        fraction_(caching::getMemoryFraction(device_)) {
    c10::cuda::device_synchronize();
    caching::emptyCache();
    caching::resetPeakStats(device_);
    before_ = caching::getDeviceStats(device_);
    if (limit) allow(before_.reserved_bytes[kEverything].current + *limit + kSlack);
  }
  ~DeviceReplay() {
    for (const auto& [block, place] : live_) caching::raw_delete(place);
    caching::emptyCache();
    caching::setMemoryFraction(fraction_, device_);
  }
  DeviceReplay(const DeviceReplay&) = delete;
  DeviceReplay& operator=(const DeviceReplay&) = delete;

  /// False when the request fails.
  bool play(const AllocatorEvent& event) {
    if (event.release) {
      caching::emptyCache();
    } else if (event.free) {
      free(event.block);
    } else {
      return allocate(event);
    }
    return true;
  }

  AllocatorStats stats() const {
    const caching::DeviceStats now = caching::getDeviceStats(device_);
    const auto above = [&](const auto& figure, const auto& before) {
      return figure[kEverything].current - before[kEverything].current;
    };
    const auto peak_above = [&](const auto& figure, const auto& before) {
      return figure[kEverything].peak - before[kEverything].current;
    };
    AllocatorStats found;
    found.live = above(now.requested_bytes, before_.requested_bytes);
    found.allocated = above(now.allocated_bytes, before_.allocated_bytes);
    found.peak_allocated = peak_above(now.allocated_bytes, before_.allocated_bytes);
    found.reserved = above(now.reserved_bytes, before_.reserved_bytes);
    found.peak_reserved = peak_above(now.reserved_bytes, before_.reserved_bytes);
    found.needed =
        above(now.active_bytes, before_.active_bytes) + above(now.inactive_split_bytes, before_.inactive_split_bytes);
    found.segments = above(now.segment, before_.segment);
    found.peak_segments = peak_above(now.segment, before_.segment);
    found.retries = now.num_alloc_retries - before_.num_alloc_retries;
    found.failures = now.num_ooms - before_.num_ooms;
    found.failed_request_bytes = failed_bytes_;
    return found;
  }

 private:
  bool allocate(const AllocatorEvent& event) {
    try {
      void* place = caching::raw_alloc_with_stream(static_cast<std::size_t>(event.bytes), stream_.stream());
      if (place != nullptr) live_[event.block] = place;
      return true;
    } catch (const c10::OutOfMemoryError&) {
      failed_bytes_ = event.bytes;
      return false;
    }
  }

  void free(std::uint64_t block) {
    const auto at = live_.find(block);
    if (at == live_.end()) return;
    caching::raw_delete(at->second);
    live_.erase(at);
  }

  void allow(std::int64_t bytes) const {
    const auto total = static_cast<double>(caching::get()->getMemoryInfo(device_).second);
    caching::setMemoryFraction(std::min(1.0, static_cast<double>(bytes) / total), device_);
  }

  c10::DeviceIndex device_;
  c10::cuda::CUDAStream stream_;
  double fraction_;
  caching::DeviceStats before_;
  std::unordered_map<std::uint64_t, void*> live_;
  std::int64_t failed_bytes_ = 0;
};

/// What is written down. Events come under the allocator's lock, one after the other.
class Recorder {
 public:
  void take(const caching::TraceEntry& entry) {
    using Entry = caching::TraceEntry;
    const std::lock_guard lock(mutex_);
    if (entry.action_ == Entry::SEGMENT_FREE) {
      if (events_.empty() || !events_.back().release) events_.push_back({.release = true});
    } else if (entry.stream_ != nullptr) {
      return;  // the model knows one stream
    } else if (entry.action_ == Entry::ALLOC) {
      blocks_[entry.addr_] = ++made_;
      events_.push_back({.bytes = static_cast<std::int64_t>(entry.size_), .block = made_});
    } else if (entry.action_ == Entry::FREE_COMPLETED) {
      events_.push_back({.block = blocks_[entry.addr_], .free = true});
    }
  }
  std::vector<AllocatorEvent> events() const {
    const std::lock_guard lock(mutex_);
    return events_;
  }

 private:
  mutable std::mutex mutex_;
  std::unordered_map<std::size_t, std::uint64_t> blocks_;  ///< by address: the newest there
  std::uint64_t made_ = 0;
  std::vector<AllocatorEvent> events_;
};

// Never destroyed: the allocator calls it for as long as it lives.
Recorder& recorder() {
  static Recorder* const made = new Recorder;
  return *made;
}

}  // namespace

AllocatorStats replay_on_device(std::span<const AllocatorEvent> events, std::optional<std::int64_t> limit) {
  DeviceReplay replay(limit);
  for (const AllocatorEvent& event : events)
    if (!replay.play(event)) break;
  return replay.stats();
}

void record_allocations(c10::DeviceIndex device) {
  static std::once_flag once;
  std::call_once(once, [device] {
    at::globalContext().lazyInitDevice(c10::kCUDA);  // makes the caching allocator
    caching::attachAllocatorTraceTracker([device](const caching::TraceEntry& entry) {
      if (entry.device_ == device) recorder().take(entry);
    });
  });
}

std::vector<AllocatorEvent> recorded_allocations() { return recorder().events(); }

}  // namespace plimsoll::memory
