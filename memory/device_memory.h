#pragma once
// The memory of the device that a rank computes on: what the trainer asks of it beside a meter's figures.

#include <c10/core/Device.h>

#include <cstdint>
#include <filesystem>
#include <optional>

#include "memory/meter.h"

namespace plimsoll::memory {

/// One per process. All members may be called from any thread.
class DeviceMemory : public Meter {
 public:
  /// Makes what the libraries need for themselves `bytes` of the static bytes. On the CPU an arena is made, in place of
  /// the one before; no LibraryScratch (core/scope.h) may be active. On other devices the libraries hold it themselves,
  /// and nothing is made. Throws c10::OutOfMemoryError beyond the budget.
  virtual void set_workspace(std::int64_t bytes) = 0;
  virtual std::int64_t workspace() const = 0;
  /// Bytes that the allocator has from the device. The CPU's keeps none that are not live.
  virtual std::int64_t reserved() const = 0;
  /// Whether the budget bounds reserved() instead of live(): a caching allocator's. There peak() is the most bytes that
  /// had to be reserved at once, live ones with what lies unused between them, since unused segments are given back
  /// before a request fails. Plans are then made for reserved bytes (memory/reserved.h), set_budget() gives unused
  /// segments back where the new budget is below what is reserved, and an allocator's retry is no failure.
  virtual bool reserves() const { return false; }
  /// Most bytes live at once since reset_peak(), whatever had to be reserved for them.
  virtual std::int64_t peak_live() const { return peak(); }
  /// Counted allocations so far.
  virtual std::int64_t allocations() const = 0;
  /// Sets the budget to `bytes` when `after` more counted allocations have been made: a neighbour that grows in the
  /// middle of a step. One change can be pending.
  virtual void change_budget_after(std::int64_t after, std::int64_t bytes) = 0;
  /// Call it before each micro-batch, when nothing of one is live. Where the budget fell in the middle of the last one,
  /// unused segments are given back, which could not be done there; and while a change is pending, because a request
  /// that is served from what is held already fails under no budget.
  virtual void start_micro_batch() {}
  /// The next allocation that fails leaves what the memory holds then in `file`, in PyTorch's format, which its memory
  /// viewer opens (a pickle of segments, blocks and the last allocations). Once; a disk that refuses leaves nothing.
  /// Nothing on a device whose allocator is not PyTorch's.
  virtual void snapshot_next_failure(const std::filesystem::path&) {}
  /// The file that was written since the last call, or nothing.
  virtual std::optional<std::filesystem::path> take_snapshot() { return std::nullopt; }
  /// Waits until the device has done all that it was given.
  virtual void synchronize() = 0;
  virtual c10::Device place() const = 0;
};

}  // namespace plimsoll::memory
