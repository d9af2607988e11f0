// Kernels for tensors without data: nothing is filled, but each says how much library scratch its CPU counterpart would
// take, so that a dry run knows how large the workspace arena must be.

#include "model/kernels_meta.h"

#include <ATen/Parallel.h>

#include "core/scope.h"
#include "model/kernels_cpu.h"

namespace plimsoll::model {
namespace {

class MetaKernels final : public Kernels {
 public:
  void product(const Product& p, Tensor& out) const override { ScratchNote::take(cpu::product_scratch(p, out)); }
  void lora_forward(const Tensor& x, const LoraTensors& layer, const Dropout&, at::ScalarType compute, Tensor&,
                    Tensor&) const override {
    ScratchNote::take(cpu::lora_forward_scratch(x, layer, compute));
  }
  void lora_backward(const Tensor& x, const std::vector<LoraTensors>& layers, const Dropout&, at::ScalarType compute,
                     std::vector<LoraGradients>& gradients, Tensor& dx) const override {
    ScratchNote::take(cpu::lora_backward_scratch(x, layers, compute, gradients, dx));
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
