// A frozen linear layer with its low-rank pair. The wide products are cuBLAS's, the thin ones ours (thin.h).
//
// Where bf16 results are rounded: the forward's bias and low-rank part, and the low-rank part of a single layer's dx,
// are summed in fp32 and rounded once, and the wide product is added to them in fp32 and rounded once more. The CPU
// keeps both in one fp32 sum; here that sum would have to go through memory at twice the width. Several layers over one
// x do sum in fp32, as there the rounding would be once a layer.

#include <ATen/core/LegacyTypeDispatch.h>

#include "model/cuda/thin.h"

namespace plimsoll::model::cuda {
namespace {

/// One layer of a backward pass, operands as `compute`; what is not needed is undefined.
struct Layer {
  Tensor grad, weight;
  Tensor up;  ///< scale g b, [n, r]
};

bool adapted(const LoraTensors& layer) { return layer.a.defined(); }

/// scale g b. b^T is made first, so that channels are neighbours as in thin_down's other use.
Tensor gradient_of_u(const LoraTensors& layer, const Tensor& grad, at::ScalarType compute, Scratch& scratch) {
  const std::int64_t out = layer.b.size(0), rank = layer.b.size(1);
  const Tensor across = scratch.make({rank, out}, at::kFloat, grad),
               up = scratch.make({rows(grad), rank}, compute, grad);
  transpose_scaled(layer.b, 1.0F, across);
  thin_down(grad, across, layer.scale, {}, 0, up);
  return up;
}

Layer begin_layer(const LoraTensors& tensors, const LoraGradients& gradients, at::ScalarType compute, bool wants_input,
                  Scratch& scratch) {
  Layer layer;
  layer.grad = scratch.as(gradients.grad_output, compute);
  if (wants_input) layer.weight = scratch.as(tensors.weight, compute);
  if (!adapted(tensors)) return layer;
  if (wants_input || gradients.da.defined()) layer.up = gradient_of_u(tensors, layer.grad, compute, scratch);
  if (gradients.db.defined()) gemm(tensors.scale, {layer.grad, true}, {gradients.u}, 0.0F, gradients.db);
  return layer;
}

std::vector<ThinPair> low_rank_pairs(const std::vector<LoraTensors>& tensors, const std::vector<Layer>& layers) {
  std::vector<ThinPair> pairs;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    if (adapted(tensors[i])) pairs.push_back({layers[i].up, tensors[i].a, tensors[i].site});
  }
  return pairs;
}

/// dx of one layer: the low-rank part first, the wide product on top of it.
void input_gradient_of_one(const LoraTensors& tensors, const Layer& layer, const Mask& mask, const Tensor& dx) {
  if (adapted(tensors)) thin_up({{layer.up, tensors.a, tensors.site}}, true, mask, {}, {}, dx);
  gemm(1.0F, {layer.grad}, {layer.weight}, adapted(tensors) ? 1.0F : 0.0F, dx);
}

/// dx of several layers: wide products summed in fp32, and the low-rank parts added as the sum is rounded.
void input_gradient_of_all(const std::vector<LoraTensors>& tensors, const std::vector<Layer>& layers, const Mask& mask,
                           Scratch& scratch, const Tensor& dx) {
  const Tensor flat = dx.view({rows(dx), columns(dx)});
  const Tensor sum = dx.scalar_type() == at::kFloat ? flat : scratch.make(flat.sizes(), at::kFloat, dx);
  for (std::size_t i = 0; i < layers.size(); ++i) {
    gemm(1.0F, {layers[i].grad}, {layers[i].weight}, i == 0 ? 0.0F : 1.0F, sum);
  }
  const std::vector<ThinPair> pairs = low_rank_pairs(tensors, layers);
  if (!pairs.empty() || !sum.is_same(flat)) thin_up(pairs, true, mask, {}, sum, flat);
}

void input_gradient(const std::vector<LoraTensors>& tensors, const std::vector<Layer>& layers, const Mask& mask,
                    at::ScalarType compute, Scratch& scratch, const Tensor& dx) {
  // A product of fp32 operands is not rounded to bf16 by cuBLAS.
  const bool rounds_itself = compute != at::kFloat || dx.scalar_type() == at::kFloat;
  if (layers.size() == 1 && rounds_itself) {
    input_gradient_of_one(tensors[0], layers[0], mask, dx.view({rows(dx), columns(dx)}));
  } else {
    input_gradient_of_all(tensors, layers, mask, scratch, dx);
  }
}

}  // namespace

void CudaKernels::lora_forward(const Tensor& x, const LoraTensors& layer, const Dropout& dropout,
                               at::ScalarType compute, Tensor& u, Tensor& y) const {
  hold_workspaces();
  if (y.numel() == 0) return;
  const at::AutoDispatchBelowADInplaceOrView no_graph;  // x may have one, which a view would join
  Scratch scratch;
  thin_down(x, layer.a, 1.0F, mask_of(dropout), layer.site, u);
  if (!layer.values) {
    C10_CUDA_CHECK(cudaMemsetAsync(y.mutable_data_ptr(), 0, y.nbytes(), stream()));
    return;
  }
  const std::int64_t n = rows(x), out = layer.weight.size(0);
  const Tensor up = scratch.make({layer.b.size(1), out}, at::kFloat, x), flat = y.view({n, out});
  transpose_scaled(layer.b, layer.scale, up);
  thin_up({{u, up, 0}}, false, {}, layer.bias, {}, flat);
  const Tensor input = scratch.as(x, compute).view({n, columns(x)}), weight = scratch.as(layer.weight, compute);
  gemm(1.0F, {input}, {weight, true}, 1.0F, flat);
}

void CudaKernels::lora_backward(const Tensor& x, const std::vector<LoraTensors>& tensors, const Dropout& dropout,
                                at::ScalarType compute, std::vector<LoraGradients>& gradients, Tensor& dx) const {
  hold_workspaces();
  Scratch scratch;
  const Mask mask = mask_of(dropout);
  std::vector<Layer> layers;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    layers.push_back(begin_layer(tensors[i], gradients[i], compute, dx.defined(), scratch));
    if (gradients[i].da.defined()) thin_gradient(layers[i].up, x, mask, tensors[i].site, gradients[i].da);
  }
  if (dx.defined() && dx.numel() > 0) input_gradient(tensors, layers, mask, compute, scratch, dx);
}

}  // namespace plimsoll::model::cuda
