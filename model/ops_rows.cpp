// Operators that go element by element or row by row, as graph nodes.

#include "model/ops_node.h"

namespace plimsoll::model {
namespace {

void check_same(const Tensor& x, const Tensor& y, const char* what) {
  if (x.sizes() != y.sizes() || x.scalar_type() != y.scalar_type()) {
    fail(ExitCode::kUsage, "{}: operands differ in shape or dtype ({} {} elements, {} {} elements)", what, x.numel(),
         c10::toString(x.scalar_type()), y.numel(), c10::toString(y.scalar_type()));
  }
}

/// Outputs: the norm, or x and the norm. Inputs x and weight.
class RmsNormNode final : public torch::autograd::Node, public Remakable {
 public:
  void keep(const Tensor& x, const Tensor& weight, const Tensor& rstd, double eps) {
    eps_ = eps;
    x_ = SavedVariable(x, false);
    weight_ = SavedVariable(weight, false);
    rstd_ = SavedVariable(rstd, false);
  }
  void release_variables() override {
    for (auto* variable : {&x_, &weight_, &rstd_}) variable->reset_data();
  }
  Tensor remake() override {
    const Tensor x = x_.unpack();
    Tensor out = make_like(x), no_rstd;
    kernels_for(x).rms_norm_forward(x, weight_.unpack(), eps_, out, no_rstd);
    return out;
  }

 protected:
  variable_list apply(variable_list&& grads) override {
    Tensor grad = std::move(grads.back());
    const Tensor residual = grads.size() > 1 && grads[0].defined() ? grads[0].contiguous() : Tensor();
    grads.clear();
    if (!grad.defined()) return {residual, Tensor()};
    const Tensor x = x_.unpack(), weight = weight_.unpack();
    const bool ours = is_ours(grad);
    if (!ours) grad = grad.contiguous();
    Tensor dweight = task_should_compute_output(1) ? make_like(weight) : Tensor();
    Tensor dx;
    if (task_should_compute_output(0)) dx = ours ? grad : make_like(x);
    kernels_for(x).rms_norm_backward(grad, x, weight, rstd_.unpack(), residual, dx, dweight);
    return {dx, dweight};
  }

 private:
  SavedVariable x_, weight_, rstd_;
  double eps_ = 0;
};

/// Two outputs over x's memory; input x.
class ForkNode final : public torch::autograd::Node {
 protected:
  variable_list apply(variable_list&& grads) override {
    Tensor a = std::move(grads[0]), b = std::move(grads[1]);
    grads.clear();
    if (!a.defined() || !b.defined()) return {a.defined() ? a : b};
    const bool into_a = is_ours(a), into_b = !into_a && is_ours(b);
    a = a.contiguous();
    b = b.contiguous();
    Tensor sum = into_a ? a : into_b ? b : make_like(a);
    kernels_for(a).add(a, b, sum);
    return {sum};
  }
};

class SwigluNode final : public OpNode<2>, public Remakable {
 public:
  void keep(const Tensor& gate, const Tensor& up) {
    save(0, gate);
    save(1, up);
  }
  Tensor remake() override {
    const Tensor gate = saved(0), up = saved(1);
    Tensor out = make_like(gate);
    kernels_for(gate).swiglu_forward(gate, up, out);
    return out;
  }

 protected:
  variable_list backward(const variable_list& grads) override {
    const Tensor gate = saved(0), up = saved(1);
    Tensor dgate = make_like(gate), dup = make_like(up);
    kernels_for(gate).swiglu_backward(grads[0].contiguous(), gate, up, dgate, dup);
    return {dgate, dup};
  }
};

class ActivationNode final : public OpNode<1> {
 public:
  void keep(Activation kind, const Tensor& x) {
    kind_ = kind;
    save(0, x);
  }

 protected:
  variable_list backward(const variable_list& grads) override {
    const Tensor x = saved(0);
    Tensor dx = make_like(x);
    kernels_for(x).activation_backward(kind_, grads[0].contiguous(), x, dx);
    return {dx};
  }

 private:
  Activation kind_ = Activation::kSilu;
};

Tensor activation(Activation kind, const Tensor& x_in) {
  const Tensor x = x_in.contiguous();
  Tensor out = make_like(x);
  kernels_for(x).activation_forward(kind, x, out);
  if (!wants_graph(x)) return out;
  auto node = make_node<ActivationNode>(x);
  node->keep(kind, x);
  torch::autograd::set_history(out, node);
  return out;
}

class RotaryNode final : public OpNode<2> {
 public:
  void keep(const Tensor& cos, const Tensor& sin) {
    save(0, cos);
    save(1, sin);
  }

 protected:
  variable_list backward(const variable_list& grads) override {
    const Tensor grad = contiguous_heads(grads[0]);
    Tensor dx = make_like(grad);
    kernels_for(grad).rotary(grad, saved(0), saved(1), true, dx);
    return {dx};
  }
};

class AddNode final : public OpNode<0> {
 protected:
  variable_list backward(const variable_list& grads) override { return {grads[0], grads[0]}; }
};

class CastNode final : public OpNode<0> {
 public:
  void keep(at::ScalarType from) { from_ = from; }

 protected:
  variable_list backward(const variable_list& grads) override {
    const Tensor grad = grads[0].contiguous();
    Tensor dx = make(grad.sizes(), from_, grad);
    kernels_for(grad).cast(grad, dx);
    return {dx};
  }

 private:
  at::ScalarType from_ = at::kFloat;
};

class GatherNode final : public OpNode<1> {
 public:
  void keep(const Tensor& table, const Tensor& indices) {
    save(0, indices);
    sizes_ = table.sizes().vec();
    dtype_ = table.scalar_type();
  }

 protected:
  variable_list backward(const variable_list& grads) override {
    const Tensor grad = grads[0].contiguous();
    Tensor dtable = make(sizes_, dtype_, grad);
    kernels_for(grad).scatter_add_rows(grad, saved(0), dtable);
    return {dtable};
  }

 private:
  std::vector<std::int64_t> sizes_;
  at::ScalarType dtype_ = at::kFloat;
};

class PlaceNode final : public OpNode<1> {
 public:
  void keep(const Tensor& indices) { save(0, indices); }

 protected:
  variable_list backward(const variable_list& grads) override {
    const Tensor grad = grads[0].contiguous(), indices = saved(0);
    const Kernels& kernels = kernels_for(grad);
    variable_list out(2);
    if (needs(0)) {
      out[0] = make_like(grad);
      kernels.place_rows(grad, indices, {}, out[0]);
    }
    if (needs(1)) {
      out[1] = make({indices.numel(), grad.size(1)}, grad.scalar_type(), grad);
      kernels.gather_rows(grad, indices, out[1]);
    }
    return out;
  }
};

}  // namespace

namespace {

/// The norm of x, and its node when a graph is wanted (not yet attached to an output).
std::pair<Tensor, std::shared_ptr<RmsNormNode>> run_norm(const Tensor& x, const Tensor& weight_in, double eps) {
  if (weight_in.defined() && weight_in.numel() != x.size(-1)) {
    fail(ExitCode::kUsage, "rms_norm: weight of {} over rows of {}", weight_in.numel(), x.size(-1));
  }
  const Tensor weight = weight_in.defined() ? cast(weight_in, x.scalar_type()) : Tensor();
  const bool graph = wants_graph(x, weight);
  Tensor out = make_like(x);
  Tensor rstd = graph ? make({x.size(-1) == 0 ? 0 : x.numel() / x.size(-1)}, at::kFloat, x) : Tensor();
  kernels_for(x).rms_norm_forward(x, weight, eps, out, rstd);
  if (!graph) return {out, nullptr};
  auto node = make_node<RmsNormNode>(x, weight);
  node->keep(x, weight, rstd, eps);
  return {out, node};
}

}  // namespace

Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps) {
  auto [out, node] = run_norm(x.contiguous(), weight, eps);
  if (node) torch::autograd::set_history(out, node);
  return out;
}

std::array<Tensor, 2> rms_norm_fork(const Tensor& x_in, const Tensor& weight, double eps) {
  const Tensor x = x_in.contiguous();
  auto [out, node] = run_norm(x, weight, eps);
  if (!node) return {x, out};
  Tensor same = pass_through(x);
  torch::autograd::set_history(same, node);
  torch::autograd::set_history(out, node);
  return {same, out};
}

std::array<Tensor, 2> fork(const Tensor& x) {
  if (!wants_graph(x)) return {x, x};
  auto node = make_node<ForkNode>(x);
  std::array<Tensor, 2> out{pass_through(x), pass_through(x)};
  for (Tensor& y : out) torch::autograd::set_history(y, node);
  return out;
}

Tensor swiglu(const Tensor& gate_in, const Tensor& up_in) {
  check_same(gate_in, up_in, "swiglu");
  const Tensor gate = gate_in.contiguous(), up = up_in.contiguous();
  Tensor out = make_like(gate);
  kernels_for(gate).swiglu_forward(gate, up, out);
  if (!wants_graph(gate, up)) return out;
  auto node = make_node<SwigluNode>(gate, up);
  node->keep(gate, up);
  torch::autograd::set_history(out, node);
  return out;
}

Tensor gelu_erf(const Tensor& x) { return activation(Activation::kGeluErf, x); }
Tensor gelu_tanh(const Tensor& x) { return activation(Activation::kGeluTanh, x); }
Tensor swish(const Tensor& x) { return activation(Activation::kSilu, x); }

Tensor rotary(const Tensor& x_in, const Tensor& cos_in, const Tensor& sin_in) {
  const Tensor x = contiguous_heads(x_in), cos = cos_in.contiguous(), sin = sin_in.contiguous();
  check_same(cos, sin, "rotary");
  if (x.dim() != 3 || x.size(2) % 2 != 0 || cos.numel() != x.size(0) * x.size(2)) {
    fail(ExitCode::kUsage, "rotary: a table of {} values for {} rows of heads of {}", cos.numel(), x.size(0),
         x.size(-1));
  }
  Tensor out = make(x.sizes(), x.scalar_type(), x);
  kernels_for(x).rotary(x, cos, sin, false, out);
  if (!wants_graph(x)) return out;
  auto node = make_node<RotaryNode>(x);
  node->keep(cos, sin);
  torch::autograd::set_history(out, node);
  return out;
}

Tensor add_residual(const Tensor& x_in, const Tensor& y_in) {
  check_same(x_in, y_in, "add_residual");
  const Tensor x = x_in.contiguous(), y = y_in.contiguous();
  Tensor out = make_like(x);
  kernels_for(x).add(x, y, out);
  if (wants_graph(x, y)) torch::autograd::set_history(out, make_node<AddNode>(x, y));
  return out;
}

Tensor cast(const Tensor& x_in, at::ScalarType dtype) {
  if (x_in.scalar_type() == dtype) return x_in;
  const Tensor x = x_in.contiguous();
  Tensor out = make(x.sizes(), dtype, x);
  kernels_for(x).cast(x, out);
  if (!wants_graph(x)) return out;
  auto node = make_node<CastNode>(x);
  node->keep(x.scalar_type());
  torch::autograd::set_history(out, node);
  return out;
}

Tensor gather_rows(const Tensor& table_in, const Tensor& indices_in) {
  const Tensor table = table_in.contiguous(), indices = indices_in.contiguous();
  Tensor out = make({indices.numel(), table.size(1)}, table.scalar_type(), table);
  kernels_for(table).gather_rows(table, indices, out);
  if (!wants_graph(table)) return out;
  auto node = make_node<GatherNode>(table);
  node->keep(table, indices);
  torch::autograd::set_history(out, node);
  return out;
}

Tensor place_rows(const Tensor& x_in, const Tensor& indices_in, const Tensor& rows_in) {
  const Tensor x = x_in.contiguous(), indices = indices_in.contiguous(), rows = rows_in.contiguous();
  if (x.dim() != 2 || rows.dim() != 2 || x.size(1) != rows.size(1) || indices.numel() != rows.size(0) ||
      x.scalar_type() != rows.scalar_type()) {
    fail(ExitCode::kUsage, "place_rows: {} indices for {} rows of {} into rows of {}", indices.numel(), rows.size(0),
         rows.size(-1), x.size(-1));
  }
  Tensor out = make_like(x);
  kernels_for(x).place_rows(x, indices, rows, out);
  if (!wants_graph(x, rows)) return out;
  auto node = make_node<PlaceNode>(x, rows);
  node->keep(indices);
  torch::autograd::set_history(out, node);
  return out;
}

}  // namespace plimsoll::model
