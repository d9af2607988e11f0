#include "model/expert_ops.h"

#include <algorithm>
#include <vector>

#include "model/ops_node.h"

namespace plimsoll::model {
namespace {

// --- modulated_norm
// ---------------------------------------------------------------------------------------------------

class ModulatedNormNode final : public OpNode<4>, public Remakable {
 public:
  void keep(const Tensor& x, const Tensor& shift, const Tensor& scale, const Tensor& inverse) {
    save(0, x);
    save(1, scale);
    save(2, inverse);
    save(3, shift);
  }
  Tensor remake() override {
    const Tensor x = saved(0), scale = saved(1), shift = saved(3);
    Tensor inverse = saved(2),
           y = make(x.sizes(), shift.scalar_type(), x);  // inverse is written again, with what it holds
    kernels_for(x).modulated_norm_forward(x, shift, scale, y, inverse);
    return y;
  }

 protected:
  variable_list backward(const variable_list& grads) override {
    const Tensor g = grads[0].contiguous(), x = saved(0), scale = saved(1), inverse = saved(2);
    Tensor dx = make_like(x), dshift = make_like(scale), dscale = make_like(scale);
    kernels_for(x).modulated_norm_backward(g, x, scale, inverse, dx, dshift, dscale);
    return {dx, dshift, dscale};
  }
};

// --- gated_residual
// ---------------------------------------------------------------------------------------------------

class GatedResidualNode final : public OpNode<2> {
 public:
  void keep(const Tensor& y, const Tensor& gate) {
    type_ = y.scalar_type();
    gated_ = gate.defined();
    if (!gated_) return;
    save(0, y);
    save(1, gate);
  }

 protected:
  variable_list backward(const variable_list& grads) override {
    const Tensor g = grads[0].contiguous();
    if (!gated_) return {g, cast(g, type_), Tensor()};
    const Tensor y = saved(0), gate = saved(1);
    Tensor d_y = make_like(y), d_gate = make_like(gate);
    kernels_for(g).gated_residual_backward(g, y, gate, d_y, d_gate);
    return {g, d_y, d_gate};
  }

 private:
  at::ScalarType type_ = at::kFloat;
  bool gated_ = false;
};

// --- split_columns
// ----------------------------------------------------------------------------------------------------

class SplitColumnsNode final : public OpNode<0> {
 public:
  void keep(const Tensor& x) { sizes_ = x.sizes().vec(); }

 protected:
  variable_list backward(const variable_list& grads) override {
    const auto& some = *std::find_if(grads.begin(), grads.end(), [](const Tensor& g) { return g.defined(); });
    Tensor d_x = make(sizes_, some.scalar_type(), some);
    const auto width = sizes_[1] / static_cast<std::int64_t>(grads.size());
    for (std::size_t i = 0; i < grads.size() && !d_x.is_meta(); ++i) {
      Tensor part = d_x.narrow(1, static_cast<std::int64_t>(i) * width, width);
      grads[i].defined() ? part.copy_(grads[i]) : part.zero_();
    }
    return {d_x};
  }

 private:
  std::vector<std::int64_t> sizes_;
};

}  // namespace

Tensor modulated_norm(const Tensor& x, const Tensor& shift, const Tensor& scale) {
  Tensor y = make(x.sizes(), shift.scalar_type(), x);
  Tensor inverse = make({x.size(0)}, at::kFloat, x);
  kernels_for(x).modulated_norm_forward(x, shift, scale, y, inverse);
  if (!wants_graph(x, shift, scale)) return y;
  auto node = make_node<ModulatedNormNode>(x, shift, scale);
  node->keep(x, shift, scale, inverse);
  torch::autograd::set_history(y, node);
  return y;
}

Tensor gated_residual(const Tensor& x, const Tensor& y, const Tensor& gate) {
  Tensor result = make_like(x);
  kernels_for(x).gated_residual_forward(x, y, gate, result);
  if (!wants_graph(x, y, gate)) return result;
  auto node = make_node<GatedResidualNode>(x, y, gate);
  node->keep(y, gate);
  torch::autograd::set_history(result, node);
  return result;
}

std::vector<Tensor> split_columns(const Tensor& x, std::int64_t k) {
  const auto width = x.size(1) / k;
  variable_list parts;
  for (std::int64_t i = 0; i < k; ++i) {
    parts.push_back(make({x.size(0), width}, x.scalar_type(), x));
    if (!x.is_meta()) parts.back().copy_(x.detach().narrow(1, i * width, width));
  }
  if (!wants_graph(x)) return parts;
  auto node = make_node<SplitColumnsNode>(x);
  node->keep(x);
  for (Tensor& part : parts) torch::autograd::set_history(part, node);
  return parts;
}

}  // namespace plimsoll::model
