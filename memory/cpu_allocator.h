#pragma once
// The CPU's budgeted allocator: counts every tensor and fails, as a full card would, by throwing c10::OutOfMemoryError.
//
// It stands in for a device: real failures at real places without a GPU, and an embedded default where there is none.
// Requests under kSmallestCounted bytes are served and not counted. Requests inside a LibraryScratch (core/scope.h)
// come from the workspace arena, a block that is part of the static bytes. What does not fit there is served outside
// it, counts as live, and shows in workspace_overflow().

#include <cstdint>
#include <functional>

#include "memory/device_memory.h"
#include "memory/event.h"

namespace plimsoll::memory {

/// The process's CPU allocator. All members may be called from any thread.
class CpuAllocator : public DeviceMemory {
 public:
  /// Makes it libtorch's CPU allocator. First call before the first tensor of the process; later calls return the same
  /// object.
  static CpuAllocator& install();

  std::int64_t live() const override;
  std::int64_t peak() const override;
  void reset_peak() override;
  std::int64_t budget() const override;
  void set_budget(std::int64_t bytes) override;
  void release_cached() override {}
  std::int64_t take_failed_request() override;
  std::int64_t take_allocator_retries() override { return 0; }

  void set_workspace(std::int64_t bytes) override;
  std::int64_t workspace() const override;
  std::int64_t reserved() const override { return live(); }
  /// Most bytes of the arena in use at once, and most bytes that did not fit into it, since set_workspace.
  std::int64_t workspace_peak() const;
  std::int64_t workspace_overflow() const;

  std::int64_t allocations() const override;
  void change_budget_after(std::int64_t after, std::int64_t bytes) override;
  void synchronize() override {}
  c10::Device place() const override { return c10::kCPU; }
  /// Makes the `nth` counted allocation from now (1 = the next) fail once, whatever the budget; 0 takes that back.
  void fail_at(std::int64_t nth);

  /// While `ledger` is set, counted events of the calling thread are written to it. Null stops.
  static void record(Ledger* ledger);

 private:
  CpuAllocator() = default;
};

}  // namespace plimsoll::memory
