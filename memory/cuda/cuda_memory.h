#pragma once
// A GPU's memory as the trainer sees it: PyTorch's caching allocator under a budget.
//
// The budget is a fraction of the card (CUDACachingAllocator::setMemoryFraction): what the allocator has reserved may
// not pass it, so a 141 GB card stands in for a 24 GB one, and failures are the allocator's own
// (c10::OutOfMemoryError, after it has given its unused blocks back and tried again). The fraction is looked at where a
// segment is made and nowhere else: a request that is served from what is held already never fails, whence the releases
// of set_budget() and start_micro_batch(). Context, modules, NCCL and what else lies outside the allocator is not
// counted here; overhead() says how much that is. cuBLAS's workspaces come from the allocator and are live.

#include <c10/core/Device.h>

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <mutex>
#include <optional>

#include "memory/device_memory.h"

namespace plimsoll::memory {

/// Of one GPU; made once, lives as long as the program. Blocks are rounded up to 512 bytes, as the allocator does.
class CudaMemory final : public DeviceMemory {
 public:
  /// Throws c10::Error when the GPU cannot be used.
  explicit CudaMemory(c10::DeviceIndex device);
  CudaMemory(const CudaMemory&) = delete;
  CudaMemory& operator=(const CudaMemory&) = delete;

  std::int64_t live() const override;
  /// The larger of peak_live() and of what had to be reserved at once: active blocks with what lies unused between them
  /// (inactive_split_bytes), that is reserved bytes less the segments that emptyCache would give back.
  std::int64_t peak() const override;
  std::int64_t peak_live() const override;
  void reset_peak() override;
  std::int64_t budget() const override { return budget_; }
  /// Not from within the allocator, whose lock an observer or a tracker holds: it may empty the cache.
  void set_budget(std::int64_t bytes) override;
  void release_cached() override;
  std::int64_t take_failed_request() override { return failed_request_.exchange(0); }
  std::int64_t take_allocator_retries() override;

  /// The libraries' workspaces are allocated once, by the first product, and are live from then on.
  void set_workspace(std::int64_t) override {}
  std::int64_t workspace() const override { return 0; }
  std::int64_t allocations() const override { return allocations_; }
  void change_budget_after(std::int64_t after, std::int64_t bytes) override;
  void start_micro_batch() override;
  void snapshot_next_failure(const std::filesystem::path& file) override;
  std::optional<std::filesystem::path> take_snapshot() override;
  void synchronize() override;
  c10::Device place() const override { return {c10::kCUDA, device_}; }

  std::int64_t reserved() const override;
  bool reserves() const override { return true; }
  std::int64_t total() const { return total_; }
  std::int64_t available() const;  ///< of the whole card, now
  /// Bytes of the card in use that are not the allocator's: context, libraries, other processes.
  std::int64_t overhead() const;

 private:
  void limit(std::int64_t bytes);
  void count();
  void note_needed();
  void write_snapshot();

  c10::DeviceIndex device_;
  std::int64_t total_ = 0;
  std::atomic<std::int64_t> budget_{0}, failed_request_{0}, allocations_{0}, change_at_{0}, change_to_{0},
      retries_seen_{0}, needed_peak_{0};
  std::atomic<bool> release_due_{false};  ///< the budget fell within an allocation
  std::mutex snapshot_mutex_;             ///< the failure may be on the thread that autograd works on
  std::optional<std::filesystem::path> snapshot_wanted_, snapshot_written_;
};

}  // namespace plimsoll::memory
