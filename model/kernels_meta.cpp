// Kernels for tensors without data: nothing is filled, but each says how much library scratch its CPU counterpart would
// take, so that a dry run knows how large the workspace arena must be.

#include "model/kernels_meta.h"

#include <ATen/Parallel.h>

#include "core/scope.h"

namespace plimsoll::model {
namespace {

void note_layers(std::int64_t n, const std::vector<std::int64_t>& outs, const LoraTensors& layer, std::int64_t rank,
                 at::ScalarType compute) {
  ScratchNote::take(linear_scratch_bytes(n, layer.weight.size(1), outs, rank, layer.weight.scalar_type(), compute));
}

class MetaKernels final : public Kernels {
 public:
  void product(const Product& p, Tensor& out) const override {
    const std::int64_t depth = p.a.size(p.transpose_a ? 0 : 1);
    ScratchNote::take(linear_scratch_bytes(out.size(0), depth, {out.size(1)}, 0, p.b.scalar_type(), p.compute));
  }
  void lora_forward(const Tensor& x, const LoraTensors& layer, const Dropout&, at::ScalarType compute, Tensor&,
                    Tensor&) const override {
    note_layers(x.numel() / x.size(-1), {layer.weight.size(0)}, layer, layer.a.size(0), compute);
  }
  void lora_backward(const Tensor&, const std::vector<LoraTensors>& layers, const Dropout&, at::ScalarType compute,
                     std::vector<LoraGradients>& gradients, Tensor&) const override {
    std::vector<std::int64_t> outs;
    std::int64_t rank = 0;
    for (const auto& layer : layers) {
      outs.push_back(layer.weight.size(0));
      if (layer.a.defined()) rank = std::max(rank, layer.a.size(0));
    }
    note_layers(gradients.front().grad_output.size(0), outs, layers.front(), rank, compute);
  }
  void attention_forward(const AttentionTensors& in, Tensor&, Tensor&) const override { note_attention(in); }
  void attention_backward(const AttentionTensors& in, const Tensor&, const Tensor&, const Tensor&, Tensor&, Tensor&,
                          Tensor&) const override {
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
