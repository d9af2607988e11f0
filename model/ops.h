#pragma once
// The operators of the step. Each is a node of autograd's graph that makes its outputs first and then fills them, saves
// the least that its backward needs, and runs on CPU and meta tensors with the same list of allocations: on meta the
// filling is skipped. That is what makes the dry run exact. Everything a library allocates meanwhile happens inside a
// LibraryScratch (core/scope.h).
//
// Shapes: rows are tokens, packed without padding: [tokens, features]. dtype: fp32 or bf16 unless said otherwise;
// sums, norms and softmax are in fp32 inside. No operator reads a value or keeps random state.

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/philox.h"

namespace plimsoll::model {

using at::Tensor;

/// How numbers are kept and multiplied. `compute` is the dtype of matrix products and of the residual stream.
struct Precision {
  at::ScalarType weights = at::kFloat;  ///< frozen base
  at::ScalarType compute = at::kFloat;  ///< kBFloat16: as under at::autocast; kFloat: fp32 throughout
};

/// Segments of a packed batch: segment i of the queries attends to segment i of the keys. Host memory, shared because
/// autograd nodes and recompute keep it alive.
struct Segments {
  std::vector<std::int64_t> queries;  ///< lengths; they sum to the rows of q
  std::vector<std::int64_t> keys;     ///< lengths; they sum to the rows of k and v; same count as queries
};
using SegmentsPtr = std::shared_ptr<const Segments>;

/// The only matrix products of the model: out = a b^T (+ bias), a: [n, in], b: [out, in]. Not an autograd node.
/// Operands and result have a's dtype.
Tensor matmul_nt(const Tensor& a, const Tensor& b, const Tensor& bias = {});
/// out = a b, a: [n, k], b: [k, m].
Tensor matmul_nn(const Tensor& a, const Tensor& b);
/// out = a^T b, a: [n, k], b: [n, m] -> [k, m].
Tensor matmul_tn(const Tensor& a, const Tensor& b);

/// y = x W^T + bias. x: [n, in], W: [out, in]. The result has dtype `compute`; x, W and bias are cast to it for the
/// product when they differ. Gradients go only where they are required; x is saved only if W requires one, and
/// not even then where it is what rms_norm or swiglu returned: it is made again in backward from what these have saved,
/// to the bit.
Tensor linear(const Tensor& x, const Tensor& weight, const Tensor& bias, at::ScalarType compute);

/// Where dropout is applied and with which keys: element (row t, channel c) is dropped when its 32-bit Philox word is
/// below rate * 2^32, else multiplied by 1 / (1 - rate). The word: key = the two words of keys[t][0] (low half first,
/// mix(RandomKey) of core/philox.h), counter = (keys[t][1], 8 floor(c / 32) + c mod 8, site, 0), word number floor((c
/// mod 32) / 8) of the four. So one Philox call serves four channels and eight neighbouring calls serve 32 in order of
/// memory. One key per row because rows belong to different samples; nothing depends on what else is in the batch.
/// `keys`: [n, 2] int64 tensor on the device: key words packed in 64 bits, token index within the sample.
struct Dropout {
  float rate = 0.0F;  ///< 0 turns it off
  Tensor keys;        ///< undefined when rate is 0
  std::uint32_t site = 0;
};

/// y = x W^T + bias + scale * (dropout(x) A^T) B^T with W and bias frozen. A: [r, in], B: [out, r], fp32, trainable.
/// Saves x and the r-wide product; dropout is drawn again in backward. Without `values` only what the gradient needs is
/// computed (the r-wide product): y is zero, with the same graph and the same events.
Tensor lora_linear(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& a, const Tensor& b,
                   float scale, const Dropout& dropout, at::ScalarType compute, bool values = true);

/// One layer of a group that reads the same x. Weight and bias: frozen or trainable, as in `linear`.
struct LoraLayer {
  Tensor weight;           ///< [out, in]
  Tensor bias;             ///< [out] or undefined
  Tensor a, b;             ///< [r, in], [out, r], fp32, trainable; both undefined: no adapter
  std::uint32_t site = 0;  ///< of its dropout
};

/// Several linear or lora_linear layers over one x (q, k, v; gate, up) as one node: x is saved once (or made again) and
/// its gradient is summed in fp32 inside. `dropout.site` is not read, each layer has its own. Outputs in the order of
/// `layers`.
std::vector<Tensor> lora_linears(const Tensor& x, const std::vector<LoraLayer>& layers, float scale,
                                 const Dropout& dropout, at::ScalarType compute);

/// x twice, over the same memory: use one each where x is read in two places. The sum of the two gradients is made
/// here, in place where the memory is nobody else's. Left to the autograd engine it would be made in place on the CPU
/// but not on meta (ATen takes every meta tensor for a tensor subclass), and the dry run would differ. Every tensor
/// that requires a gradient and is read by more than one operator goes through a fork, a chain of forks for more than
/// two readers.
std::array<Tensor, 2> fork(const Tensor& x);

/// y = x / sqrt(mean(x^2) + eps), cast to x's dtype, times weight (Qwen2.5-VL's order: cast before the product).
/// `weight` undefined: no weight. Saves x, weight and one fp32 per row. Gradient to weight only if it requires one.
Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps);

/// {x, rms_norm(x)}: the fork at the start of a residual branch, as one node. Its gradient is the sum of both, made in
/// the memory of the norm's incoming gradient where that is nobody else's.
std::array<Tensor, 2> rms_norm_fork(const Tensor& x, const Tensor& weight, double eps);

/// silu(gate) * up, element by element. Saves both inputs.
Tensor swiglu(const Tensor& gate, const Tensor& up);

/// Rotates pairs (i, i + d/2) of every head: x cos + rotate_half(x) sin. x: [n, heads, d]; cos, sin: [n, d], no
/// gradient; fp32: rotated in fp32 and cast back (vision); x's dtype: rotated in it (language).
Tensor rotary(const Tensor& x, const Tensor& cos, const Tensor& sin);

/// Attention over packed segments, softmax(q k^T / sqrt(d)) v, causal or not, no dense mask. q: [n, heads, d],
/// k, v: [m, kv_heads, d], heads a multiple of kv_heads (query head i reads kv head i / (heads / kv_heads)). Returns
/// [n, heads, d]. Saves q, k, v, the output and one fp32 per query and head.
Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v, const SegmentsPtr& segments, bool causal);

/// Rows of `table` [v, d] by `indices` [n] int64 -> [n, d]; gradient to the table only if it requires one.
Tensor gather_rows(const Tensor& table, const Tensor& indices);

/// A copy of x [n, d] in which rows `indices` [m] are replaced by `rows` [m, d]. Gradients to both, where required.
Tensor place_rows(const Tensor& x, const Tensor& indices, const Tensor& rows);

/// 0.5 x (1 + erf(x / sqrt 2)). Saves x. (Names that at:: has too would be ambiguous at every call.)
Tensor gelu_erf(const Tensor& x);
/// The tanh approximation of gelu (torch's approximate="tanh"). Saves x.
Tensor gelu_tanh(const Tensor& x);
/// silu: x sigmoid(x). Saves x.
Tensor swish(const Tensor& x);

/// x + y of the same shape and dtype. Saves nothing; the gradient goes to both as it is.
Tensor add_residual(const Tensor& x, const Tensor& y);

/// x in another dtype; x itself when it has that dtype.
Tensor cast(const Tensor& x, at::ScalarType dtype);

/// Most bytes of library scratch (core/scope.h) that `attention` takes at once, forward and backward, for these
/// segments: what the CPU's workspace arena must hold. Exact for one thread a worker; fewer workers take less.
std::int64_t attention_scratch_bytes(const Segments& segments, std::int64_t head_dim, at::ScalarType dtype,
                                     int threads);

}  // namespace plimsoll::model
