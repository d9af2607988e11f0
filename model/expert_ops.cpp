#include "model/expert_ops.h"

#include <cmath>
#include <vector>

#include "core/error.h"
#include "model/row_kernels.h"

namespace plimsoll::model {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

constexpr float kEpsilon = 1e-6F;

template <class T>
const T* in(const Tensor& t) {
  return t.const_data_ptr<T>();
}
template <class T>
T* out(Tensor& t) {
  return t.mutable_data_ptr<T>();
}
float inverse_rms(const float* x, std::int64_t width) {
  const float squares = rows::sum(width, [x](std::int64_t i) { return x[i] * x[i]; });
  return 1.0F / std::sqrt(squares / static_cast<float>(width) + kEpsilon);
}
template <class T>
void store(const std::vector<float>& from, T* to) {
  for (std::size_t i = 0; i < from.size(); ++i) to[i] = static_cast<T>(from[i]);
}

// --- embed_rows -------------------------------------------------------------------------------------------------------

struct RowSizes {
  std::int64_t groups, n, m, width, draws;
};

template <class T>
void fill_embed_rows(const Tensor& source, const Tensor& lead, const Tensor& positions, Tensor& result, const RowSizes& s) {
  const auto first = s.n - s.m;
  rows::each(s.groups, [&](std::int64_t g) {
    for (std::int64_t r = 0; r < s.n; ++r) {
      const T* x = r < first ? in<T>(lead) + g / s.draws * s.width : in<T>(source) + (g * s.m + r - first) * s.width;
      const float* p = in<float>(positions) + r * s.width;
      float* y = out<float>(result) + (g * s.n + r) * s.width;
      for (std::int64_t i = 0; i < s.width; ++i) y[i] = static_cast<float>(x[i]) + p[i];
    }
  });
}

/// Gradient of the action rows: a cast copy of all rows but the first of each group.
template <class T>
void fill_row_gradient(const Tensor& g, Tensor& d_rows, const RowSizes& s) {
  rows::each(s.groups * s.m, [&](std::int64_t k) {
    const float* from = in<float>(g) + (k / s.m * s.n + s.n - s.m + k % s.m) * s.width;
    T* to = out<T>(d_rows) + k * s.width;
    for (std::int64_t i = 0; i < s.width; ++i) to[i] = static_cast<T>(from[i]);
  });
}

template <class T>
void fill_lead_gradient(const Tensor& g, Tensor& d_lead, const RowSizes& s) {
  rows::each(s.groups / s.draws, [&](std::int64_t sample) {
    std::vector<float> total(static_cast<std::size_t>(s.width), 0.0F);
    for (std::int64_t d = 0; d < s.draws; ++d) {
      const float* from = in<float>(g) + (sample * s.draws + d) * s.n * s.width;
      for (std::int64_t i = 0; i < s.width; ++i) total[i] += from[i];
    }
    store(total, out<T>(d_lead) + sample * s.width);
  });
}

void fill_position_gradient(const Tensor& g, Tensor& d_positions, const RowSizes& s) {
  d_positions.zero_();
  rows::each(s.n, [&](std::int64_t r) {
    float* to = out<float>(d_positions) + r * s.width;
    for (std::int64_t group = 0; group < s.groups; ++group) {
      const float* from = in<float>(g) + (group * s.n + r) * s.width;
      for (std::int64_t i = 0; i < s.width; ++i) to[i] += from[i];
    }
  });
}

struct EmbedRows : Function<EmbedRows> {
  static Tensor forward(AutogradContext* ctx, const Tensor& source, const Tensor& lead, const Tensor& positions,
                        std::int64_t draws) {
    const auto n = positions.size(0);
    const auto m = n - (lead.defined() ? 1 : 0);
    const RowSizes s{source.size(0) / m, n, m, source.size(1), draws};
    Tensor result = at::empty({s.groups * n, s.width}, positions.options());
    ctx->saved_data["sizes"] = std::vector<std::int64_t>{s.groups, n, m, s.width, draws};
    ctx->saved_data["type"] = static_cast<std::int64_t>(source.scalar_type());
    if (!result.is_meta()) {
      rows::by_dtype(source.scalar_type(), [&](auto t) { fill_embed_rows<decltype(t)>(source, lead, positions, result, s); });
    }
    return result;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto v = ctx->saved_data["sizes"].toIntVector();
    const RowSizes s{v[0], v[1], v[2], v[3], v[4]};
    const auto type = static_cast<at::ScalarType>(ctx->saved_data["type"].toInt());
    const Tensor g = grads[0].contiguous();
    Tensor d_rows = at::empty({s.groups * s.m, s.width}, g.options().dtype(type));
    Tensor d_lead = s.n > s.m ? at::empty({s.groups / s.draws, s.width}, g.options().dtype(type)) : Tensor();
    Tensor d_positions = at::empty({s.n, s.width}, g.options());
    if (!g.is_meta()) {
      rows::by_dtype(type, [&](auto t) {
        fill_row_gradient<decltype(t)>(g, d_rows, s);
        if (d_lead.defined()) fill_lead_gradient<decltype(t)>(g, d_lead, s);
      });
      fill_position_gradient(g, d_positions, s);
    }
    return {d_rows, d_lead, d_positions, Tensor()};
  }
};

// --- embed_context ----------------------------------------------------------------------------------------------------

std::int64_t context_row(const Tensor& index, std::int64_t i) { return index.defined() ? in<std::int64_t>(index)[i] : i; }

const float* position_row(const Tensor& table, const Tensor& positions, std::int64_t row) {
  const auto position = in<std::int64_t>(positions)[row];
  if (position < 0 || position >= table.size(0)) {
    fail(ExitCode::kData, "context row {} has position {}, but expert.context_positions has {} rows: raise max_context", row,
         position, table.size(0));
  }
  return in<float>(table) + position * table.size(1);
}

/// Rows of one source (tokens or sensor tokens) into the context.
template <class T>
void fill_context(const Tensor& source, const Tensor& index, const Tensor& table, const Tensor& positions, Tensor& result,
                  Tensor& inverse) {
  const auto width = source.size(1);
  rows::each(source.size(0), [&](std::int64_t i) {
    const auto row = context_row(index, i);
    const T* x = in<T>(source) + i * width;
    const float* p = position_row(table, positions, row);
    std::vector<float> sum(static_cast<std::size_t>(width));
    for (std::int64_t j = 0; j < width; ++j) sum[j] = static_cast<float>(x[j]) + p[j];
    const float scale = out<float>(inverse)[row] = inverse_rms(sum.data(), width);
    T* y = out<T>(result) + row * width;
    for (std::int64_t j = 0; j < width; ++j) y[j] = static_cast<T>(sum[j] * scale);
  });
}

/// Gradients to one source, and added to the table's.
template <class T>
void fill_context_gradient(const Tensor& g, const Tensor& y, const Tensor& inverse, const Tensor& index,
                           const Tensor& positions, Tensor& d_source, Tensor& d_table) {
  const auto width = g.size(1);
  std::vector<float> d(static_cast<std::size_t>(width));
  for (std::int64_t i = 0; i < d_source.size(0); ++i) {
    const auto row = context_row(index, i);
    const T* gr = in<T>(g) + row * width;
    const T* yr = in<T>(y) + row * width;
    const float dot = rows::sum(width, [=](std::int64_t j) { return static_cast<float>(gr[j]) * static_cast<float>(yr[j]); });
    const float mean = dot / static_cast<float>(width);
    const float scale = in<float>(inverse)[row];
    for (std::int64_t j = 0; j < width; ++j) d[j] = scale * (static_cast<float>(gr[j]) - static_cast<float>(yr[j]) * mean);
    store(d, out<T>(d_source) + i * width);
    float* to = out<float>(d_table) + in<std::int64_t>(positions)[row] * width;
    for (std::int64_t j = 0; j < width; ++j) to[j] += d[j];
  }
}

struct EmbedContext : Function<EmbedContext> {
  static Tensor forward(AutogradContext* ctx, const Tensor& tokens, const Tensor& sensors, const Tensor& table,
                        const Tensor& positions, const Tensor& token_rows, const Tensor& sensor_rows) {
    Tensor result = at::empty({positions.size(0), tokens.size(1)}, tokens.options());
    Tensor inverse = at::empty({positions.size(0)}, tokens.options().dtype(at::kFloat));
    ctx->save_for_backward({result, inverse, positions, token_rows, sensor_rows});
    ctx->saved_data["sizes"] =
        std::vector<std::int64_t>{tokens.size(0), sensors.defined() ? sensors.size(0) : 0, table.size(0)};
    if (result.is_meta()) return result;
    rows::by_dtype(tokens.scalar_type(), [&](auto t) {
      using T = decltype(t);
      fill_context<T>(tokens, token_rows, table, positions, result, inverse);
      if (sensors.defined()) fill_context<T>(sensors, sensor_rows, table, positions, result, inverse);
    });
    return result;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const auto sizes = ctx->saved_data["sizes"].toIntVector();
    const Tensor g = grads[0].contiguous();
    Tensor d_tokens = at::empty({sizes[0], g.size(1)}, g.options());
    Tensor d_sensors = sizes[1] > 0 ? at::empty({sizes[1], g.size(1)}, g.options()) : Tensor();
    Tensor d_table = at::empty({sizes[2], g.size(1)}, g.options().dtype(at::kFloat));
    if (!g.is_meta()) {
      d_table.zero_();
      rows::by_dtype(g.scalar_type(), [&](auto t) {
        using T = decltype(t);
        fill_context_gradient<T>(g, saved[0], saved[1], saved[3], saved[2], d_tokens, d_table);
        if (d_sensors.defined()) fill_context_gradient<T>(g, saved[0], saved[1], saved[4], saved[2], d_sensors, d_table);
      });
    }
    return {d_tokens, d_sensors, d_table, Tensor(), Tensor(), Tensor()};
  }
};

// --- modulated_norm ---------------------------------------------------------------------------------------------------

template <class T>
void fill_norm(const Tensor& x, const Tensor& shift, const Tensor& scale, Tensor& y, Tensor& inverse) {
  const auto width = x.size(1), n = x.size(0) / shift.size(0);
  rows::each(x.size(0), [&](std::int64_t row) {
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
void fill_norm_gradient(std::int64_t group, const Tensor& g, const Tensor& x, const Tensor& scale, const Tensor& inverse,
                        NormGradients& d) {
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

struct ModulatedNorm : Function<ModulatedNorm> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& shift, const Tensor& scale) {
    Tensor y = at::empty(x.sizes(), x.options().dtype(shift.scalar_type()));
    Tensor inverse = at::empty({x.size(0)}, x.options());
    ctx->save_for_backward({x, scale, inverse});
    if (!y.is_meta()) {
      rows::by_dtype(shift.scalar_type(), [&](auto t) { fill_norm<decltype(t)>(x, shift, scale, y, inverse); });
    }
    return y;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &scale = saved[1], &inverse = saved[2];
    const Tensor g = grads[0].contiguous();
    NormGradients d{at::empty(x.sizes(), x.options()), at::empty(scale.sizes(), scale.options()),
                    at::empty(scale.sizes(), scale.options())};
    if (!g.is_meta()) {
      rows::by_dtype(g.scalar_type(), [&](auto t) {
        rows::each(scale.size(0), [&](std::int64_t k) { fill_norm_gradient<decltype(t)>(k, g, x, scale, inverse, d); });
      });
    }
    return {d.x, d.shift, d.scale};
  }
};

// --- gated_residual ---------------------------------------------------------------------------------------------------

template <class T>
void fill_residual(const Tensor& x, const Tensor& y, const Tensor& gate, Tensor& result) {
  const auto width = x.size(1);
  const auto n = gate.defined() ? x.size(0) / gate.size(0) : 1;
  rows::each(x.size(0), [&](std::int64_t row) {
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
void fill_gate_gradient(std::int64_t group, const Tensor& g, const Tensor& y, const Tensor& gate, Tensor& d_y, Tensor& d_gate) {
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

struct GatedResidual : Function<GatedResidual> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& y, const Tensor& gate) {
    Tensor result = at::empty(x.sizes(), x.options());
    if (gate.defined()) ctx->save_for_backward({y, gate});
    ctx->saved_data["type"] = static_cast<std::int64_t>(y.scalar_type());
    if (!result.is_meta()) {
      rows::by_dtype(y.scalar_type(), [&](auto t) { fill_residual<decltype(t)>(x, y, gate, result); });
    }
    return result;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const auto type = static_cast<at::ScalarType>(ctx->saved_data["type"].toInt());
    const Tensor g = grads[0].contiguous();
    if (saved.empty()) return {g, g.to(type), Tensor()};
    const Tensor &y = saved[0], &gate = saved[1];
    Tensor d_y = at::empty(y.sizes(), y.options());
    Tensor d_gate = at::empty(gate.sizes(), gate.options());
    if (!g.is_meta()) {
      rows::by_dtype(type, [&](auto t) {
        rows::each(gate.size(0), [&](std::int64_t k) { fill_gate_gradient<decltype(t)>(k, g, y, gate, d_y, d_gate); });
      });
    }
    return {g, d_y, d_gate};
  }
};

// --- split_columns ----------------------------------------------------------------------------------------------------

struct SplitColumns : Function<SplitColumns> {
  static variable_list forward(AutogradContext* ctx, const Tensor& x, std::int64_t k) {
    ctx->set_materialize_grads(false);
    ctx->saved_data["sizes"] = x.sizes().vec();
    ctx->saved_data["type"] = static_cast<std::int64_t>(x.scalar_type());
    const auto width = x.size(1) / k;
    variable_list parts;
    for (std::int64_t i = 0; i < k; ++i) {
      parts.push_back(at::empty({x.size(0), width}, x.options()));
      if (!x.is_meta()) parts.back().copy_(x.narrow(1, i * width, width));
    }
    return parts;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto defined = std::find_if(grads.begin(), grads.end(), [](const Tensor& g) { return g.defined(); });
    if (defined == grads.end()) return {Tensor(), Tensor()};
    const auto sizes = ctx->saved_data["sizes"].toIntVector();
    Tensor d_x = at::empty(sizes, defined->options());
    const auto width = sizes[1] / static_cast<std::int64_t>(grads.size());
    for (std::size_t i = 0; i < grads.size() && !d_x.is_meta(); ++i) {
      Tensor part = d_x.narrow(1, static_cast<std::int64_t>(i) * width, width);
      grads[i].defined() ? part.copy_(grads[i]) : part.zero_();
    }
    return {d_x, Tensor()};
  }
};

}  // namespace

Tensor embed_rows(const Tensor& rows, const Tensor& lead, const Tensor& positions, std::int64_t draws) {
  return EmbedRows::apply(rows, lead, positions, draws);
}

Tensor embed_context(const Tensor& tokens, const Tensor& sensors, const Tensor& table, const ContextLayout& layout) {
  return EmbedContext::apply(tokens, sensors, table, layout.positions, layout.token_rows, layout.sensor_rows);
}

Tensor modulated_norm(const Tensor& x, const Tensor& shift, const Tensor& scale) {
  return ModulatedNorm::apply(x, shift, scale);
}

Tensor gated_residual(const Tensor& x, const Tensor& y, const Tensor& gate) { return GatedResidual::apply(x, y, gate); }

std::vector<Tensor> split_columns(const Tensor& x, std::int64_t k) { return SplitColumns::apply(x, k); }

}  // namespace plimsoll::model
