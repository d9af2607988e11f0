#pragma once
// A CUDA kernel in the emulator beside the CPU's: the same inputs, outputs filled with NaN first, so that an element
// that nobody writes shows.

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "model/cuda/kernels_cuda.h"
#include "model/kernels_meta_cuda.h"
#include "tests/model/cuda_emulator/scratch_recorder.h"

namespace plimsoll::model {

using at::kBFloat16;
using at::kFloat;
using at::ScalarType;

// Of the largest element: sums in another order, and one rounding to bf16 more or less.
inline constexpr double kFp32 = 2e-6, kBf16 = 5e-3, kBf16Sums = 1.2e-2;

inline double bound(ScalarType type, double half = kBf16) { return type == kFloat ? kFp32 : half; }
inline double bound(ScalarType a, ScalarType b, double half) { return std::max(bound(a, half), bound(b, half)); }

inline Tensor random(at::IntArrayRef sizes, ScalarType type) { return at::randn(sizes).to(type); }
inline Tensor unwritten(at::IntArrayRef sizes, ScalarType type) {
  return at::full(sizes, std::numeric_limits<double>::quiet_NaN(), at::TensorOptions().dtype(type));
}

inline std::string name_of(ScalarType type) { return type == kFloat ? "fp32" : "bf16"; }

inline void expect_near(const char* what, const Tensor& ours, const Tensor& cpu, double most) {
  if (cpu.numel() == 0) return;
  const Tensor wanted = cpu.to(at::kDouble);
  const double off = (ours.to(at::kDouble) - wanted).abs().max().item<double>();
  const double size = wanted.abs().max().item<double>();
  EXPECT_TRUE(off <= most * size) << what << ": " << off << " off, of " << size << ", " << most << " of it at most";
}

/// A dry run's kernel takes what the kernel itself takes, in the same order. How many blocks that was.
inline std::size_t expect_same_scratch(const char* what, const std::function<void()>& real,
                                       const std::function<void()>& dry) {
  const auto taken = emulator::scratch_of(real);
  EXPECT_EQ(taken, emulator::scratch_of(dry)) << what;
  return taken.size() / 2;
}

inline Tensor meta(const Tensor& x) {
  if (!x.defined()) return x;
  return at::empty_strided(x.sizes(), x.strides(), x.options().device(at::kMeta));
}

inline const Kernels& cpu() {
  static const Tensor any = at::empty({0});
  return kernels_for(any);
}

class EmulatedCuda : public testing::Test {
 protected:
  void SetUp() override {
    at::set_num_threads(1);
    at::manual_seed(1);
  }
  at::NoGradGuard no_grad_;
  cuda::CudaKernels gpu_;
};

}  // namespace plimsoll::model
