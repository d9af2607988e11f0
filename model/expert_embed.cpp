#include <array>
#include <vector>

#include "model/expert_ops.h"
#include "model/ops_node.h"
#include "model/row_kernels.h"

namespace plimsoll::model {
namespace {

using rows::in;
using rows::inverse_rms;
using rows::out;
using rows::store;

// --- embed_rows
// -------------------------------------------------------------------------------------------------------

struct RowSizes {
  std::int64_t groups, n, m, width, draws;
};

template <class T>
void fill_embed_rows(const Tensor& source, const Tensor& lead, const Tensor& positions, Tensor& result,
                     const RowSizes& s) {
  const auto first = s.n - s.m;
  rows::each(s.groups, s.n * s.width, [&](std::int64_t g) {
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
  rows::each(s.groups * s.m, s.width, [&](std::int64_t k) {
    const float* from = in<float>(g) + (k / s.m * s.n + s.n - s.m + k % s.m) * s.width;
    T* to = out<T>(d_rows) + k * s.width;
    for (std::int64_t i = 0; i < s.width; ++i) to[i] = static_cast<T>(from[i]);
  });
}

template <class T>
void fill_lead_gradient(const Tensor& g, Tensor& d_lead, const RowSizes& s) {
  rows::each(s.groups / s.draws, s.draws * s.width, [&](std::int64_t sample) {
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
  rows::each(s.n, s.groups * s.width, [&](std::int64_t r) {
    float* to = out<float>(d_positions) + r * s.width;
    for (std::int64_t group = 0; group < s.groups; ++group) {
      const float* from = in<float>(g) + (group * s.n + r) * s.width;
      for (std::int64_t i = 0; i < s.width; ++i) to[i] += from[i];
    }
  });
}

class EmbedRowsNode final : public OpNode<0> {
 public:
  void keep(const RowSizes& sizes, at::ScalarType type) {
    sizes_ = sizes;
    type_ = type;
  }

 protected:
  variable_list backward(const variable_list& grads) override {
    const RowSizes& s = sizes_;
    const Tensor g = grads[0].contiguous();
    Tensor d_rows = make({s.groups * s.m, s.width}, type_, g);
    Tensor d_lead = s.n > s.m ? make({s.groups / s.draws, s.width}, type_, g) : Tensor();
    Tensor d_positions = make({s.n, s.width}, at::kFloat, g);
    if (g.is_meta()) return {d_rows, d_lead, d_positions};
    rows::by_dtype(type_, [&](auto t) {
      fill_row_gradient<decltype(t)>(g, d_rows, s);
      if (d_lead.defined()) fill_lead_gradient<decltype(t)>(g, d_lead, s);
    });
    fill_position_gradient(g, d_positions, s);
    return {d_rows, d_lead, d_positions};
  }

 private:
  RowSizes sizes_{};
  at::ScalarType type_ = at::kFloat;
};

// --- embed_context
// ----------------------------------------------------------------------------------------------------

std::int64_t context_row(const Tensor& index, std::int64_t i) {
  return index.defined() ? in<std::int64_t>(index)[i] : i;
}

const float* position_row(const Tensor& table, const Tensor& positions, std::int64_t row) {
  const auto position = in<std::int64_t>(positions)[row];
  if (position < 0 || position >= table.size(0)) {
    fail(ExitCode::kData, "context row {} has position {}, but expert.context_positions has {} rows: raise max_context",
         row, position, table.size(0));
  }
  return in<float>(table) + position * table.size(1);
}

/// Rows of one source (tokens or sensor tokens) into the context.
template <class T>
void fill_context(const Tensor& source, const Tensor& index, const Tensor& table, const Tensor& positions,
                  Tensor& result, Tensor& inverse) {
  const auto width = source.size(1);
  rows::each(source.size(0), width, [&](std::int64_t i) {
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
    const float dot =
        rows::sum(width, [=](std::int64_t j) { return static_cast<float>(gr[j]) * static_cast<float>(yr[j]); });
    const float mean = dot / static_cast<float>(width);
    const float scale = in<float>(inverse)[row];
    for (std::int64_t j = 0; j < width; ++j)
      d[j] = scale * (static_cast<float>(gr[j]) - static_cast<float>(yr[j]) * mean);
    store(d, out<T>(d_source) + i * width);
    float* to = out<float>(d_table) + in<std::int64_t>(positions)[row] * width;
    for (std::int64_t j = 0; j < width; ++j) to[j] += d[j];
  }
}

class EmbedContextNode final : public OpNode<5> {
 public:
  void keep(const Tensor& result, const Tensor& inverse, const ContextLayout& layout,
            const std::array<std::int64_t, 3>& sizes) {
    save(0, result, true);
    save(1, inverse);
    save(2, layout.positions);
    save(3, layout.token_rows);
    save(4, layout.sensor_rows);
    sizes_ = sizes;
  }

 protected:
  variable_list backward(const variable_list& grads) override {
    const Tensor g = grads[0].contiguous(), result = saved(0), inverse = saved(1), positions = saved(2);
    Tensor d_tokens = make({sizes_[0], g.size(1)}, g.scalar_type(), g);
    Tensor d_sensors = sizes_[1] > 0 ? make({sizes_[1], g.size(1)}, g.scalar_type(), g) : Tensor();
    Tensor d_table = make({sizes_[2], g.size(1)}, at::kFloat, g);
    if (g.is_meta()) return {d_tokens, d_sensors, d_table};
    d_table.zero_();
    rows::by_dtype(g.scalar_type(), [&](auto t) {
      using T = decltype(t);
      fill_context_gradient<T>(g, result, inverse, saved(3), positions, d_tokens, d_table);
      if (d_sensors.defined()) fill_context_gradient<T>(g, result, inverse, saved(4), positions, d_sensors, d_table);
    });
    return {d_tokens, d_sensors, d_table};
  }

 private:
  std::array<std::int64_t, 3> sizes_{};  ///< rows of tokens, of sensor tokens, of the table
};

}  // namespace

Tensor embed_rows(const Tensor& source, const Tensor& lead, const Tensor& positions, std::int64_t draws) {
  const auto n = positions.size(0);
  const auto m = n - (lead.defined() ? 1 : 0);
  const RowSizes s{source.size(0) / m, n, m, source.size(1), draws};
  Tensor result = make({s.groups * n, s.width}, at::kFloat, source);
  if (!result.is_meta()) {
    rows::by_dtype(source.scalar_type(),
                   [&](auto t) { fill_embed_rows<decltype(t)>(source, lead, positions, result, s); });
  }
  if (!wants_graph(source, lead, positions)) return result;
  auto node = make_node<EmbedRowsNode>(source, lead, positions);
  node->keep(s, source.scalar_type());
  torch::autograd::set_history(result, node);
  return result;
}

Tensor embed_context(const Tensor& tokens, const Tensor& sensors, const Tensor& table, const ContextLayout& layout) {
  Tensor result = make({layout.positions.size(0), tokens.size(1)}, tokens.scalar_type(), tokens);
  Tensor inverse = make({layout.positions.size(0)}, at::kFloat, tokens);
  if (!result.is_meta()) {
    rows::by_dtype(tokens.scalar_type(), [&](auto t) {
      using T = decltype(t);
      fill_context<T>(tokens, layout.token_rows, table, layout.positions, result, inverse);
      if (sensors.defined()) fill_context<T>(sensors, layout.sensor_rows, table, layout.positions, result, inverse);
    });
  }
  if (!wants_graph(tokens, sensors, table)) return result;
  auto node = make_node<EmbedContextNode>(tokens, sensors, table);
  torch::autograd::set_history(result, node);
  node->keep(result, inverse, layout, {tokens.size(0), sensors.defined() ? sensors.size(0) : 0, table.size(0)});
  return result;
}

}  // namespace plimsoll::model
