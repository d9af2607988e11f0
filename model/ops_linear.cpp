// Matrix products, linear layers and low-rank adapters.

#include "model/ops_node.h"

namespace plimsoll::model {
namespace {

const Tensor kNone;

Tensor product(const Tensor& a, bool transpose_a, const Tensor& b, bool transpose_b, const Tensor& bias, at::ScalarType compute,
               at::ScalarType dtype) {
  const std::int64_t m = a.size(transpose_a ? 1 : 0), n = b.size(transpose_b ? 0 : 1);
  const std::int64_t depth_a = a.size(transpose_a ? 0 : 1), depth_b = b.size(transpose_b ? 1 : 0);
  if (depth_a != depth_b) fail(ExitCode::kUsage, "product of mismatched matrices: inner sizes {} and {}", depth_a, depth_b);
  Tensor out = make({m, n}, dtype, a);
  kernels_for(a).product({a, transpose_a, b, transpose_b, bias, 0.0F, compute}, out);
  return out;
}

std::vector<std::int64_t> with_columns(const Tensor& x, std::int64_t width) {
  auto sizes = x.sizes().vec();
  sizes.back() = width;
  return sizes;
}

void check_linear(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  if (x.dim() < 1 || weight.dim() != 2 || x.size(-1) != weight.size(1)) {
    fail(ExitCode::kUsage, "linear: input with {} columns over a weight of {} inputs", x.dim() < 1 ? 0 : x.size(-1), weight.size(-1));
  }
  if (bias.defined() && bias.numel() != weight.size(0)) {
    fail(ExitCode::kUsage, "linear: bias of {} over a weight of {} outputs", bias.numel(), weight.size(0));
  }
}

/// y = x W^T + bias; inputs x, W, bias.
class LinearNode final : public OpNode<2> {
 public:
  void keep(const Tensor& x, const Tensor& weight, at::ScalarType compute) {
    if (weight.requires_grad()) save(0, x);
    save(1, weight);
    x_sizes_ = x.sizes().vec();
    x_dtype_ = x.scalar_type();
    compute_ = compute;
  }

 protected:
  variable_list backward(const variable_list& grads) override {
    const Tensor grad = as_matrix(grads[0].contiguous());
    const Tensor weight = saved(1);
    const Kernels& kernels = kernels_for(grad);
    variable_list out(3);
    if (needs(0)) {
      out[0] = make(x_sizes_, x_dtype_, grad);
      Tensor flat = as_matrix(out[0]);
      kernels.product({grad, false, weight, false, kNone, 0.0F, compute_}, flat);
    }
    if (needs(1)) {
      out[1] = make_like(weight);
      kernels.product({grad, true, as_matrix(saved(0)), false, kNone, 0.0F, compute_}, out[1]);
    }
    if (needs(2)) {
      out[2] = make({weight.size(0)}, at::kFloat, grad);
      kernels.sum_rows(grad, out[2]);
    }
    return out;
  }

 private:
  std::vector<std::int64_t> x_sizes_;
  at::ScalarType x_dtype_ = at::kFloat, compute_ = at::kFloat;
};

/// A group of adapted layers over one x; inputs x, then a and b of each layer.
class LoraNode final : public torch::autograd::Node {
 public:
  void keep(const Tensor& x, const std::vector<LoraLayer>& layers, const std::vector<Tensor>& u, float scale,
            const Dropout& dropout, at::ScalarType compute) {
    x_ = SavedVariable(x, false);
    for (std::size_t i = 0; i < layers.size(); ++i) {
      saved_.push_back({SavedVariable(layers[i].weight, false), SavedVariable(layers[i].a, false),
                        SavedVariable(layers[i].b, false), SavedVariable(u[i], false), layers[i].site});
    }
    scale_ = scale;
    dropout_ = dropout;
    compute_ = compute;
  }

  void release_variables() override {
    x_.reset_data();
    for (auto& layer : saved_) {
      for (auto* variable : {&layer.weight, &layer.a, &layer.b, &layer.u}) variable->reset_data();
    }
  }

 protected:
  variable_list apply(variable_list&& grads) override;

 private:
  struct Saved {
    SavedVariable weight, a, b, u;
    std::uint32_t site;
  };
  /// One layer's tensors while its gradients are computed.
  struct Live {
    Tensor grad, weight, a, b, u;
    std::size_t layer;
  };
  std::vector<Live> live_layers(const variable_list& grads) {
    std::vector<Live> live;
    for (std::size_t i = 0; i < saved_.size(); ++i) {
      if (!grads[i].defined()) continue;
      live.push_back({grads[i].contiguous(), saved_[i].weight.unpack(), saved_[i].a.unpack(), saved_[i].b.unpack(),
                      saved_[i].u.unpack(), i});
    }
    return live;
  }

  SavedVariable x_;
  std::vector<Saved> saved_;
  float scale_ = 1.0F;
  Dropout dropout_;
  at::ScalarType compute_ = at::kFloat;
};

variable_list LoraNode::apply(variable_list&& grads) {
  variable_list out(1 + 2 * saved_.size());
  const std::vector<Live> live = live_layers(grads);
  if (live.empty()) return out;
  const Tensor x = x_.unpack();
  Tensor dx = task_should_compute_output(0) ? make_like(x) : Tensor();
  std::vector<LoraTensors> tensors;
  std::vector<LoraGradients> gradients;
  for (const Live& one : live) {
    tensors.push_back({one.weight, kNone, one.a, one.b, scale_, saved_[one.layer].site});
    LoraGradients wanted{one.grad, one.u, {}, {}};
    if (task_should_compute_output(1 + 2 * one.layer)) wanted.da = make_like(one.a);
    if (task_should_compute_output(2 + 2 * one.layer)) wanted.db = make_like(one.b);
    gradients.push_back(std::move(wanted));
  }
  kernels_for(x).lora_backward(x, tensors, dropout_, compute_, gradients, dx);
  out[0] = dx;
  for (std::size_t i = 0; i < live.size(); ++i) {
    out[1 + 2 * live[i].layer] = gradients[i].da;
    out[2 + 2 * live[i].layer] = gradients[i].db;
  }
  return out;
}

void check_lora(const Tensor& x, const LoraLayer& layer) {
  check_linear(x, layer.weight, layer.bias);
  const auto& a = layer.a;
  const auto& b = layer.b;
  if (a.dim() != 2 || b.dim() != 2 || a.size(0) != b.size(1) || a.size(1) != x.size(-1) || b.size(0) != layer.weight.size(0) ||
      a.scalar_type() != at::kFloat || b.scalar_type() != at::kFloat) {
    fail(ExitCode::kUsage, "adapter of a layer with {} inputs and {} outputs: A must be fp32 [r, in] and B fp32 [out, r]",
         layer.weight.size(1), layer.weight.size(0));
  }
}

bool is_adapted(const LoraLayer& layer) { return layer.a.defined(); }

/// Layers that all have adapters, as one node.
std::vector<Tensor> adapted_group(const Tensor& x_in, const std::vector<LoraLayer>& layers, float scale, const Dropout& dropout,
                                  at::ScalarType compute) {
  const Tensor x = x_in.contiguous();
  const std::int64_t n = x.size(-1) == 0 ? 0 : x.numel() / x.size(-1);
  if (dropout.rate > 0.0F && (!dropout.keys.defined() || dropout.keys.numel() != 2 * n)) {
    fail(ExitCode::kUsage, "dropout of {} rows needs keys [{}, 2]", n, n);
  }
  std::vector<Tensor> out, u;
  bool graph = wants_graph(x);
  for (const LoraLayer& layer : layers) {
    check_lora(x, layer);
    graph = graph || wants_graph(layer.a, layer.b);
    out.push_back(make(with_columns(x, layer.weight.size(0)), compute, x));
    u.push_back(make({n, layer.a.size(0)}, compute, x));
    kernels_for(x).lora_forward(x, {layer.weight, layer.bias, layer.a, layer.b, scale, layer.site}, dropout, compute, u.back(),
                                out.back());
  }
  if (!graph) return out;
  std::vector<Tensor> inputs{x};
  for (const LoraLayer& layer : layers) inputs.insert(inputs.end(), {layer.a, layer.b});
  auto node = make_node<LoraNode>(inputs);
  node->keep(x, layers, u, scale, dropout, compute);
  for (Tensor& y : out) torch::autograd::set_history(y, node);
  return out;
}

}  // namespace

Tensor matmul_nt(const Tensor& a, const Tensor& b, const Tensor& bias) {
  return product(a.contiguous(), false, b.contiguous(), true, bias, a.scalar_type(), a.scalar_type());
}
Tensor matmul_nn(const Tensor& a, const Tensor& b) {
  return product(a.contiguous(), false, b.contiguous(), false, kNone, a.scalar_type(), a.scalar_type());
}
Tensor matmul_tn(const Tensor& a, const Tensor& b) {
  return product(a.contiguous(), true, b.contiguous(), false, kNone, a.scalar_type(), a.scalar_type());
}

Tensor linear(const Tensor& x_in, const Tensor& weight_in, const Tensor& bias, at::ScalarType compute) {
  check_linear(x_in, weight_in, bias);
  const Tensor x = x_in.contiguous(), weight = weight_in.contiguous();
  Tensor out = make(with_columns(x, weight.size(0)), compute, x);
  Tensor flat = as_matrix(out);
  kernels_for(x).product({as_matrix(x), false, weight, true, bias, 0.0F, compute}, flat);
  if (!wants_graph(x, weight, bias)) return out;
  auto node = make_node<LinearNode>(x, weight, bias);
  node->keep(x, weight, compute);
  torch::autograd::set_history(out, node);
  return out;
}

Tensor lora_linear(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& a, const Tensor& b, float scale,
                   const Dropout& dropout, at::ScalarType compute) {
  return adapted_group(x, {{weight, bias, a, b, dropout.site}}, scale, dropout, compute).front();
}

std::vector<Tensor> lora_linears(const Tensor& x, const std::vector<LoraLayer>& layers, float scale, const Dropout& dropout,
                                 at::ScalarType compute) {
  std::vector<LoraLayer> adapted;
  for (const LoraLayer& layer : layers) {
    if (is_adapted(layer)) adapted.push_back(layer);
  }
  std::vector<Tensor> from_group;
  if (!adapted.empty()) from_group = adapted_group(x, adapted, scale, dropout, compute);
  std::vector<Tensor> out;
  std::size_t next = 0;
  for (const LoraLayer& layer : layers) {
    out.push_back(is_adapted(layer) ? from_group[next++] : linear(x, layer.weight, layer.bias, compute));
  }
  return out;
}

}  // namespace plimsoll::model
