// Which errors mean out of memory, which that the device is lost, and how long memory is waited for. What the guardian
// does about a full memory is tested in whole steps (tests/train).
#include "memory/guardian.h"

#include <c10/util/Exception.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <chrono>
#include <cstdint>
#include <limits>
#include <new>
#include <stdexcept>
#include <utility>
#include <vector>

#include "memory/dry_run.h"

namespace plimsoll::memory {
namespace {

bool means_out_of_memory(const auto& thrower) {
  try {
    thrower();
  } catch (...) {
    return is_out_of_memory();
  }
  return false;
}

bool means_that_the_device_failed(const auto& thrower) {
  try {
    thrower();
  } catch (...) {
    return is_device_failure();
  }
  return false;
}

/// As c10 throws what a call to CUDA returned.
[[noreturn]] void fail_as_cuda(std::int32_t code, const char* said) {
  throw c10::AcceleratorError({__func__, __FILE__, static_cast<std::uint32_t>(__LINE__)}, code, said);
}

TEST(OutOfMemory, HasManyNames) {
  EXPECT_TRUE(means_out_of_memory([] { C10_THROW_ERROR(OutOfMemoryError, "of the allocator"); }));
  EXPECT_TRUE(means_out_of_memory([] { throw std::bad_alloc(); }));
  for (const char* said :
       {"cuDNN error: CUDNN_STATUS_ALLOC_FAILED", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling",
        "cuFFT error: CUFFT_ALLOC_FAILED", "CUDA error: out of memory"}) {
    EXPECT_TRUE(means_out_of_memory([&] { TORCH_CHECK(false, said); })) << said;
  }
}

TEST(OutOfMemory, IsNoOtherError) {
  EXPECT_FALSE(means_out_of_memory([] { TORCH_CHECK(false, "mat1 and mat2 shapes cannot be multiplied"); }));
  EXPECT_FALSE(means_out_of_memory([] { throw std::runtime_error("a file is missing"); }));
  EXPECT_FALSE(means_out_of_memory([] { throw 7; }));
}

TEST(DeviceFailure, IsWhatCudaAndItsLibrariesSayOfIt) {
  EXPECT_TRUE(means_that_the_device_failed([] { fail_as_cuda(719, "CUDA error: unspecified launch failure"); }));
  EXPECT_TRUE(means_that_the_device_failed([] { fail_as_cuda(46, "CUDA error: all CUDA devices are busy"); }));
  for (const char* said : {"CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`",
                           "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"}) {
    EXPECT_TRUE(means_that_the_device_failed([&] { TORCH_CHECK(false, said); })) << said;
  }
}

TEST(DeviceFailure, IsNoFullMemoryAndNoOtherError) {
  EXPECT_FALSE(means_that_the_device_failed([] { fail_as_cuda(2, "CUDA error: out of memory"); }));
  EXPECT_FALSE(means_that_the_device_failed([] { C10_THROW_ERROR(OutOfMemoryError, "of the allocator"); }));
  EXPECT_FALSE(means_that_the_device_failed([] { TORCH_CHECK(false, "shapes cannot be multiplied"); }));
  EXPECT_FALSE(means_that_the_device_failed([] { throw std::runtime_error("a file is missing"); }));
}

/// A device whose own thread drops the tasks of a dead graph late: what they hold is live for some more looks.
class LateMemory final : public DeviceMemory {
 public:
  static constexpr std::int64_t kHeld = 1 << 20;
  void hold(int looks) { looks_ = looks; }
  std::int64_t live_at_release() const { return live_at_release_; }

  std::int64_t live() const override { return looks_ > 0 && looks_-- > 0 ? kHeld : 0; }
  std::int64_t peak() const override { return kHeld; }
  void reset_peak() override {}
  std::int64_t budget() const override { return 2 * kHeld; }
  void set_budget(std::int64_t) override {}
  void release_cached() override { live_at_release_ = live(); }
  std::int64_t take_failed_request() override { return kHeld; }
  std::int64_t take_allocator_retries() override { return 0; }
  void set_workspace(std::int64_t) override {}
  std::int64_t workspace() const override { return 0; }
  std::int64_t reserved() const override { return kHeld; }
  std::int64_t allocations() const override { return 0; }
  void change_budget_after(std::int64_t, std::int64_t) override {}
  void synchronize() override {}
  c10::Device place() const override { return c10::kCPU; }

 private:
  mutable int looks_ = 0;
  std::int64_t live_at_release_ = -1;
};

TEST(CleanUp, WaitsForWhatTheDevicesThreadStillHolds) {
  LateMemory memory;
  memory.hold(5);
  clean_up(memory, 0, [] {});
  EXPECT_EQ(memory.live_at_release(), 0) << "cached blocks were given back before the last of them was free";
}

TEST(CleanUp, DoesNotWaitForEver) {
  LateMemory memory;
  memory.hold(std::numeric_limits<int>::max());
  clean_up(
      memory, 0, [] {}, std::chrono::milliseconds(20));
  EXPECT_EQ(memory.live_at_release(), LateMemory::kHeld);
}

TEST(CleanUp, WaitsForNoMoreThanWasLiveBefore) {
  LateMemory memory;
  memory.hold(2);  // one look of the wait's, one of the release's
  clean_up(memory, LateMemory::kHeld, [] {});
  EXPECT_EQ(memory.live_at_release(), LateMemory::kHeld);
}

TEST(CleanUp, TheGuardianTellsWhatWasLiveBeforeTheAttempt) {
  LateMemory memory;
  Guardian guardian(memory);
  std::vector<std::int64_t> left;
  guardian.after_drain = [&](std::int64_t before, std::int64_t after) { left.push_back(after - before); };
  bool full = true;
  const auto attempt = [&](Piece) {
    if (!std::exchange(full, false)) return;
    memory.hold(7);
    C10_THROW_ERROR(OutOfMemoryError, "of the allocator");
  };
  const auto report = guardian.run(2, 2, {attempt, [] {}, [](Piece, std::int64_t) { return std::int64_t{0}; }});
  EXPECT_EQ(report.retries, 1);
  EXPECT_EQ(report.micro_batches, 2) << "in halves";
  EXPECT_EQ(left, std::vector<std::int64_t>{0});
}

// On a device that is full to the last byte nothing could be had.
TEST(Drain, AllocatesNothing) {
  count_as(kCudaCounting);  // the smallest tensors too
  drain(c10::kMeta);        // makes what it needs
  const Ledger one = dry_run([] { const at::Tensor made = at::empty({1}, at::TensorOptions(c10::kMeta)); });
  const Ledger drained = dry_run([] { drain(c10::kMeta); });
  count_as({});
  EXPECT_EQ(one.allocations(), 1) << "or nothing is counted here";
  EXPECT_EQ(drained.allocations(), 0);
}

}  // namespace
}  // namespace plimsoll::memory
