// Which errors mean out of memory. What the guardian does about them is tested in whole steps (tests/train).
#include "memory/guardian.h"

#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <new>
#include <stdexcept>

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

}  // namespace
}  // namespace plimsoll::memory
