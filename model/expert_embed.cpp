#include <array>
#include <vector>

#include "model/expert_ops.h"
#include "model/ops_node.h"

namespace plimsoll::model {
namespace {

// --- embed_rows
// -------------------------------------------------------------------------------------------------------

class EmbedRowsNode final : public OpNode<0> {
 public:
  void keep(const Tensor& source, const Tensor& lead, const Tensor& positions, std::int64_t draws) {
    positions_ = positions.size(0);
    rows_ = source.size(0);
    leads_ = lead.defined() ? lead.size(0) : 0;
    draws_ = draws;
    type_ = source.scalar_type();
  }

 protected:
  variable_list backward(const variable_list& grads) override {
    const Tensor g = grads[0].contiguous();
    const std::int64_t width = g.size(1);
    Tensor d_rows = make({rows_, width}, type_, g);
    Tensor d_lead = leads_ > 0 ? make({leads_, width}, type_, g) : Tensor();
    Tensor d_positions = make({positions_, width}, at::kFloat, g);
    kernels_for(g).embed_rows_backward(g, draws_, d_rows, d_lead, d_positions);
    return {d_rows, d_lead, d_positions};
  }

 private:
  std::int64_t rows_ = 0, leads_ = 0, positions_ = 0, draws_ = 1;
  at::ScalarType type_ = at::kFloat;
};

// --- embed_context
// ----------------------------------------------------------------------------------------------------

class EmbedContextNode final : public OpNode<5> {
 public:
  void keep(const Tensor& result, const Tensor& inverse, const ContextLayout& layout,
            const std::array<std::int64_t, 3>& sizes) {
    save(0, result, true);
    save(1, inverse);
    save(2, layout.positions);
    save(3, layout.token_rows);
    save(4, layout.sensor_rows);
    lengths_ = layout.lengths;
    sizes_ = sizes;
  }

 protected:
  variable_list backward(const variable_list& grads) override {
    const Tensor g = grads[0].contiguous(), result = saved(0), inverse = saved(1), positions = saved(2);
    Tensor d_tokens = make({sizes_[0], g.size(1)}, g.scalar_type(), g);
    Tensor d_sensors = sizes_[1] > 0 ? make({sizes_[1], g.size(1)}, g.scalar_type(), g) : Tensor();
    Tensor d_table = make({sizes_[2], g.size(1)}, at::kFloat, g);
    const Tensor token_rows = saved(3), sensor_rows = saved(4);
    kernels_for(g).embed_context_backward(g, result, inverse, {positions, token_rows, sensor_rows, lengths_}, d_tokens,
                                          d_sensors, d_table);
    return {d_tokens, d_sensors, d_table};
  }

 private:
  std::vector<std::int64_t> lengths_;
  std::array<std::int64_t, 3> sizes_{};  ///< rows of tokens, of sensor tokens, of the table
};

}  // namespace

Tensor embed_rows(const Tensor& source, const Tensor& lead, const Tensor& positions, std::int64_t draws) {
  const auto n = positions.size(0);
  const auto m = n - (lead.defined() ? 1 : 0);
  Tensor result = make({source.size(0) / m * n, source.size(1)}, at::kFloat, source);
  kernels_for(source).embed_rows_forward(source, lead, positions, draws, result);
  if (!wants_graph(source, lead, positions)) return result;
  auto node = make_node<EmbedRowsNode>(source, lead, positions);
  node->keep(source, lead, positions, draws);
  torch::autograd::set_history(result, node);
  return result;
}

Tensor embed_context(const Tensor& tokens, const Tensor& sensors, const Tensor& table, const ContextLayout& layout) {
  Tensor result = make({layout.positions.size(0), tokens.size(1)}, tokens.scalar_type(), tokens);
  Tensor inverse = make({layout.positions.size(0)}, at::kFloat, tokens);
  kernels_for(tokens).embed_context_forward(tokens, sensors, table,
                                            {layout.positions, layout.token_rows, layout.sensor_rows, layout.lengths},
                                            result, inverse);
  if (!wants_graph(tokens, sensors, table)) return result;
  auto node = make_node<EmbedContextNode>(tokens, sensors, table);
  torch::autograd::set_history(result, node);
  node->keep(result, inverse, layout, {tokens.size(0), sensors.defined() ? sensors.size(0) : 0, table.size(0)});
  return result;
}

}  // namespace plimsoll::model
