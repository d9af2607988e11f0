#pragma once
// A GPU made up of the CPU's memory: what a budget on reserved bytes does to a run, without a GPU.

#include <cstdint>
#include <limits>
#include <mutex>

#include "memory/device_memory.h"
#include "memory/planning/caching_allocator.h"
#include "train/device.h"

namespace plimsoll::train {

/// While one lives, tensors of the process are allocated in host memory as ever, and counted by the model of PyTorch's
/// caching allocator, which fails them as a GPU's would; not what a LibraryScratch takes, nor what is under
/// kSmallestCounted, as in a CPU's dry run. Budgets mean what they mean in memory/cuda/cuda_memory.h. One at a time.
/// Tensors may outlive it. Any thread.
class CachingDevice final : public memory::DeviceMemory {
 public:
  /// All `card` bytes are the budget at first.
  explicit CachingDevice(std::int64_t card);
  ~CachingDevice() override;
  CachingDevice(const CachingDevice&) = delete;
  CachingDevice& operator=(const CachingDevice&) = delete;

  /// For a session, which must not outlive it.
  Device device();
  /// From now on the process holds `always` bytes of the card outside of the allocator, and `after_backward` more from
  /// the first backward on: kernels that are loaded when they are first used. Before device().
  void hold_outside(std::int64_t always, std::int64_t after_backward);

  memory::AllocatorStats stats() const;
  /// Most bytes reserved at once since it was made.
  std::int64_t most_reserved() const;

  std::int64_t live() const override { return stats().allocated; }
  std::int64_t peak() const override { return stats().peak_needed; }
  std::int64_t peak_live() const override { return stats().peak_allocated; }
  void reset_peak() override;
  std::int64_t budget() const override;
  void set_budget(std::int64_t bytes) override;
  void release_cached() override;
  std::int64_t take_failed_request() override;
  std::int64_t take_allocator_retries() override;
  void set_workspace(std::int64_t bytes) override;
  std::int64_t workspace() const override;
  std::int64_t reserved() const override { return stats().reserved; }
  bool reserves() const override { return true; }
  std::int64_t allocations() const override;
  void change_budget_after(std::int64_t after, std::int64_t bytes) override;
  void start_micro_batch() override;
  void synchronize() override {}
  c10::Device place() const override { return c10::kCPU; }

  /// The allocator's side. A block's number, which its free names; throws c10::OutOfMemoryError.
  std::uint64_t take(std::int64_t bytes);
  void give(std::uint64_t block);

 private:
  std::int64_t outside() const;
  void change_budget();

  mutable std::mutex mutex_;  ///< over all that follows
  std::int64_t card_, budget_;
  std::int64_t budget_of_host_ = 0;  ///< the CPU allocator's, lifted meanwhile
  memory::CachingAllocatorModel model_;
  std::uint64_t blocks_ = 0;
  std::int64_t allocations_ = 0, change_at_ = 0, change_to_ = 0;
  std::int64_t most_reserved_ = 0, failed_request_ = 0, retries_seen_ = 0;
  std::int64_t outside_ = 0, outside_after_backward_ = 0;
  bool release_due_ = false, ran_backward_ = false;
};

}  // namespace plimsoll::train
