#include "model/expert_ops.h"

#include <algorithm>
#include <vector>

#include "model/ops_node.h"
#include "model/row_kernels.h"

namespace plimsoll::model {
namespace {

using rows::in;
using rows::inverse_rms;
using rows::out;
using rows::store;

// --- modulated_norm
// ---------------------------------------------------------------------------------------------------

template <class T>
void fill_norm(const Tensor& x, const Tensor& shift, const Tensor& scale, Tensor& y, Tensor& inverse) {
  const auto width = x.size(1), n = x.size(0) / shift.size(0);
  rows::each(x.size(0), width, [&](std::int64_t row) {
    const float* xr = in<float>(x) + row * width;
    const T* b = in<T>(shift) + row / n * width;
    const T* a = in<T>(scale) + row / n * width;
    const float r = out<float>(inverse)[row] = inverse_rms(xr, width);
    T* yr = out<T>(y) + row * width;
    for (std::int64_t i = 0; i < width; ++i) {
      yr[i] = static_cast<T>(xr[i] * r * (1.0F + static_cast<float>(a[i])) + static_cast<float>(b[i]));
    }
  });
}

struct NormGradients {
  Tensor x, shift, scale;
};

/// Gradients of the rows of group `group`.
template <class T>
void fill_norm_gradient(std::int64_t group, const Tensor& g, const Tensor& x, const Tensor& scale,
                        const Tensor& inverse, NormGradients& d) {
  const auto width = x.size(1), n = x.size(0) / scale.size(0);
  const auto size = static_cast<std::size_t>(width);
  std::vector<float> d_shift(size, 0.0F), d_scale(size, 0.0F), hat(size), d_hat(size);
  const T* a = in<T>(scale) + group * width;
  for (auto row = group * n; row < (group + 1) * n; ++row) {
    const float* xr = in<float>(x) + row * width;
    const T* gr = in<T>(g) + row * width;
    const float r = in<float>(inverse)[row];
    for (std::int64_t i = 0; i < width; ++i) {
      const float gi = static_cast<float>(gr[i]);
      hat[i] = xr[i] * r;
      d_hat[i] = gi * (1.0F + static_cast<float>(a[i]));
      d_shift[i] += gi;
      d_scale[i] += gi * hat[i];
    }
    const float mean = rows::sum(width, [&](std::int64_t i) { return d_hat[i] * hat[i]; }) / static_cast<float>(width);
    float* dx = out<float>(d.x) + row * width;
    for (std::int64_t i = 0; i < width; ++i) dx[i] = r * (d_hat[i] - hat[i] * mean);
  }
  store(d_shift, out<T>(d.shift) + group * width);
  store(d_scale, out<T>(d.scale) + group * width);
}

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
    if (!y.is_meta()) {
      rows::by_dtype(shift.scalar_type(), [&](auto t) { fill_norm<decltype(t)>(x, shift, scale, y, inverse); });
    }
    return y;
  }

 protected:
  variable_list backward(const variable_list& grads) override {
    const Tensor g = grads[0].contiguous(), x = saved(0), scale = saved(1), inverse = saved(2);
    NormGradients d{make_like(x), make_like(scale), make_like(scale)};
    if (!g.is_meta()) {
      rows::by_dtype(g.scalar_type(), [&](auto t) {
        rows::each(scale.size(0), x.numel() / scale.size(0),
                   [&](std::int64_t k) { fill_norm_gradient<decltype(t)>(k, g, x, scale, inverse, d); });
      });
    }
    return {d.x, d.shift, d.scale};
  }
};

// --- gated_residual
// ---------------------------------------------------------------------------------------------------

template <class T>
void fill_residual(const Tensor& x, const Tensor& y, const Tensor& gate, Tensor& result) {
  const auto width = x.size(1);
  const auto n = gate.defined() ? x.size(0) / gate.size(0) : 1;
  rows::each(x.size(0), width, [&](std::int64_t row) {
    const float* xr = in<float>(x) + row * width;
    const T* yr = in<T>(y) + row * width;
    float* to = out<float>(result) + row * width;
    if (!gate.defined()) {
      for (std::int64_t i = 0; i < width; ++i) to[i] = xr[i] + static_cast<float>(yr[i]);
      return;
    }
    const T* a = in<T>(gate) + row / n * width;
    for (std::int64_t i = 0; i < width; ++i) to[i] = xr[i] + static_cast<float>(a[i]) * static_cast<float>(yr[i]);
  });
}

template <class T>
void fill_gate_gradient(std::int64_t group, const Tensor& g, const Tensor& y, const Tensor& gate, Tensor& d_y,
                        Tensor& d_gate) {
  const auto width = y.size(1), n = y.size(0) / gate.size(0);
  std::vector<float> total(static_cast<std::size_t>(width), 0.0F);
  const T* a = in<T>(gate) + group * width;
  for (auto row = group * n; row < (group + 1) * n; ++row) {
    const float* gr = in<float>(g) + row * width;
    const T* yr = in<T>(y) + row * width;
    T* dy = out<T>(d_y) + row * width;
    for (std::int64_t i = 0; i < width; ++i) {
      dy[i] = static_cast<T>(gr[i] * static_cast<float>(a[i]));
      total[i] += gr[i] * static_cast<float>(yr[i]);
    }
  }
  store(total, out<T>(d_gate) + group * width);
}

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
    if (!g.is_meta()) {
      rows::by_dtype(type_, [&](auto t) {
        rows::each(gate.size(0), y.numel() / gate.size(0),
                   [&](std::int64_t k) { fill_gate_gradient<decltype(t)>(k, g, y, gate, d_y, d_gate); });
      });
    }
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
  if (!y.is_meta()) {
    rows::by_dtype(shift.scalar_type(), [&](auto t) { fill_norm<decltype(t)>(x, shift, scale, y, inverse); });
  }
  if (!wants_graph(x, shift, scale)) return y;
  auto node = make_node<ModulatedNormNode>(x, shift, scale);
  node->keep(x, shift, scale, inverse);
  torch::autograd::set_history(y, node);
  return y;
}

Tensor gated_residual(const Tensor& x, const Tensor& y, const Tensor& gate) {
  Tensor result = make_like(x);
  if (!result.is_meta()) {
    rows::by_dtype(y.scalar_type(), [&](auto t) { fill_residual<decltype(t)>(x, y, gate, result); });
  }
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
