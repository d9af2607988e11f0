#include "tests/oracle/counted_kernels.h"

#include <ATen/record_function.h>

#include <iterator>
#include <string_view>

namespace plimsoll::model {
namespace {

template <class... Tensors>
double bytes_of(const Tensors&... tensors) {
  return (0.0 + ... + (tensors.defined() ? static_cast<double>(tensors.nbytes()) : 0.0));
}

std::int64_t columns_of(const Tensor& x) { return x.dim() == 0 ? 1 : x.size(-1); }
std::int64_t rows_of(const Tensor& x) { return columns_of(x) == 0 ? 0 : x.numel() / columns_of(x); }

/// Of an [n, k] by [k, m] product.
double flops_of(std::int64_t n, std::int64_t k, std::int64_t m) {
  return 2.0 * static_cast<double>(n) * static_cast<double>(k) * static_cast<double>(m);
}

double flops_of(const Product& product, const Tensor& out) {
  const std::int64_t inner = product.transpose_a ? rows_of(product.a) : columns_of(product.a);
  return flops_of(rows_of(out), inner, columns_of(out));
}

double forward_flops(const Tensor& x, const LoraTensors& layer) {
  const std::int64_t n = rows_of(x), in = columns_of(x), out = layer.weight.size(0), rank = layer.a.size(0);
  return flops_of(n, in, rank) + (layer.values ? flops_of(n, in, out) + flops_of(n, rank, out) : 0.0);
}

double backward_flops(const LoraTensors& layer, const LoraGradients& gradients, bool wants_input) {
  const std::int64_t n = rows_of(gradients.grad_output), out = layer.weight.size(0), in = layer.weight.size(1);
  double flops = wants_input ? flops_of(n, out, in) : 0.0;
  if (!layer.a.defined()) return flops;
  const std::int64_t rank = layer.a.size(0);
  if (wants_input || gradients.da.defined()) flops += flops_of(n, out, rank);
  if (wants_input) flops += flops_of(n, rank, in);
  if (gradients.da.defined()) flops += flops_of(n, rank, in);
  if (gradients.db.defined()) flops += flops_of(n, rank, out);
  return flops;
}

/// Of one product of queries and keys, over the pairs that see each other.
double pair_flops(const AttentionTensors& t) {
  double pairs = 0;
  for (std::size_t i = 0; i < t.segments.queries.size(); ++i) {
    const auto queries = static_cast<double>(t.segments.queries[i]), keys = static_cast<double>(t.segments.keys[i]);
    pairs += queries * keys - (t.causal ? queries * (queries - 1) / 2 : 0.0);
  }
  return 2.0 * pairs * static_cast<double>(t.q.size(1) * t.q.size(2));
}

}  // namespace

/// Notes a call, and is its range in the profiler until it ends.
class CountedKernels::Call {
 public:
  /// `name`: with the prefix; a literal.
  Call(const CountedKernels& kernels, const char* name, double flops, double bytes, std::int64_t parts = 1) {
    if (scope_.isActive()) scope_.before(name);
    const std::lock_guard lock(kernels.mutex_);
    OperatorCount& count = kernels.counts_[name + std::string_view(kOperatorPrefix).size()];
    ++count.calls;
    count.parts += parts;
    count.flops += flops;
    count.bytes += bytes;
  }

 private:
  at::RecordFunction scope_{at::RecordScope::FUNCTION};
};

std::map<std::string, OperatorCount> CountedKernels::counts() const {
  const std::lock_guard lock(mutex_);
  return counts_;
}

void CountedKernels::clear() {
  const std::lock_guard lock(mutex_);
  counts_.clear();
}

void CountedKernels::product(const Product& product, Tensor& out) const {
  const Call call(*this, "plimsoll::product", flops_of(product, out),
                  bytes_of(product.a, product.b, product.bias, out));
  own_.product(product, out);
}

void CountedKernels::lora_forward(const Tensor& x, const LoraTensors& layer, const Dropout& dropout,
                                  at::ScalarType compute, Tensor& u, Tensor& y) const {
  const double wide = layer.values ? bytes_of(layer.weight, layer.bias, layer.b) : 0.0;
  const Call call(*this, "plimsoll::lora_forward", forward_flops(x, layer), wide + bytes_of(x, layer.a, u, y));
  own_.lora_forward(x, layer, dropout, compute, u, y);
}

void CountedKernels::lora_backward(const Tensor& x, const std::vector<LoraTensors>& layers, const Dropout& dropout,
                                   at::ScalarType compute, std::vector<LoraGradients>& gradients, Tensor& dx) const {
  double flops = 0, bytes = bytes_of(x, dx);
  for (std::size_t i = 0; i < layers.size(); ++i) {
    flops += backward_flops(layers[i], gradients[i], dx.defined());
    bytes +=
        bytes_of(gradients[i].grad_output, gradients[i].u, gradients[i].da, gradients[i].db, layers[i].a, layers[i].b);
    if (dx.defined()) bytes += bytes_of(layers[i].weight);
  }
  const Call call(*this, "plimsoll::lora_backward", flops, bytes, std::ssize(layers));
  own_.lora_backward(x, layers, dropout, compute, gradients, dx);
}

void CountedKernels::sum_rows(const Tensor& x, Tensor& out) const {
  const Call call(*this, "plimsoll::sum_rows", 0, bytes_of(x, out));
  own_.sum_rows(x, out);
}

void CountedKernels::cast(const Tensor& x, Tensor& out) const {
  const Call call(*this, "plimsoll::cast", 0, bytes_of(x, out));
  own_.cast(x, out);
}

void CountedKernels::add(const Tensor& x, const Tensor& y, Tensor& out) const {
  const Call call(*this, "plimsoll::add", 0, bytes_of(x, y, out));
  own_.add(x, y, out);
}

void CountedKernels::rms_norm_forward(const Tensor& x, const Tensor& weight, double eps, Tensor& out,
                                      Tensor& rstd) const {
  const Call call(*this, "plimsoll::rms_norm_forward", 0, bytes_of(x, weight, out, rstd));
  own_.rms_norm_forward(x, weight, eps, out, rstd);
}

void CountedKernels::rms_norm_backward(const Tensor& grad, const Tensor& x, const Tensor& weight, const Tensor& rstd,
                                       const Tensor& residual, Tensor& dx, Tensor& dweight) const {
  const Call call(*this, "plimsoll::rms_norm_backward", 0, bytes_of(grad, x, weight, rstd, residual, dx, dweight));
  own_.rms_norm_backward(grad, x, weight, rstd, residual, dx, dweight);
}

void CountedKernels::swiglu_forward(const Tensor& gate, const Tensor& up, Tensor& out) const {
  const Call call(*this, "plimsoll::swiglu_forward", 0, bytes_of(gate, up, out));
  own_.swiglu_forward(gate, up, out);
}

void CountedKernels::swiglu_backward(const Tensor& grad, const Tensor& gate, const Tensor& up, Tensor& dgate,
                                     Tensor& dup) const {
  const Call call(*this, "plimsoll::swiglu_backward", 0, bytes_of(grad, gate, up, dgate, dup));
  own_.swiglu_backward(grad, gate, up, dgate, dup);
}

void CountedKernels::activation_forward(Activation kind, const Tensor& x, Tensor& out) const {
  const Call call(*this, "plimsoll::activation_forward", 0, bytes_of(x, out));
  own_.activation_forward(kind, x, out);
}

void CountedKernels::activation_backward(Activation kind, const Tensor& grad, const Tensor& x, Tensor& dx) const {
  const Call call(*this, "plimsoll::activation_backward", 0, bytes_of(grad, x, dx));
  own_.activation_backward(kind, grad, x, dx);
}

void CountedKernels::rotary(const Tensor& x, const Tensor& cos, const Tensor& sin, bool backward, Tensor& out) const {
  const Call call(*this, "plimsoll::rotary", 0, bytes_of(x, cos, sin, out));
  own_.rotary(x, cos, sin, backward, out);
}

void CountedKernels::attention_forward(const AttentionTensors& tensors, Tensor& out, Tensor& lse) const {
  // Scores, and the values that they weigh.
  const Call call(*this, "plimsoll::attention_forward", 2 * pair_flops(tensors),
                  bytes_of(tensors.q, tensors.k, tensors.v, out, lse));
  own_.attention_forward(tensors, out, lse);
}

void CountedKernels::attention_backward(const AttentionTensors& tensors, const Tensor& grad, const Tensor& out,
                                        const Tensor& lse, Tensor& dq, Tensor& dk, Tensor& dv) const {
  // Scores once more, and the gradients of probabilities, queries, keys and values.
  const Call call(*this, "plimsoll::attention_backward", 5 * pair_flops(tensors),
                  bytes_of(tensors.q, tensors.k, tensors.v, grad, out, lse, dq, dk, dv));
  own_.attention_backward(tensors, grad, out, lse, dq, dk, dv);
}

void CountedKernels::gather_rows(const Tensor& table, const Tensor& indices, Tensor& out) const {
  const Call call(*this, "plimsoll::gather_rows", 0, bytes_of(indices, out, out));
  own_.gather_rows(table, indices, out);
}

void CountedKernels::scatter_add_rows(const Tensor& rows, const Tensor& indices, Tensor& out) const {
  const Call call(*this, "plimsoll::scatter_add_rows", 0, bytes_of(rows, indices, out));
  own_.scatter_add_rows(rows, indices, out);
}

void CountedKernels::place_rows(const Tensor& x, const Tensor& indices, const Tensor& rows, Tensor& out) const {
  const Call call(*this, "plimsoll::place_rows", 0, bytes_of(x, indices, rows, out));
  own_.place_rows(x, indices, rows, out);
}

void CountedKernels::modulated_norm_forward(const Tensor& x, const Tensor& shift, const Tensor& scale, Tensor& y,
                                            Tensor& inverse) const {
  const Call call(*this, "plimsoll::modulated_norm_forward", 0, bytes_of(x, shift, scale, y, inverse));
  own_.modulated_norm_forward(x, shift, scale, y, inverse);
}

void CountedKernels::modulated_norm_backward(const Tensor& grad, const Tensor& x, const Tensor& scale,
                                             const Tensor& inverse, Tensor& dx, Tensor& dshift, Tensor& dscale) const {
  const Call call(*this, "plimsoll::modulated_norm_backward", 0, bytes_of(grad, x, scale, inverse, dx, dshift, dscale));
  own_.modulated_norm_backward(grad, x, scale, inverse, dx, dshift, dscale);
}

void CountedKernels::gated_residual_forward(const Tensor& x, const Tensor& y, const Tensor& gate, Tensor& out) const {
  const Call call(*this, "plimsoll::gated_residual_forward", 0, bytes_of(x, y, gate, out));
  own_.gated_residual_forward(x, y, gate, out);
}

void CountedKernels::gated_residual_backward(const Tensor& grad, const Tensor& y, const Tensor& gate, Tensor& dy,
                                             Tensor& dgate) const {
  const Call call(*this, "plimsoll::gated_residual_backward", 0, bytes_of(grad, y, gate, dy, dgate));
  own_.gated_residual_backward(grad, y, gate, dy, dgate);
}

void CountedKernels::embed_rows_forward(const Tensor& rows, const Tensor& lead, const Tensor& positions,
                                        std::int64_t draws, Tensor& out) const {
  const Call call(*this, "plimsoll::embed_rows_forward", 0, bytes_of(rows, lead, positions, out));
  own_.embed_rows_forward(rows, lead, positions, draws, out);
}

void CountedKernels::embed_rows_backward(const Tensor& grad, std::int64_t draws, Tensor& drows, Tensor& dlead,
                                         Tensor& dpositions) const {
  const Call call(*this, "plimsoll::embed_rows_backward", 0, bytes_of(grad, drows, dlead, dpositions));
  own_.embed_rows_backward(grad, draws, drows, dlead, dpositions);
}

void CountedKernels::embed_context_forward(const Tensor& tokens, const Tensor& sensors, const Tensor& table,
                                           const ContextRows& rows, Tensor& out, Tensor& inverse) const {
  const Call call(*this, "plimsoll::embed_context_forward", 0, bytes_of(tokens, sensors, out, out, inverse));
  own_.embed_context_forward(tokens, sensors, table, rows, out, inverse);
}

void CountedKernels::embed_context_backward(const Tensor& grad, const Tensor& out, const Tensor& inverse,
                                            const ContextRows& rows, Tensor& dtokens, Tensor& dsensors,
                                            Tensor& dtable) const {
  const Call call(*this, "plimsoll::embed_context_backward", 0,
                  bytes_of(grad, out, inverse, dtokens, dsensors, dtable));
  own_.embed_context_backward(grad, out, inverse, rows, dtokens, dsensors, dtable);
}

void CountedKernels::add_noise(const Tensor& actions, const Tensor& noise, const Tensor& times, const Tensor& mixtures,
                               Tensor& out) const {
  const Call call(*this, "plimsoll::add_noise", 0, bytes_of(actions, noise, times, out));
  own_.add_noise(actions, noise, times, mixtures, out);
}

void CountedKernels::embed_times(const Tensor& times, double scale, Tensor& out) const {
  const Call call(*this, "plimsoll::embed_times", 0, bytes_of(times, out));
  own_.embed_times(times, scale, out);
}

void CountedKernels::chunk_loss_forward(const ChunkLoss& loss, Tensor& losses) const {
  const Call call(*this, "plimsoll::chunk_loss_forward", 0,
                  bytes_of(loss.predicted, loss.actions, loss.noise, loss.weight, losses));
  own_.chunk_loss_forward(loss, losses);
}

void CountedKernels::chunk_loss_backward(const ChunkLoss& loss, const Tensor& grad, Tensor& dpredicted) const {
  const Call call(*this, "plimsoll::chunk_loss_backward", 0,
                  bytes_of(loss.predicted, loss.actions, loss.noise, loss.weight, grad, dpredicted));
  own_.chunk_loss_backward(loss, grad, dpredicted);
}

}  // namespace plimsoll::model
