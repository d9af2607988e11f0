// Matrix products, linear layers and low-rank adapters.

#include "model/ops_node.h"

namespace plimsoll::model {
namespace {

const Tensor kNone;

Tensor product(const Tensor& a, bool transpose_a, const Tensor& b, bool transpose_b, const Tensor& bias,
               at::ScalarType compute, at::ScalarType dtype) {
  const std::int64_t m = a.size(transpose_a ? 1 : 0), n = b.size(transpose_b ? 0 : 1);
  const std::int64_t depth_a = a.size(transpose_a ? 0 : 1), depth_b = b.size(transpose_b ? 1 : 0);
  if (depth_a != depth_b)
    fail(ExitCode::kUsage, "product of mismatched matrices: inner sizes {} and {}", depth_a, depth_b);
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
    fail(ExitCode::kUsage, "linear: input with {} columns over a weight of {} inputs", x.dim() < 1 ? 0 : x.size(-1),
         weight.size(-1));
  }
  if (bias.defined() && bias.numel() != weight.size(0)) {
    fail(ExitCode::kUsage, "linear: bias of {} over a weight of {} outputs", bias.numel(), weight.size(0));
  }
}

/// A group of layers over one x; inputs x, then weight, bias, a and b of each layer.
class LinearNode final : public torch::autograd::Node {
 public:
  void keep(const Tensor& x, const std::vector<LoraLayer>& layers, const std::vector<Tensor>& u, float scale,
            const Dropout& dropout, at::ScalarType compute) {
    bool needs_x = false;
    for (std::size_t i = 0; i < layers.size(); ++i) {
      const LoraLayer& layer = layers[i];
      saved_.push_back({SavedVariable(layer.weight, false), SavedVariable(layer.bias, false),
                        SavedVariable(layer.a, false), SavedVariable(layer.b, false), SavedVariable(u[i], false),
                        layer.site});
      needs_x = needs_x || layer.weight.requires_grad() || layer.a.defined();
    }
    if (needs_x) maker_ = maker_of(x);
    if (needs_x && maker_ == nullptr) x_ = SavedVariable(x, false);
    x_sizes_ = x.sizes().vec();
    x_dtype_ = x.scalar_type();
    scale_ = scale;
    dropout_ = dropout;
    compute_ = compute;
  }

  void release_variables() override {
    x_.reset_data();
    maker_.reset();
    for (auto& layer : saved_) {
      for (auto* variable : {&layer.weight, &layer.bias, &layer.a, &layer.b, &layer.u}) variable->reset_data();
    }
  }

 protected:
  variable_list apply(variable_list&& grads) override;

 private:
  static constexpr std::size_t kPerLayer = 4;
  struct Saved {
    SavedVariable weight, bias, a, b, u;
    std::uint32_t site;
  };
  /// One layer's tensors while its gradients are computed.
  struct Live {
    Tensor grad, weight, bias, a, b, u;
    std::size_t layer;
  };
  std::vector<Live> live_layers(const variable_list& grads) {
    std::vector<Live> live;
    for (std::size_t i = 0; i < saved_.size(); ++i) {
      if (!grads[i].defined()) continue;
      const Saved& s = saved_[i];
      live.push_back({as_matrix(grads[i].contiguous()), s.weight.unpack(), s.bias.unpack(), s.a.unpack(), s.b.unpack(),
                      s.u.unpack(), i});
    }
    return live;
  }
  bool needs(const Live& live, std::size_t which) {
    return task_should_compute_output(1 + kPerLayer * live.layer + which);
  }
  void low_rank_and_input(const std::vector<Live>& live, const Tensor& x, variable_list& out);
  void weight_and_bias(const Live& live, const Tensor& x, variable_list& out);

  /// x as saved, or made again.
  Tensor input() { return maker_ == nullptr ? x_.unpack() : dynamic_cast<Remakable&>(*maker_).remake(); }

  SavedVariable x_;
  std::shared_ptr<torch::autograd::Node> maker_;  ///< of x, in its place
  std::vector<Saved> saved_;
  std::vector<std::int64_t> x_sizes_;
  at::ScalarType x_dtype_ = at::kFloat, compute_ = at::kFloat;
  float scale_ = 1.0F;
  Dropout dropout_;
};

void LinearNode::low_rank_and_input(const std::vector<Live>& live, const Tensor& x, variable_list& out) {
  Tensor dx = task_should_compute_output(0) ? make(x_sizes_, x_dtype_, live.front().grad) : Tensor();
  bool wanted = dx.defined();
  std::vector<LoraTensors> tensors;
  std::vector<LoraGradients> gradients;
  for (const Live& one : live) {
    tensors.push_back({one.weight, kNone, one.a, one.b, scale_, saved_[one.layer].site});
    gradients.push_back({one.grad, one.u, {}, {}});
    if (one.a.defined() && needs(one, 2)) gradients.back().da = make_like(one.a);
    if (one.b.defined() && needs(one, 3)) gradients.back().db = make_like(one.b);
    wanted = wanted || gradients.back().da.defined() || gradients.back().db.defined();
  }
  if (!wanted) return;
  kernels_for(live.front().grad).lora_backward(x, tensors, dropout_, compute_, gradients, dx);
  out[0] = dx;
  for (std::size_t i = 0; i < live.size(); ++i) {
    out[1 + kPerLayer * live[i].layer + 2] = gradients[i].da;
    out[1 + kPerLayer * live[i].layer + 3] = gradients[i].db;
  }
}

void LinearNode::weight_and_bias(const Live& live, const Tensor& x, variable_list& out) {
  const Kernels& kernels = kernels_for(live.grad);
  const std::size_t first = 1 + kPerLayer * live.layer;
  if (needs(live, 0)) {
    out[first] = make_like(live.weight);
    kernels.product({live.grad, true, as_matrix(x), false, kNone, 0.0F, compute_}, out[first]);
  }
  if (live.bias.defined() && needs(live, 1)) {
    out[first + 1] = make_like(live.bias);
    kernels.sum_rows(live.grad, out[first + 1]);
  }
}

variable_list LinearNode::apply(variable_list&& grads) {
  variable_list out(1 + kPerLayer * saved_.size());
  const std::vector<Live> live = live_layers(grads);
  grads.clear();
  if (live.empty()) return out;
  const Tensor x = input();
  low_rank_and_input(live, x, out);
  for (const Live& one : live) weight_and_bias(one, x, out);
  return out;
}

void check_lora(const Tensor& x, const LoraLayer& layer) {
  check_linear(x, layer.weight, layer.bias);
  const auto& a = layer.a;
  const auto& b = layer.b;
  if (a.dim() != 2 || b.dim() != 2 || a.size(0) != b.size(1) || a.size(1) != x.size(-1) ||
      b.size(0) != layer.weight.size(0) || a.scalar_type() != at::kFloat || b.scalar_type() != at::kFloat) {
    fail(ExitCode::kUsage,
         "adapter of a layer with {} inputs and {} outputs: A must be fp32 [r, in] and B fp32 [out, r]",
         layer.weight.size(1), layer.weight.size(0));
  }
}

void check_group(const Tensor& x, const std::vector<LoraLayer>& layers, const Dropout& dropout) {
  bool adapted = false;
  for (const LoraLayer& layer : layers) {
    check_linear(x, layer.weight, layer.bias);
    if (layer.a.defined()) check_lora(x, layer);
    adapted = adapted || layer.a.defined();
  }
  const std::int64_t n = x.size(-1) == 0 ? 0 : x.numel() / x.size(-1);
  if (adapted && dropout.rate > 0.0F && (!dropout.keys.defined() || dropout.keys.numel() != 2 * n)) {
    fail(ExitCode::kUsage, "dropout of {} rows needs keys [{}, 2]", n, n);
  }
}

/// One layer's output, and its r-wide product in `u` when it has a pair.
Tensor run_layer(const Tensor& x, const LoraLayer& layer, float scale, const Dropout& dropout, at::ScalarType compute,
                 bool values, Tensor& u) {
  Tensor out = make(with_columns(x, layer.weight.size(0)), compute, x);
  const Kernels& kernels = kernels_for(x);
  if (layer.a.defined()) {
    u = make({x.size(-1) == 0 ? 0 : x.numel() / x.size(-1), layer.a.size(0)}, compute, x);
    kernels.lora_forward(x, {layer.weight, layer.bias, layer.a, layer.b, scale, layer.site, values}, dropout, compute,
                         u, out);
  } else {
    Tensor flat = as_matrix(out);
    kernels.product({as_matrix(x), false, layer.weight, true, layer.bias, 0.0F, compute}, flat);
  }
  return out;
}

std::vector<Tensor> run_group(const Tensor& x_in, const std::vector<LoraLayer>& layers, float scale,
                              const Dropout& dropout, at::ScalarType compute, bool values = true) {
  check_group(x_in, layers, dropout);
  const Tensor x = x_in.contiguous();
  std::vector<Tensor> out, u(layers.size()), inputs{x};
  bool graph = wants_graph(x);
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const LoraLayer& layer = layers[i];
    graph = graph || wants_graph(layer.weight, layer.bias, layer.a, layer.b);
    inputs.insert(inputs.end(), {layer.weight, layer.bias, layer.a, layer.b});
    out.push_back(run_layer(x, layer, scale, dropout, compute, values, u[i]));
  }
  if (!graph) return out;
  auto node = make_node<LinearNode>(inputs);
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

Tensor linear(const Tensor& x, const Tensor& weight, const Tensor& bias, at::ScalarType compute) {
  return run_group(x, {{weight.contiguous(), bias, {}, {}, 0}}, 1.0F, {}, compute).front();
}

Tensor lora_linear(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& a, const Tensor& b,
                   float scale, const Dropout& dropout, at::ScalarType compute, bool values) {
  return run_group(x, {{weight, bias, a, b, dropout.site}}, scale, dropout, compute, values).front();
}

std::vector<Tensor> lora_linears(const Tensor& x, const std::vector<LoraLayer>& layers, float scale,
                                 const Dropout& dropout, at::ScalarType compute) {
  return run_group(x, layers, scale, dropout, compute);
}

}  // namespace plimsoll::model
