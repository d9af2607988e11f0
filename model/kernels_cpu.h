#pragma once
// The CPU's kernels: loops over data pointers, eight fp32 lanes at a time, matrix products by the BLAS inside libtorch.
// Private to model/kernels_*.cpp, but for the scratch bounds that ops.h reports and the threads that row_kernels.h
// takes.

#include <ATen/Parallel.h>
#include <c10/core/CPUAllocator.h>
#include <c10/util/BFloat16.h>
#include <c10/util/FunctionRef.h>
#include <torch/torch.h>

#include <algorithm>

#include "core/error.h"
#include "core/scope.h"
#include "model/kernels.h"

namespace plimsoll::model::cpu {

/// Calls body(task, worker) for every task in [0, tasks), worker in [0, workers). Tasks are handed out one by one, so
/// their order and worker vary: a task's result must not depend on either. Runs on the calling thread alone when
/// workers is 1. Inside, BLAS calls use one thread. The first exception is rethrown.
void for_tasks(std::int64_t tasks, int workers, c10::function_ref<void(std::int64_t task, int worker)> body);

/// How many threads are worth waking for `operations` simple operations (about a nanosecond for eight) in at most
/// `tasks` pieces.
int workers_for(std::int64_t tasks, std::int64_t operations);

/// Splits rows over the workers; `operations_per_row` says how much one row costs. body(first, last).
void for_rows(std::int64_t rows, std::int64_t operations_per_row,
              c10::function_ref<void(std::int64_t, std::int64_t)> body);

/// One block of library scratch (core/scope.h) for the time of a kernel, cut into 64-byte aligned pieces.
class Scratch {
 public:
  explicit Scratch(std::int64_t bytes) {
    if (bytes > 0) block_ = c10::GetCPUAllocator()->allocate(static_cast<std::size_t>(bytes));
    next_ = static_cast<char*>(block_.get());
  }
  template <class T>
  T* take(std::int64_t count) {
    char* piece = next_;
    next_ += padded(count * static_cast<std::int64_t>(sizeof(T)));
    return reinterpret_cast<T*>(piece);
  }
  static std::int64_t padded(std::int64_t bytes) { return (bytes + 63) / 64 * 64; }

 private:
  LibraryScratch scope_;
  c10::DataPtr block_;
  char* next_ = nullptr;
};

/// A matrix where it lies: element (i, j) at data[i * stride + j], or transposed at data[j * stride + i].
template <class T>
struct Matrix {
  const T* data;
  std::int64_t stride;
  bool transposed = false;
};

/// c[m, n] = alpha a[m, k] b[k, n] + beta c, c row-major with row stride `stride_c`, fp32. On the calling thread's BLAS
/// threads.
void gemm(std::int64_t m, std::int64_t n, std::int64_t k, float alpha, Matrix<float> a, Matrix<float> b, float beta,
          float* c, std::int64_t stride_c);
void gemm(std::int64_t m, std::int64_t n, std::int64_t k, float alpha, Matrix<c10::BFloat16> a, Matrix<c10::BFloat16> b,
          float beta, float* c, std::int64_t stride_c);

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

/// Calls body with a value of the element type: body(float{}) or body(c10::BFloat16{}).
template <class Body>
void with_type(at::ScalarType type, Body&& body) {
  if (type == at::kFloat) {
    body(float{});
  } else if (type == at::kBFloat16) {
    body(c10::BFloat16{});
  } else {
    fail(ExitCode::kUsage, "operators take fp32 or bf16 tensors, not {}", c10::toString(type));
  }
}

/// Columns and rows of the fp32 tile that bf16 products and dropout go through.
constexpr std::int64_t kTileRows = 512;
constexpr std::int64_t kTileColumns = 1024;

/// Bytes of the scratch block that the kernel of the same name takes for these tensors, of which only shapes and dtypes
/// are looked at. The kernels take them from here, and a dry run notes them (kernels_meta.cpp): there is no other
/// formula.
std::int64_t product_scratch(const Product& product, const Tensor& out);
std::int64_t lora_forward_scratch(const Tensor& x, const LoraTensors& layer, at::ScalarType compute);
std::int64_t lora_backward_scratch(const Tensor& x, const std::vector<LoraTensors>& layers, at::ScalarType compute,
                                   const std::vector<LoraGradients>& gradients, const Tensor& dx);

class CpuKernels final : public Kernels {
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

}  // namespace plimsoll::model::cpu
