#pragma once
// The CUDA kernels: our own where rows are short of arithmetic, cuBLAS for products, libtorch's flash attention.
// Private to model/cuda/, but for the three functions at the end.
//
// Everything runs on the thread's current stream and its current device, which must be the tensors'. No kernel reads a
// value back, so an index out of range cannot be reported as on the CPU: see gather_rows in index_rows.cu. No kernel
// adds with atomics: a result depends on shapes alone, never on timing.

#include <ATen/cuda/CUDAContextLight.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_bf16.h>

#include <cstdint>
#include <type_traits>
#include <vector>

#include "core/scope.h"
#include "model/cuda_scratch.h"
#include "model/kernels.h"

namespace plimsoll::model::cuda {

using Half = __nv_bfloat16;

/// Rows and columns of a tensor seen as a matrix: all but the last dimension are rows.
inline std::int64_t columns(const Tensor& x) { return x.dim() == 0 ? 1 : x.size(-1); }
inline std::int64_t rows(const Tensor& x) {
  const std::int64_t width = columns(x);
  return width == 0 ? 0 : x.numel() / width;
}

template <class T>
T* data(const Tensor& x) {
  return x.defined() ? static_cast<T*>(x.data_ptr()) : nullptr;
}

template <class T>
constexpr at::ScalarType kTypeOf = std::is_same_v<T, float> ? at::kFloat : at::kBFloat16;

/// Throws Error. Here and below a .cu file calls what a .cpp file throws: nvcc 13 cannot compile fmt's checked formats.
[[noreturn]] void refuse_type(at::ScalarType type);

/// Calls body with a value of the element type: body(float{}) or body(Half{}).
template <class Body>
void with_type(at::ScalarType type, Body&& body) {
  if (type == at::kFloat) {
    body(float{});
  } else if (type == at::kBFloat16) {
    body(Half{});
  } else {
    refuse_type(type);
  }
}

/// Calls body(std::true_type{}) or body(std::false_type{}).
template <class Body>
void with_flag(bool flag, Body&& body) {
  if (flag) {
    body(std::true_type{});
  } else {
    body(std::false_type{});
  }
}

/// True when rows of `width` elements at these addresses can be read sixteen bytes at a time, eight elements a group.
template <class... Pointers>
bool grouped(std::int64_t width, Pointers... pointers) {
  return width % 8 == 0 && ((reinterpret_cast<std::uintptr_t>(pointers) % 16 == 0) && ...);
}

inline cudaStream_t stream() { return c10::cuda::getCurrentCUDAStream().stream(); }

inline unsigned grid_size(std::int64_t blocks) {
  TORCH_CHECK(blocks <= INT32_MAX, "a kernel of ", blocks, " blocks");
  return static_cast<unsigned>(blocks);
}

/// Library scratch (core/scope.h) of one call. Memory is given back in the order of the stream, so kernels that were
/// launched may still use it.
class Scratch {
 public:
  Tensor make(at::IntArrayRef sizes, at::ScalarType type, const Tensor& like) {
    made_.push_back(at::empty(sizes, like.options().dtype(type).requires_grad(false)));
    return made_.back();
  }
  /// x itself, or a copy as `type`.
  Tensor as(const Tensor& x, at::ScalarType type);

 private:
  LibraryScratch scope_;
  std::vector<Tensor> made_;
};

/// A row-major matrix where it lies, or its transpose.
struct Matrix {
  const Tensor& values;  ///< [rows, columns], contiguous
  bool transposed = false;
};

/// c = alpha a b + beta c. Operands of one dtype; c is fp32 or has theirs. Sums in fp32.
void gemm(float alpha, Matrix a, Matrix b, float beta, const Tensor& c);

/// Takes the memory that cuBLAS keeps for good for this thread and its stream. Every kernel that multiplies calls it
/// before its Scratch: what is kept may not come from there.
void hold_workspaces();

/// out[row] = bias, in every row. For products whose bias cuBLAS does not add itself.
void fill_bias(const Tensor& bias, const Tensor& out);

/// out = x in out's dtype.
void convert(const Tensor& x, const Tensor& out);

/// Attention of any head size up to 256 without tensor cores; exact in fp32.
void exact_attention_forward(const AttentionTensors& tensors, Tensor& out, Tensor& lse);
void exact_attention_backward(const AttentionTensors& tensors, const Tensor& grad, const Tensor& out, const Tensor& lse,
                              Tensor& dq, Tensor& dk, Tensor& dv);

/// Where each segment starts, and where the last one ends: int32 [segments + 1], written by kernels from their
/// arguments, so that no host memory must stay alive.
Tensor starts_of(const std::vector<std::int64_t>& lengths, const Tensor& like, Scratch& scratch);
/// out[j, i] = x[i, j], fp32; infinities become 0 (flash attention's mark for a query without keys; ours is 0).
void transpose_finite(const Tensor& x, const Tensor& out);

class CudaKernels final : public Kernels {
 public:
  void product(const Product& product, Tensor& out) const override;
  void lora_forward(const Tensor& x, const LoraTensors& layer, const Dropout& dropout, at::ScalarType compute,
                    Tensor& u, Tensor& y) const override;
  void lora_backward(const Tensor& x, const std::vector<LoraTensors>& layers, const Dropout& dropout,
                     at::ScalarType compute, std::vector<LoraGradients>& gradients, Tensor& dx) const override;
  void sum_rows(const Tensor& x, Tensor& out) const override;
  void cast(const Tensor& x, Tensor& out) const override;
  void add(const Tensor& x, const Tensor& y, Tensor& out) const override;
  void rms_norm_forward(const Tensor& x, const Tensor& weight, double eps, Tensor& out, Tensor& rstd) const override;
  void rms_norm_backward(const Tensor& grad, const Tensor& x, const Tensor& weight, const Tensor& rstd,
                         const Tensor& residual, Tensor& dx, Tensor& dweight) const override;
  void swiglu_forward(const Tensor& gate, const Tensor& up, Tensor& out) const override;
  void swiglu_backward(const Tensor& grad, const Tensor& gate, const Tensor& up, Tensor& dgate,
                       Tensor& dup) const override;
  void activation_forward(Activation kind, const Tensor& x, Tensor& out) const override;
  void activation_backward(Activation kind, const Tensor& grad, const Tensor& x, Tensor& dx) const override;
  void rotary(const Tensor& x, const Tensor& cos, const Tensor& sin, bool backward, Tensor& out) const override;
  void attention_forward(const AttentionTensors& tensors, Tensor& out, Tensor& lse) const override;
  void attention_backward(const AttentionTensors& tensors, const Tensor& grad, const Tensor& out, const Tensor& lse,
                          Tensor& dq, Tensor& dk, Tensor& dv) const override;
  void gather_rows(const Tensor& table, const Tensor& indices, Tensor& out) const override;
  void scatter_add_rows(const Tensor& rows, const Tensor& indices, Tensor& out) const override;
  void place_rows(const Tensor& x, const Tensor& indices, const Tensor& rows, Tensor& out) const override;

  void modulated_norm_forward(const Tensor& x, const Tensor& shift, const Tensor& scale, Tensor& y,
                              Tensor& inverse) const override;
  void modulated_norm_backward(const Tensor& grad, const Tensor& x, const Tensor& scale, const Tensor& inverse,
                               Tensor& dx, Tensor& dshift, Tensor& dscale) const override;
  void gated_residual_forward(const Tensor& x, const Tensor& y, const Tensor& gate, Tensor& out) const override;
  void gated_residual_backward(const Tensor& grad, const Tensor& y, const Tensor& gate, Tensor& dy,
                               Tensor& dgate) const override;
  void embed_rows_forward(const Tensor& rows, const Tensor& lead, const Tensor& positions, std::int64_t draws,
                          Tensor& out) const override;
  void embed_rows_backward(const Tensor& grad, std::int64_t draws, Tensor& drows, Tensor& dlead,
                           Tensor& dpositions) const override;
  void embed_context_forward(const Tensor& tokens, const Tensor& sensors, const Tensor& table, const ContextRows& of,
                             Tensor& out, Tensor& inverse) const override;
  void embed_context_backward(const Tensor& grad, const Tensor& out, const Tensor& inverse, const ContextRows& of,
                              Tensor& dtokens, Tensor& dsensors, Tensor& dtable) const override;
  void add_noise(const Tensor& actions, const Tensor& noise, const Tensor& times, const Tensor& mixtures,
                 Tensor& out) const override;
  void embed_times(const Tensor& times, double scale, Tensor& out) const override;
  void chunk_loss_forward(const ChunkLoss& of, Tensor& losses) const override;
  void chunk_loss_backward(const ChunkLoss& of, const Tensor& grad, Tensor& dpredicted) const override;
};

}  // namespace plimsoll::model::cuda

namespace plimsoll::model {

class HostCopies;

const Kernels& cuda_kernels();
const HostCopies& cuda_host_copies();

/// Makes what cuBLAS keeps for the calling thread (a handle and its workspace), which else happens inside the first
/// product. Autograd's thread needs it too: call it from a backward.
void prepare_cuda_thread();

}  // namespace plimsoll::model
