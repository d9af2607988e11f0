#pragma once
// A CUDA kernel beside the CPU's: the same inputs, outputs filled with NaN first, so that an element that nobody writes
// shows. The cases are compiled twice: into emulated_cuda_kernels, where g++'s build of the kernels runs on the CPU,
// and into cuda_kernels_on_a_gpu, where the CUDA library's run on a GPU. What differs is behind the functions below.

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "model/kernels.h"
#include "model/kernels_meta_cuda.h"
#include "train/flat_kernels.h"

namespace plimsoll::train {

/// The flat buffers' kernels that are compared with the CPU's. Memory is the host's; on a GPU it goes there and back.
const FlatKernels& flat_kernels_under_test();

}  // namespace plimsoll::train

namespace plimsoll::model {

using at::kBFloat16;
using at::kFloat;
using at::ScalarType;

/// The kernels that are compared with the CPU's. Tensors are the host's; on a GPU they go there and back.
const Kernels& kernels_under_test();
/// True where cuBLAS and flash attention are, and blocks run beside each other: on a GPU.
bool on_a_gpu();
/// A dry run's kernel takes what the kernel itself takes: in the emulator the same blocks in the same order, on a GPU
/// as many bytes at the most. Returns these.
std::int64_t expect_same_scratch(const char* what, const std::function<void()>& real, const std::function<void()>& dry);

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

inline Tensor meta(const Tensor& x) {
  if (!x.defined()) return x;
  return at::empty_strided(x.sizes(), x.strides(), x.options().device(at::kMeta));
}

inline const Kernels& cpu() {
  static const Tensor any = at::empty({0});
  return kernels_for(any);
}

class CudaKernelTest : public testing::Test {
 protected:
  void SetUp() override {
    at::set_num_threads(1);
    at::manual_seed(1);
  }
  at::NoGradGuard no_grad_;
  const Kernels& gpu_ = kernels_under_test();
};

}  // namespace plimsoll::model
