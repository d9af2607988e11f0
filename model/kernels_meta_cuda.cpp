// What the CUDA kernels allocate, function by function as in model/cuda/. tests/model/cuda_emulator/ holds the two side
// by side, but for cuBLAS's products and flash attention, which need a GPU.

#include "model/kernels_meta_cuda.h"

#include <torch/torch.h>

#include <algorithm>
#include <vector>

#include "core/scope.h"
#include "model/cuda_scratch.h"

namespace plimsoll::model {
namespace {

constexpr std::int64_t kMultiprocessors = 132;  // H100, H200; fewer need less

std::int64_t columns_of(const Tensor& x) { return x.dim() == 0 ? 1 : x.size(-1); }
std::int64_t rows_of(const Tensor& x) { return columns_of(x) == 0 ? 0 : x.numel() / columns_of(x); }

/// The scratch of one call.
class Taken {
 public:
  void make(at::IntArrayRef sizes, at::ScalarType type) {
    made_.push_back(at::empty(sizes, at::TensorOptions(type).device(at::kMeta)));
  }
  /// A copy, where x is of another type.
  void as(const Tensor& x, at::ScalarType type) {
    if (x.defined() && x.scalar_type() != type) make(x.sizes(), type);
  }

 private:
  LibraryScratch scope_;
  std::vector<Tensor> made_;
};

void sum_over_rows(const Tensor& x) {
  const std::int64_t pieces = cuda::pieces_of_sum(rows_of(x));
  if (pieces > 1) Taken().make({pieces, columns_of(x)}, at::kFloat);
}

void gradient_of_a(const LoraTensors& layer, const Tensor& x) {
  const std::int64_t pieces = cuda::gradient_pieces(rows_of(x), columns_of(x));
  if (layer.a.numel() > 0 && pieces > 1) Taken().make({pieces, layer.a.size(0), columns_of(x)}, at::kFloat);
}

/// thin_up's, for more pairs than one launch takes.
void add_pairs(std::size_t pairs, const Tensor& out) {
  if (out.numel() == 0) return;
  Taken taken;
  for (auto left = static_cast<int>(pairs); left > cuda::kMostPairs; left -= cuda::kMostPairs)
    taken.make(out.sizes(), at::kFloat);
}

bool adapted(const LoraTensors& layer) { return layer.a.defined(); }

void begin_layer(const LoraTensors& layer, const LoraGradients& gradients, at::ScalarType compute, bool wants_input,
                 Taken& taken) {
  taken.as(gradients.grad_output, compute);
  if (wants_input) taken.as(layer.weight, compute);
  if (!adapted(layer) || (!wants_input && !gradients.da.defined())) return;
  taken.make({layer.b.size(1), layer.b.size(0)}, at::kFloat);
  taken.make({rows_of(gradients.grad_output), layer.b.size(1)}, compute);
}

void input_gradient(const std::vector<LoraTensors>& layers, at::ScalarType compute, Taken& taken, const Tensor& dx) {
  const bool is_float = dx.scalar_type() == at::kFloat;
  if (layers.size() == 1 && (compute != at::kFloat || is_float)) return;
  if (!is_float) taken.make({rows_of(dx), columns_of(dx)}, at::kFloat);
  add_pairs(static_cast<std::size_t>(std::count_if(layers.begin(), layers.end(), adapted)), dx);
}

void note_starts(const Segments& segments, Taken& taken) {
  taken.make({static_cast<std::int64_t>(segments.queries.size()) + 1}, at::kInt);
  taken.make({static_cast<std::int64_t>(segments.keys.size()) + 1}, at::kInt);
}

bool suits_flash(const AttentionTensors& t) {
  const auto aligned = [](const Tensor& x) { return x.stride(0) % 8 == 0 && x.storage_offset() % 8 == 0; };
  const std::int64_t d = t.q.size(2);
  return t.q.scalar_type() == at::kBFloat16 && d % 8 == 0 && d <= cuda::kMostHeadSize && aligned(t.q) && aligned(t.k) &&
         aligned(t.v);
}

void flash_forward(const AttentionTensors& t) {
  Taken taken;
  note_starts(t.segments, taken);
  Taken made;
  made.make(t.q.sizes(), t.q.scalar_type());
  made.make({t.q.size(1), t.q.size(0)}, at::kFloat);
  made.make({2}, at::kLong);  // the state of its random numbers, which nobody draws
  made.make({1}, at::kLong);
}

void flash_backward(const AttentionTensors& t, const Tensor& lse) {
  constexpr std::int64_t kApart = 128;  // rows between two segments, for kernels that write past the end
  Taken taken;
  note_starts(t.segments, taken);
  taken.make({lse.size(1), lse.size(0)}, at::kFloat);
  const std::int64_t heads = t.q.size(1), d = t.q.size(2),
                     segments = static_cast<std::int64_t>(t.segments.queries.size());
  const std::int64_t padded = t.q.size(0) + kApart * segments;
  const std::int64_t splits = cuda::pieces_of(kMultiprocessors, segments * heads);
  Taken made;
  for (const Tensor* like : {&t.q, &t.k, &t.v}) made.make(like->sizes(), like->scalar_type());
  made.make({heads, padded}, at::kFloat);
  const std::int64_t unit = d <= 128 ? 32 : 64;
  made.make({splits, padded, heads, cuda::pieces_of(d, unit) * unit}, at::kFloat);
  if (t.k.size(1) == heads) return;
  for (int i = 0; i < 2; ++i) made.make({t.k.size(0), heads, d}, t.k.scalar_type());
}

class CudaMetaKernels final : public Kernels {
 public:
  void product(const Product& p, Tensor& out) const override {
    Taken taken;
    taken.as(p.a, p.compute);
    taken.as(p.b, p.compute);
    auto type = out.scalar_type();
    if (p.compute == at::kFloat && type != at::kFloat) {
      taken.make(out.sizes(), at::kFloat);
      type = at::kFloat;
    }
    taken.as(p.bias, type);
  }

  void lora_forward(const Tensor& x, const LoraTensors& layer, const Dropout&, at::ScalarType compute, Tensor&,
                    Tensor& y) const override {
    if (y.numel() == 0 || !layer.values) return;
    Taken taken;
    taken.make({layer.b.size(1), layer.b.size(0)}, at::kFloat);
    taken.as(x, compute);
    taken.as(layer.weight, compute);
  }

  void lora_backward(const Tensor& x, const std::vector<LoraTensors>& layers, const Dropout&, at::ScalarType compute,
                     std::vector<LoraGradients>& gradients, Tensor& dx) const override {
    Taken taken;
    for (std::size_t i = 0; i < layers.size(); ++i) {
      begin_layer(layers[i], gradients[i], compute, dx.defined(), taken);
      if (gradients[i].da.defined()) gradient_of_a(layers[i], x);
    }
    if (dx.defined() && dx.numel() > 0) input_gradient(layers, compute, taken, dx);
  }

  void sum_rows(const Tensor& x, Tensor&) const override {
    if (columns_of(x) > 0) sum_over_rows(x);
  }

  void rms_norm_backward(const Tensor&, const Tensor& x, const Tensor&, const Tensor&, const Tensor&, Tensor&,
                         Tensor& dweight) const override {
    if (dweight.defined()) sum_over_rows(x);
  }

  void embed_context_backward(const Tensor& grad, const Tensor&, const Tensor&, const ContextRows& of, Tensor&, Tensor&,
                              Tensor&) const override {
    Taken taken;
    taken.make({rows_of(grad)}, at::kFloat);
    if (!of.lengths.empty()) taken.make({static_cast<std::int64_t>(of.lengths.size()) + 1}, at::kInt);
  }

  void attention_forward(const AttentionTensors& t, Tensor&, Tensor&) const override {
    if (t.q.numel() == 0 || t.k.numel() == 0) return;
    if (suits_flash(t)) return flash_forward(t);
    Taken taken;
    note_starts(t.segments, taken);
  }

  void attention_backward(const AttentionTensors& t, const Tensor&, const Tensor&, const Tensor& lse, Tensor&, Tensor&,
                          Tensor&) const override {
    if (t.q.numel() == 0 || t.k.numel() == 0) return;
    if (suits_flash(t)) return flash_backward(t, lse);
    Taken taken;
    taken.make(lse.sizes(), at::kFloat);
    note_starts(t.segments, taken);
  }
};

}  // namespace

const Kernels& cuda_meta_kernels() {
  static const CudaMetaKernels kernels;
  return kernels;
}

}  // namespace plimsoll::model
