// What the kernels of model/cuda/ and train/cuda/ take from libraries, without those: products in fp64, attention by
// our own kernels only, the host's memory. cuBLAS and flash attention run on a GPU or not at all.

#include <torch/torch.h>

#include "core/error.h"
#include "model/cuda/kernels_cuda.h"
#include "tests/model/cuda_emulator/comparison.h"
#include "tests/model/cuda_emulator/scratch_recorder.h"
#include "train/cuda/flat_kernels.h"

namespace plimsoll::model::cuda {

void refuse_type(at::ScalarType type) { fail(ExitCode::kUsage, "{} is refused", c10::toString(type)); }

void hold_workspaces() {}

void gemm(float alpha, Matrix a, Matrix b, float beta, const Tensor& c) {
  const emulator::NotRecorded of_the_stand_in;
  if (a.values.scalar_type() != b.values.scalar_type()) fail(ExitCode::kUsage, "operands of different types");
  const auto wide = [](const Matrix& x) {
    const Tensor values = x.values.detach().to(at::kDouble);
    return x.transposed ? values.t() : values;
  };
  const Tensor product = at::matmul(wide(a), wide(b)) * alpha;
  const Tensor sum = beta == 0.0F ? product : product + c.to(at::kDouble) * beta;
  Tensor(c).copy_(sum);
}

void CudaKernels::product(const Product&, Tensor&) const { fail(ExitCode::kUsage, "cuBLAS is not emulated"); }

void CudaKernels::attention_forward(const AttentionTensors& tensors, Tensor& out, Tensor& lse) const {
  exact_attention_forward(tensors, out, lse);
}

void CudaKernels::attention_backward(const AttentionTensors& tensors, const Tensor& grad, const Tensor& out,
                                     const Tensor& lse, Tensor& dq, Tensor& dk, Tensor& dv) const {
  exact_attention_backward(tensors, grad, out, lse, dq, dk, dv);
}

}  // namespace plimsoll::model::cuda

namespace plimsoll::model {

const Kernels& kernels_under_test() {
  static const cuda::CudaKernels kernels;
  return kernels;
}

bool on_a_gpu() { return false; }

std::int64_t expect_same_scratch(const char* what, const std::function<void()>& real,
                                 const std::function<void()>& dry) {
  const auto taken = emulator::scratch_of(real);
  EXPECT_EQ(taken, emulator::scratch_of(dry)) << what;
  return emulator::most_at_once(taken);
}

}  // namespace plimsoll::model

namespace plimsoll::train {

c10::DataPtr flat_scratch(std::size_t bytes) { return c10::GetAllocator(c10::kCPU)->allocate(bytes); }

const FlatKernels& flat_kernels_under_test() { return cuda_flat_kernels(); }

}  // namespace plimsoll::train
