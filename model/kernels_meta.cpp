// Kernels for tensors without data: nothing is filled, but each says how much library scratch its CPU counterpart would take, so that
// a dry run knows how large the workspace arena must be.

#include "core/scope.h"
#include "model/kernels_meta.h"

#include <ATen/Parallel.h>

namespace plimsoll::model {
namespace {

void note_layers(const Tensor& x, const std::vector<std::int64_t>& outs, const LoraTensors& layer, at::ScalarType compute) {
  const std::int64_t in = layer.weight.size(1);
  const std::int64_t rank = layer.a.defined() ? layer.a.size(0) : 0;
  ScratchNote::take(linear_scratch_bytes(x.numel() / in, in, outs, rank, layer.weight.scalar_type(), compute));
}

class MetaKernels final : public Kernels {
 public:
  void product(const Product& p, Tensor& out) const override {
    const std::int64_t depth = p.a.size(p.transpose_a ? 0 : 1);
    ScratchNote::take(linear_scratch_bytes(out.size(0), depth, {out.size(1)}, 0, p.b.scalar_type(), p.compute));
  }
  void lora_forward(const Tensor& x, const LoraTensors& layer, const Dropout&, at::ScalarType compute, Tensor&, Tensor&) const override {
    note_layers(x, {layer.weight.size(0)}, layer, compute);
  }
  void lora_backward(const Tensor& x, const std::vector<LoraTensors>& layers, const Dropout&, at::ScalarType compute,
                     std::vector<LoraGradients>& gradients, Tensor&) const override {
    std::vector<std::int64_t> outs;
    for (const auto& layer : layers) outs.push_back(layer.weight.size(0));
    note_layers(x.defined() ? x : gradients.front().grad_output, outs, layers.front(), compute);
  }
  void attention_forward(const AttentionTensors& in, Tensor&, Tensor&) const override { note_attention(in); }
  void attention_backward(const AttentionTensors& in, const Tensor&, const Tensor&, const Tensor&, Tensor&, Tensor&, Tensor&) const override {
    note_attention(in);
  }

 private:
  static void note_attention(const AttentionTensors& in) {
    ScratchNote::take(attention_scratch_bytes(in.segments, in.q.size(2), in.q.scalar_type(), at::get_num_threads()));
  }
};

}  // namespace

const Kernels& meta_kernels() {
  static const MetaKernels kernels;
  return kernels;
}

}  // namespace plimsoll::model
