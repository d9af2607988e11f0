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
  /// Counted allocations so far.
  virtual std::int64_t allocations() const = 0;
  /// Sets the budget to `bytes` when `after` more counted allocations have been made: a neighbour that grows in the
  /// middle of a step. One change can be pending.
  virtual void change_budget_after(std::int64_t after, std::int64_t bytes) = 0;
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
