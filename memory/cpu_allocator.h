#pragma once
// The CPU's budgeted allocator: counts every tensor and fails, as a full card would, by throwing c10::OutOfMemoryError.
//
// It stands in for a device: real failures at real places without a GPU, and an embedded default where there is none.
// Requests under kSmallestCounted bytes are served and not counted. Requests inside a LibraryScratch (core/scope.h)
// come from the workspace arena, a block that is part of the static bytes. What does not fit there is served outside
// it, counts as live, and shows in workspace_overflow().

#include <cstdint>
#include <functional>

#include "memory/event.h"
#include "memory/meter.h"

namespace plimsoll::memory {

/// The process's CPU allocator. All members may be called from any thread.
class CpuAllocator : public Meter {
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

  /// Replaces the workspace arena by one of `bytes`. No LibraryScratch may be active. Throws c10::OutOfMemoryError
  /// beyond the budget.
  void set_workspace(std::int64_t bytes);
  std::int64_t workspace() const;
  /// Most bytes of the arena in use at once, and most bytes that did not fit into it, since set_workspace.
  std::int64_t workspace_peak() const;
  std::int64_t workspace_overflow() const;

  /// Counted allocations so far.
  std::int64_t allocations() const;
  /// Makes the `nth` counted allocation from now (1 = the next) fail once, whatever the budget; 0 takes that back.
  void fail_at(std::int64_t nth);
  /// Sets the budget to `bytes` when `after` more counted allocations have been made: a neighbour that grows in the
  /// middle of a step. One change can be pending.
  void change_budget_after(std::int64_t after, std::int64_t bytes);

  /// While `ledger` is set, counted events of the calling thread are written to it. Null stops.
  static void record(Ledger* ledger);

 private:
  CpuAllocator() = default;
};

}  // namespace plimsoll::memory
