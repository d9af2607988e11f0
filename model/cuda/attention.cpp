// Attention over packed segments: flash attention out of libtorch for bf16, our own kernels where it cannot.

#include <ATen/Context.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/_flash_attention_backward.h>
#include <ATen/ops/_flash_attention_forward.h>

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "model/cuda/kernels_cuda.h"

namespace plimsoll::model::cuda {
namespace {

/// Flash attention's backward adds up dq with atomics unless the whole process asks for determinism. Asked for here,
/// without the other effect of asking: at::empty would fill what it makes.
class Deterministic {
 public:
  Deterministic() {
    at::globalContext().setDeterministicFillUninitializedMemory(false);
    at::globalContext().setDeterministicAlgorithms(true, false);
  }
  ~Deterministic() {
    at::globalContext().setDeterministicAlgorithms(was_, warned_);
    at::globalContext().setDeterministicFillUninitializedMemory(filled_);
  }
  Deterministic(const Deterministic&) = delete;
  Deterministic& operator=(const Deterministic&) = delete;

 private:
  bool was_ = at::globalContext().deterministicAlgorithms();
  bool warned_ = at::globalContext().deterministicAlgorithmsWarnOnly();
  bool filled_ = at::globalContext().deterministicFillUninitializedMemory();
};

/// Rows that flash attention can read sixteen bytes at a time.
bool aligned(const Tensor& x) {
  return x.stride(0) % 8 == 0 && reinterpret_cast<std::uintptr_t>(x.const_data_ptr()) % 16 == 0;
}

bool suits_flash(const AttentionTensors& t) {
  const std::int64_t d = t.q.size(2);
  return t.q.scalar_type() == at::kBFloat16 && d % 8 == 0 && d <= kMostHeadSize && aligned(t.q) && aligned(t.k) &&
         aligned(t.v);
}

void check_head_size(const AttentionTensors& t) {
  if (t.q.size(2) <= kMostHeadSize) return;
  fail(ExitCode::kUsage, "attention with heads of {}: at most {} on a GPU", t.q.size(2), kMostHeadSize);
}

std::int64_t longest(const std::vector<std::int64_t>& lengths) {
  return *std::max_element(lengths.begin(), lengths.end());
}

/// Never 1: for one query a segment, flash attention swaps heads for queries, and returns another layout.
std::int64_t longest_query(const Segments& segments) { return std::max<std::int64_t>(2, longest(segments.queries)); }

double scale_of(const AttentionTensors& t) { return 1.0 / std::sqrt(static_cast<double>(t.q.size(2))); }

void clear(const Tensor& x) {
  if (x.defined() && x.numel() > 0) C10_CUDA_CHECK(cudaMemsetAsync(x.mutable_data_ptr(), 0, x.nbytes(), stream()));
}

void copy_into(const Tensor& from, const Tensor& to) {
  const Tensor dense = from.contiguous();
  C10_CUDA_CHECK(
      cudaMemcpyAsync(to.mutable_data_ptr(), dense.const_data_ptr(), to.nbytes(), cudaMemcpyDeviceToDevice, stream()));
}

void flash_forward(const AttentionTensors& t, const Tensor& out, const Tensor& lse) {
  const at::AutoDispatchBelowADInplaceOrView no_graph;
  Scratch scratch;
  const Tensor queries = starts_of(t.segments.queries, t.q, scratch), keys = starts_of(t.segments.keys, t.q, scratch);
  const auto made = at::_flash_attention_forward(t.q, t.k, t.v, queries, keys, longest_query(t.segments),
                                                 longest(t.segments.keys), 0.0, t.causal, false, scale_of(t));
  copy_into(std::get<0>(made), out);
  if (!lse.defined()) return;
  const Tensor& by_head = std::get<1>(made);
  TORCH_CHECK(by_head.dim() == 2 && by_head.size(0) == lse.size(1) && by_head.size(1) == lse.size(0),
              "this libtorch's flash attention lays out its log sums in another way: ", by_head.sizes());
  transpose_finite(by_head, lse);
}

void flash_backward(const AttentionTensors& t, const Tensor& grad, const Tensor& out, const Tensor& lse,
                    const Tensor& dq, const Tensor& dk, const Tensor& dv) {
  const at::AutoDispatchBelowADInplaceOrView no_graph;
  const Deterministic deterministic;
  Scratch scratch;
  const Tensor queries = starts_of(t.segments.queries, t.q, scratch), keys = starts_of(t.segments.keys, t.q, scratch);
  const Tensor by_head = scratch.make({lse.size(1), lse.size(0)}, at::kFloat, lse);
  transpose_finite(lse, by_head);
  // Without dropout its random state is not read: any tensor of the device will do.
  const auto made =
      at::_flash_attention_backward(grad, t.q, t.k, t.v, out, by_head, queries, keys, longest_query(t.segments),
                                    longest(t.segments.keys), 0.0, t.causal, queries, queries, scale_of(t));
  copy_into(std::get<0>(made), dq);
  copy_into(std::get<1>(made), dk);
  copy_into(std::get<2>(made), dv);
}

}  // namespace

void CudaKernels::attention_forward(const AttentionTensors& t, Tensor& out, Tensor& lse) const {
  if (t.q.numel() == 0) return;
  if (t.k.numel() == 0) return clear(out), clear(lse);
  if (suits_flash(t)) return flash_forward(t, out, lse);
  check_head_size(t);
  exact_attention_forward(t, out, lse);
}

void CudaKernels::attention_backward(const AttentionTensors& t, const Tensor& grad, const Tensor& out,
                                     const Tensor& lse, Tensor& dq, Tensor& dk, Tensor& dv) const {
  if (t.q.numel() == 0 || t.k.numel() == 0) return clear(dq), clear(dk), clear(dv);
  if (suits_flash(t)) return flash_backward(t, grad, out, lse, dq, dk, dv);
  check_head_size(t);
  exact_attention_backward(t, grad, out, lse, dq, dk, dv);
}

}  // namespace plimsoll::model::cuda
