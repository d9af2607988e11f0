// Attention over packed segments as one graph node.

#include <numeric>

#include "model/ops_node.h"

namespace plimsoll::model {
namespace {

/// Inputs q, k, v; saves them, the output and the log of each row's sum of exponentials.
class AttentionNode final : public OpNode<5> {
 public:
  void keep(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& lse, const SegmentsPtr& segments,
            bool causal) {
    save(0, q);
    save(1, k);
    save(2, v);
    save(3, lse);
    segments_ = segments;
    causal_ = causal;
  }
  void keep_output(const Tensor& out) { save(4, out, true); }

 protected:
  variable_list backward(const variable_list& grads) override {
    const Tensor grad = grads[0].contiguous(), q = saved(0), k = saved(1), v = saved(2), lse = saved(3), out = saved(4);
    Tensor dq = make(q.sizes(), q.scalar_type(), q), dk = make(k.sizes(), k.scalar_type(), k),
           dv = make(v.sizes(), v.scalar_type(), v);
    kernels_for(q).attention_backward({q, k, v, *segments_, causal_}, grad, out, lse, dq, dk, dv);
    return {dq, dk, dv};
  }

 private:
  SegmentsPtr segments_;
  bool causal_ = false;
};

std::int64_t total(const std::vector<std::int64_t>& lengths) {
  return std::accumulate(lengths.begin(), lengths.end(), std::int64_t{0});
}

void check_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Segments& segments, bool causal) {
  if (q.dim() != 3 || k.dim() != 3 || k.sizes() != v.sizes() || q.size(2) != k.size(2) || k.size(1) == 0 ||
      q.size(1) % k.size(1) != 0) {
    fail(ExitCode::kUsage, "attention: q [n, heads, d] over k and v [m, kv_heads, d], heads a multiple of kv_heads");
  }
  if (q.scalar_type() != k.scalar_type() || q.scalar_type() != v.scalar_type()) {
    fail(ExitCode::kUsage, "attention: q is {}, k {}, v {}", c10::toString(q.scalar_type()),
         c10::toString(k.scalar_type()), c10::toString(v.scalar_type()));
  }
  if (segments.queries.size() != segments.keys.size() || total(segments.queries) != q.size(0) ||
      total(segments.keys) != k.size(0)) {
    fail(ExitCode::kUsage, "attention: {} and {} segments cover {} queries and {} keys of {} and {}",
         segments.queries.size(), segments.keys.size(), total(segments.queries), total(segments.keys), q.size(0),
         k.size(0));
  }
  if (causal && segments.queries != segments.keys) {
    fail(ExitCode::kUsage, "causal attention needs as many keys as queries in every segment");
  }
}

}  // namespace

Tensor attention(const Tensor& q_in, const Tensor& k_in, const Tensor& v_in, const SegmentsPtr& segments, bool causal) {
  check_attention(q_in, k_in, v_in, *segments, causal);
  const Tensor q = contiguous_heads(q_in), k = contiguous_heads(k_in), v = contiguous_heads(v_in);
  const bool graph = wants_graph(q, k, v);
  Tensor out = make(q.sizes(), q.scalar_type(), q);
  Tensor lse = graph ? make({q.size(0), q.size(1)}, at::kFloat, q) : Tensor();
  kernels_for(q).attention_forward({q, k, v, *segments, causal}, out, lse);
  if (!graph) return out;
  auto node = make_node<AttentionNode>(q, k, v);
  node->keep(q, k, v, lse, segments, causal);
  torch::autograd::set_history(out, node);
  node->keep_output(out);
  return out;
}

}  // namespace plimsoll::model
