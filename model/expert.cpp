#include "model/expert.h"

#include <cmath>

#include "core/error.h"
#include "core/scope.h"
#include "model/expert_ops.h"
#include "model/recompute.h"

namespace plimsoll::model {
namespace {

void require(int value, const char* key) {
  if (value < 1) fail(ExitCode::kUsage, "{} is {}, but must be at least 1", key, value);
}

void check(const ExpertOptions& o, const ExpertPorts& ports) {
  require(o.width, "expert.width");
  require(o.depth, "expert.depth");
  require(o.heads, "expert.heads");
  require(o.draws, "expert.draws");
  require(o.chunk, "expert.chunk");
  require(ports.action_dim, "the width of an action");
  if (o.width % o.heads != 0) {
    fail(ExitCode::kUsage, "expert.width is {}, but must be a multiple of expert.heads ({})", o.width, o.heads);
  }
  if (ports.max_context < 1) {
    fail(ExitCode::kUsage, "max_context is {}, but a sample's context needs at least one position", ports.max_context);
  }
}

}  // namespace

ActionExpert::ActionExpert(const ExpertOptions& options, const ExpertPorts& ports, ParameterList& parameters)
    : options_(options), ports_(ports) {
  check(options, ports);
  const std::int64_t width = options.width;
  const std::int64_t rows = options.chunk + (ports.state_dim > 0 ? 1 : 0);
  action_in_ = make_linear("expert.action_in", width, ports.action_dim, parameters);
  if (ports.state_dim > 0) state_in_ = make_linear("expert.state_in", width, ports.state_dim, parameters);
  row_positions_ = parameters.make("expert.row_positions", {rows, width}, 0.02);
  context_in_ = make_linear("expert.context_in", width, ports.hidden, parameters);
  context_positions_ = parameters.make("expert.context_positions", {ports.max_context, width}, 0.5);
  time_in_ = make_linear("expert.time_in", width, kTimeWidth, parameters);
  time_out_ = make_linear("expert.time_out", width, width, parameters);
  for (int i = 0; i < options.depth; ++i) blocks_.push_back(make_block(fmt::format("expert.blocks.{}", i), parameters));
  final_modulation_ = make_modulation("expert.final_modulation", 2, 0, parameters);
  const double small = 0.1 / std::sqrt(static_cast<double>(width));
  action_out_ = {parameters.make("expert.action_out.weight", {ports.action_dim, width}, small),
                 parameters.bias("expert.action_out", ports.action_dim)};
}

ActionExpert::Linear ActionExpert::make_linear(const std::string& name, std::int64_t out, std::int64_t in,
                                               ParameterList& parameters) const {
  Linear layer;
  layer.weight = parameters.weight(name, out, in);
  layer.bias = parameters.bias(name, out);
  return layer;
}

/// The last `gates` of `parts` start at 0.1, shifts and scales near 0: a block begins close to the identity.
ActionExpert::Linear ActionExpert::make_modulation(const std::string& name, int parts, int gates,
                                                   ParameterList& parameters) const {
  const std::int64_t width = options_.width;
  Linear layer;
  layer.weight =
      parameters.make(name + ".weight", {parts * width, width}, 0.01 / std::sqrt(static_cast<double>(width)));
  layer.bias = parameters.bias(name, parts * width);
  if (gates > 0 && !layer.bias.is_meta())
    layer.bias.detach().narrow(0, (parts - gates) * width, gates * width).fill_(0.1);
  return layer;
}

ActionExpert::Attention ActionExpert::make_attention(const std::string& name, ParameterList& parameters) const {
  const std::int64_t width = options_.width;
  Attention weights;
  weights.q = parameters.weight(name + ".q", width, width);
  weights.k = parameters.weight(name + ".k", width, width);
  weights.v = parameters.weight(name + ".v", width, width);
  weights.o = parameters.weight(name + ".o", width, width);
  return weights;
}

ActionExpert::Block ActionExpert::make_block(const std::string& name, ParameterList& parameters) const {
  const std::int64_t width = options_.width, hidden = options_.mlp_width();
  Block block;
  block.modulation = make_modulation(name + ".modulation", 9, 3, parameters);
  block.self = make_attention(name + ".self", parameters);
  block.cross = make_attention(name + ".cross", parameters);
  block.gate = parameters.weight(name + ".mlp.gate", hidden, width);
  block.up = parameters.weight(name + ".mlp.up", hidden, width);
  block.down = parameters.weight(name + ".mlp.down", width, hidden);
  return block;
}

std::vector<Tensor> ActionExpert::Block::trainable() const {
  std::vector<Tensor> all{modulation.weight, modulation.bias, gate, up, down};
  for (const Attention* part : {&self, &cross}) all.insert(all.end(), {part->q, part->k, part->v, part->o});
  return all;
}

Tensor ActionExpert::multiply(const Tensor& x, const Tensor& weight, const Tensor& bias) const {
  return linear(x, weight, bias, ports_.compute);
}

Tensor ActionExpert::heads(const Tensor& x) const {
  return x.view({x.size(0), options_.heads, options_.width / options_.heads});
}

std::vector<Tensor> ActionExpert::multiply_all(const Tensor& x, std::initializer_list<Tensor> weights) const {
  std::vector<LoraLayer> layers;
  for (const Tensor& weight : weights) layers.push_back({weight, {}, {}, {}, 0});
  return lora_linears(x, layers, 1.0F, {}, ports_.compute);
}

std::array<Tensor, 2> ActionExpert::keys_values(const Attention& weights, const Tensor& rows) const {
  const auto both = multiply_all(rows, {weights.k, weights.v});
  return {heads(both[0]), heads(both[1])};
}

ExpertContext ActionExpert::context(const Tensor& hidden, const Tensor& sensors, const PackedBatch& batch,
                                    std::int64_t draws, bool cache) const {
  const AllocationLabel label("expert");
  ExpertContext result;
  const ContextLayout layout{batch.context_positions, batch.token_rows, batch.sensor_rows, batch.context_lengths};
  result.rows =
      embed_context(multiply(hidden, context_in_.weight, context_in_.bias), sensors, context_positions_, layout);
  const auto rows = row_positions_.size(0);
  const auto samples = static_cast<std::size_t>(batch.samples);
  const std::vector<std::int64_t> own(samples * static_cast<std::size_t>(draws), rows);
  const std::vector<std::int64_t> queries(samples, draws * rows);
  result.self = std::make_shared<const Segments>(Segments{own, own});
  result.cross = std::make_shared<const Segments>(Segments{queries, batch.context_lengths});
  for (std::size_t i = 0; cache && i < blocks_.size(); ++i) {
    result.cached.push_back(keys_values(blocks_[i].cross, result.rows));
  }
  return result;
}

Tensor ActionExpert::attend(const Tensor& q, const Attention& weights, const Tensor& k, const Tensor& v,
                            const SegmentsPtr& segments) const {
  const Tensor mixed = attention(heads(q), k, v, segments, false);
  return multiply(mixed.view({q.size(0), options_.width}), weights.o);
}

// What two operators read goes through a fork (ops.h): the sums of gradients are then the same on meta.
Tensor ActionExpert::run_block(std::size_t index, const Tensor& x, const Tensor& time, const Tensor& context_rows,
                               const ExpertContext& context) const {
  const Block& block = blocks_[index];
  const auto m = split_columns(multiply(time, block.modulation.weight, block.modulation.bias), 9);
  auto [rest, branch] = fork(x);
  const auto own = multiply_all(modulated_norm(branch, m[0], m[1]), {block.self.q, block.self.k, block.self.v});
  Tensor rows = gated_residual(rest, attend(own[0], block.self, heads(own[1]), heads(own[2]), context.self), m[6]);

  std::tie(rest, branch) = std::tuple_cat(fork(rows));
  const auto theirs = context.cached.empty() ? keys_values(block.cross, context_rows) : context.cached[index];
  const Tensor q = multiply(modulated_norm(branch, m[2], m[3]), block.cross.q);
  rows = gated_residual(rest, attend(q, block.cross, theirs[0], theirs[1], context.cross), m[7]);

  std::tie(rest, branch) = std::tuple_cat(fork(rows));
  const auto wide = multiply_all(modulated_norm(branch, m[4], m[5]), {block.gate, block.up});
  return gated_residual(rest, multiply(swiglu(wide[0], wide[1]), block.down), m[8]);
}

Tensor ActionExpert::start_rows(const Tensor& noisy, const Tensor& state) const {
  const Tensor actions = noisy.view({noisy.size(0) * noisy.size(1), noisy.size(2)});
  const Tensor lead = ports_.state_dim > 0 ? multiply(state, state_in_.weight, state_in_.bias) : Tensor();
  const auto draws = lead.defined() ? noisy.size(0) / state.size(0) : 1;
  return embed_rows(multiply(actions, action_in_.weight, action_in_.bias), lead, row_positions_, draws);
}

Tensor ActionExpert::predict(const Tensor& noisy, const Tensor& times, const Tensor& state,
                             const ExpertContext& context, int recomputed, const LastLayer& shown) const {
  if (recomputed < 0 || recomputed > options_.depth) {
    fail(ExitCode::kUsage, "recompute {} expert blocks: expert.depth is {}", recomputed, options_.depth);
  }
  const AllocationLabel label("expert");
  const Tensor hidden = swish(multiply(times, time_in_.weight, time_in_.bias));
  Tensor time = swish(multiply(hidden, time_out_.weight, time_out_.bias));
  Tensor rows = start_rows(noisy, state);
  Tensor context_rows = context.rows;
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    const auto [time_here, time_after] = fork(time);
    time = time_after;
    if (!context.cached.empty()) {
      rows = run_block(i, rows, time_here, {}, context);
      continue;
    }
    const auto [context_here, context_after] = fork(context_rows);
    context_rows = context_after;
    if (static_cast<int>(i) >= recomputed) {
      rows = run_block(i, rows, time_here, context_here, context);
      continue;
    }
    auto trainable = blocks_[i].trainable();
    trainable.insert(trainable.end(), {time_here, context_here});
    // Under names of their own: clang 14 cannot capture structured bindings.
    const auto again = [this, i, time = time_here, kept = context_here, context](const Tensor& x) {
      return run_block(i, x, time, kept, context);
    };
    rows = recompute(again, rows, trainable);
  }
  const auto m = split_columns(multiply(time, final_modulation_.weight, final_modulation_.bias), 2);
  const Tensor last = modulated_norm(rows, m[0], m[1]);
  const Tensor out = multiply(last, action_out_.weight, action_out_.bias);
  if (shown && out.requires_grad())
    out.register_hook([shown, read = last.detach()](const Tensor& gradient) { shown(read, gradient); });
  return out.view({noisy.size(0), row_positions_.size(0), ports_.action_dim});
}

}  // namespace plimsoll::model
