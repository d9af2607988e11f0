#pragma once
// PyTorch's own caching allocator beside its model (memory/planning/caching_allocator.h): it replays lists of events,
// and what a run asks of it is written down. For the checks on a machine with a GPU, in tests/train/cuda_device.cpp.

#include <c10/core/Device.h>

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "memory/planning/caching_allocator.h"

namespace plimsoll::memory {

/// Replays the list on the current GPU, up to the first request that fails, and gives everything back. Blocks of one
/// stream never serve another, so on a stream of its own the list begins with an empty allocator, whatever else lives.
/// All figures are those above what was there before; peak_live, peak_needed, allocated_at_peak_reserved and
/// driver_calls are not known and 0. `limit`: as in AllocatorRules, a multiple of 2 MiB, in which all segments come.
/// Without expandable segments. Nothing else may allocate meanwhile.
AllocatorStats replay_on_device(std::span<const AllocatorEvent> events, std::optional<std::int64_t> limit);

/// From the first call on, everything that is allocated and freed on the GPU's usual stream is written down, and where
/// segments were given back. Call it before the first allocation of the process: then the model, begun empty, must come
/// to what the allocator has. Later calls do nothing.
void record_allocations(c10::DeviceIndex device);
/// What was written down so far.
std::vector<AllocatorEvent> recorded_allocations();

}  // namespace plimsoll::memory
