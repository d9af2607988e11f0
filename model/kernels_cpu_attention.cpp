// CPU kernels of attention over packed segments. A task is a segment's query block and head (forward) or a segment's
// key head (backward); each keeps whole rows of scores, so the softmax is the plain one, and computes alone: a
// segment's result depends neither on its neighbours nor on the number of threads.

#include <cmath>

#include "core/error.h"
#include "model/kernels_cpu.h"
#include "model/kernels_lanes.h"

namespace plimsoll::model::cpu {
namespace {

using lanes::F8;
using lanes::load;
using lanes::splat;
using lanes::store;

constexpr std::int64_t kQueryBlock = 128;

struct Shape {
  std::int64_t heads, kv_heads, d;
  std::int64_t group() const { return heads / kv_heads; }
};

/// A piece of one segment's queries: rows [query, query + queries) of the packed batch against keys [key, key + keys).
struct Block {
  std::int64_t query, queries, key, keys;
  std::int64_t offset;  ///< of the first query within its segment
};

std::int64_t block_rows(std::int64_t queries) { return std::min(queries, kQueryBlock); }

template <class T>
constexpr bool kHalf = !std::is_same_v<T, float>;

template <class T>
std::int64_t forward_bytes(std::int64_t queries, std::int64_t keys, std::int64_t d) {
  const std::int64_t q = block_rows(queries);
  return Scratch::padded(q * keys * 4) + (kHalf<T> ? Scratch::padded(q * keys * 2) : 0) + Scratch::padded(q * d * 4);
}

template <class T>
std::int64_t backward_bytes(std::int64_t queries, std::int64_t keys, std::int64_t d) {
  const std::int64_t q = block_rows(queries);
  const std::int64_t halves = kHalf<T> ? 2 * Scratch::padded(q * keys * 2) + 2 * Scratch::padded(keys * d * 4) : 0;
  return 2 * Scratch::padded(q * keys * 4) + Scratch::padded(q * d * 4) + halves;
}

template <class Bytes>
std::int64_t worst(const Segments& segments, Bytes&& bytes) {
  std::int64_t most = 0;
  for (std::size_t i = 0; i < segments.queries.size(); ++i) {
    most = std::max<std::int64_t>(most, bytes(segments.queries[i], segments.keys[i]));
  }
  return most;
}

std::int64_t operations(const Segments& segments, const Shape& shape) {
  std::int64_t total = 0;
  for (std::size_t i = 0; i < segments.queries.size(); ++i) total += segments.queries[i] * segments.keys[i];
  return total * shape.heads * shape.d / 4;
}

std::vector<Block> whole_segments(const Segments& segments) {
  std::vector<Block> blocks;
  std::int64_t query = 0, key = 0;
  for (std::size_t i = 0; i < segments.queries.size(); ++i) {
    blocks.push_back({query, segments.queries[i], key, segments.keys[i], 0});
    query += segments.queries[i];
    key += segments.keys[i];
  }
  return blocks;
}

/// Calls body(block) for each piece of at most kQueryBlock queries; causal pieces see only the keys up to their last
/// query.
template <class Body>
void for_query_blocks(const Block& segment, bool causal, Body&& body) {
  const std::int64_t step = causal ? kQueryBlock / 2 : kQueryBlock;  // smaller: fewer scores beyond the diagonal
  for (std::int64_t at = 0; at < segment.queries; at += step) {
    const std::int64_t count = std::min(step, segment.queries - at);
    body(Block{segment.query + at, count, segment.key, causal ? at + count : segment.keys, at});
  }
}

/// exp(scale s - shift) of a row's first `valid` scores, zeros after; returns their sum.
template <class T>
float exponentiate(const float* scores, std::int64_t valid, std::int64_t n, float scale, float shift, T* out) {
  F8 total{};
  lanes::for_each(valid, [&](std::int64_t i, auto count) {
    F8 p = lanes::exp(lanes::fma(load(scores + i, count), splat(scale), splat(-shift)));
    if constexpr (!std::is_same_v<decltype(count), lanes::Full>) {
      for (int lane = count; lane < 8; ++lane) p[lane] = 0.0F;
    }
    total = total + p;
    store(out + i, p, count);
  });
  std::fill(out + valid, out + n, T(0.0F));
  return lanes::sum(total);
}

float row_max(const float* scores, std::int64_t n) {
  F8 best = splat(-INFINITY);
  std::int64_t i = 0;
  for (; i + 8 <= n; i += 8) best = lanes::max(load(scores + i, lanes::Full{}), best);
  float result = lanes::max(best);
  for (; i < n; ++i) result = scores[i] > result ? scores[i] : result;
  return result;
}

template <class T>
struct View {
  const T *q, *k, *v;
  std::int64_t q_stride, k_stride, v_stride;
  Shape shape;
  float scale;
};

template <class T>
View<T> view(const AttentionTensors& t) {
  const Shape shape{t.q.size(1), t.k.size(1), t.q.size(2)};
  return {data<T>(t.q),  data<T>(t.k),  data<T>(t.v), t.q.stride(0),
          t.k.stride(0), t.v.stride(0), shape,        1.0F / std::sqrt(static_cast<float>(shape.d))};
}

template <class T>
Matrix<T> head(const T* base, std::int64_t stride, std::int64_t row, std::int64_t index, std::int64_t d,
               bool transposed = false) {
  return {base + row * stride + index * d, stride, transposed};
}

template <class T>
struct ForwardScratch {
  float* scores;
  T* weights;   ///< the scores' own memory in fp32
  float* sums;  ///< [block, d]
};

template <class T>
ForwardScratch<T> forward_scratch(char* at, std::int64_t queries, std::int64_t keys) {
  const std::int64_t scores = Scratch::padded(block_rows(queries) * keys * 4);
  ForwardScratch<T> s{};
  s.scores = reinterpret_cast<float*>(at);
  s.weights = reinterpret_cast<T*>(kHalf<T> ? at + scores : at);
  s.sums = reinterpret_cast<float*>(at + scores + (kHalf<T> ? Scratch::padded(block_rows(queries) * keys * 2) : 0));
  return s;
}

template <class T>
void forward_block(const View<T>& in, const Block& block, std::int64_t index, bool causal,
                   const ForwardScratch<T>& scratch, T* out, float* lse) {
  const Shape& shape = in.shape;
  const std::int64_t d = shape.d, keys = block.keys, kv = index / shape.group();
  if (keys > 0) {
    gemm(block.queries, keys, d, 1.0F, head(in.q, in.q_stride, block.query, index, d),
         head(in.k, in.k_stride, block.key, kv, d, true), 0.0F, scratch.scores, keys);
  }
  float inverse[kQueryBlock];
  for (std::int64_t row = 0; row < block.queries; ++row) {
    const std::int64_t valid = causal ? block.offset + row + 1 : keys;
    const float* scores = scratch.scores + row * keys;
    const float top = valid > 0 ? row_max(scores, valid) * in.scale : 0.0F;
    const float total = exponentiate(scores, valid, keys, in.scale, top, scratch.weights + row * keys);
    inverse[row] = valid > 0 ? 1.0F / total : 0.0F;
    if (lse != nullptr) lse[(block.query + row) * shape.heads + index] = valid > 0 ? top + std::log(total) : 0.0F;
  }
  if (keys > 0) {
    gemm(block.queries, d, keys, 1.0F, Matrix<T>{scratch.weights, keys}, head(in.v, in.v_stride, block.key, kv, d),
         0.0F, scratch.sums, d);
  }
  for (std::int64_t row = 0; row < block.queries; ++row) {
    T* to = out + ((block.query + row) * shape.heads + index) * d;
    const float* from = scratch.sums + row * d;
    lanes::for_each(d, [&](std::int64_t i, auto count) {
      store(to + i, keys > 0 ? load(from + i, count) * inverse[row] : F8{}, count);
    });
  }
}

template <class T>
void forward(const AttentionTensors& tensors, Tensor& out, Tensor& lse) {
  const View<T> in = view<T>(tensors);
  std::vector<Block> blocks;
  for (const Block& segment : whole_segments(tensors.segments)) {
    for_query_blocks(segment, tensors.causal, [&](const Block& block) { blocks.push_back(block); });
  }
  const auto tasks = static_cast<std::int64_t>(blocks.size()) * in.shape.heads;
  const int workers = workers_for(tasks, operations(tensors.segments, in.shape));
  const std::int64_t bytes = worst(tensors.segments, [&](std::int64_t queries, std::int64_t keys) {
    return forward_bytes<T>(queries, keys, in.shape.d);
  });
  Scratch scratch(bytes * workers);
  char* base = scratch.take<char>(bytes * workers);
  for_tasks(tasks, workers, [&](std::int64_t task, int worker) {
    const Block& block = blocks[static_cast<std::size_t>(task / in.shape.heads)];
    forward_block(in, block, task % in.shape.heads, tensors.causal,
                  forward_scratch<T>(base + worker * bytes, block.queries, block.keys), data<T>(out), data<float>(lse));
  });
}

template <class T>
struct BackwardScratch {
  float *scores, *slopes;  ///< [block, keys] each: p, then dp
  T *weights, *dscores;    ///< rounded copies, or the same memory in fp32
  float* dq;               ///< [block, d]
  float *dk, *dv;          ///< bf16: [keys, d] sums over blocks and the group's heads
};

template <class T>
BackwardScratch<T> backward_scratch(char* at, std::int64_t queries, std::int64_t keys, std::int64_t d) {
  const std::int64_t q = block_rows(queries), wide = Scratch::padded(q * keys * 4),
                     half = Scratch::padded(q * keys * 2);
  BackwardScratch<T> s{};
  s.scores = reinterpret_cast<float*>(at);
  s.slopes = reinterpret_cast<float*>(at + wide);
  s.dq = reinterpret_cast<float*>(at + 2 * wide);
  char* rest = at + 2 * wide + Scratch::padded(q * d * 4);
  s.weights = reinterpret_cast<T*>(kHalf<T> ? rest : at);
  s.dscores = reinterpret_cast<T*>(kHalf<T> ? rest + half : at + wide);
  s.dk = reinterpret_cast<float*>(rest + 2 * half);
  s.dv = reinterpret_cast<float*>(rest + 2 * half + Scratch::padded(keys * d * 4));
  return s;
}

/// Everything a backward task reads and writes.
template <class T>
struct BackwardView {
  View<T> in;
  const T *grad, *out;
  const float* lse;
  T *dq, *dk, *dv;
  bool causal;
};

template <class T>
float dot(const T* a, const T* b, std::int64_t n) {
  F8 total{};
  lanes::for_each(
      n, [&](std::int64_t i, auto count) { total = lanes::fma(load(a + i, count), load(b + i, count), total); });
  return lanes::sum(total);
}

/// p and ds = p (dp - grad . out) scale for one row.
template <class T>
void softmax_row_backward(const BackwardView<T>& b, const Block& block, std::int64_t row, std::int64_t index,
                          const BackwardScratch<T>& scratch) {
  const Shape& shape = b.in.shape;
  const std::int64_t at = (block.query + row) * shape.heads + index, keys = block.keys;
  const std::int64_t valid = b.causal ? block.offset + row + 1 : keys;
  const float delta = dot(b.grad + at * shape.d, b.out + at * shape.d, shape.d);
  float *scores = scratch.scores + row * keys, *slopes = scratch.slopes + row * keys;
  exponentiate(scores, valid, keys, b.in.scale, b.lse[at], scores);
  T *weights = scratch.weights + row * keys, *dscores = scratch.dscores + row * keys;
  lanes::for_each(keys, [&](std::int64_t i, auto count) {
    const F8 p = load(scores + i, count);
    // Beyond `valid` p is 0 but dp may be anything, so it is masked and not only multiplied.
    const F8 ds = p == 0.0F ? F8{} : p * (load(slopes + i, count) - delta) * b.in.scale;
    if constexpr (kHalf<T>) store(weights + i, p, count);
    store(dscores + i, ds, count);
  });
}

template <class T>
void backward_block(const BackwardView<T>& b, const Block& block, std::int64_t index, const BackwardScratch<T>& scratch,
                    bool first, float* dk, float* dv, std::int64_t stride) {
  const View<T>& in = b.in;
  const Shape& shape = in.shape;
  const std::int64_t d = shape.d, keys = block.keys, kv = index / shape.group(), width = shape.heads * d;
  const Matrix<T> q = head(in.q, in.q_stride, block.query, index, d), grad = head(b.grad, width, block.query, index, d);
  gemm(block.queries, keys, d, 1.0F, q, head(in.k, in.k_stride, block.key, kv, d, true), 0.0F, scratch.scores, keys);
  gemm(block.queries, keys, d, 1.0F, grad, head(in.v, in.v_stride, block.key, kv, d, true), 0.0F, scratch.slopes, keys);
  for (std::int64_t row = 0; row < block.queries; ++row) softmax_row_backward(b, block, row, index, scratch);
  const float beta = first ? 0.0F : 1.0F;
  gemm(keys, d, block.queries, 1.0F, Matrix<T>{scratch.weights, keys, true}, grad, beta, dv, stride);
  gemm(keys, d, block.queries, 1.0F, Matrix<T>{scratch.dscores, keys, true}, q, beta, dk, stride);
  gemm(block.queries, d, keys, 1.0F, Matrix<T>{scratch.dscores, keys}, head(in.k, in.k_stride, block.key, kv, d), 0.0F,
       scratch.dq, d);
  for (std::int64_t row = 0; row < block.queries; ++row) {
    T* to = b.dq + (block.query + row) * width + index * d;
    const float* from = scratch.dq + row * d;
    lanes::for_each(d, [&](std::int64_t i, auto count) { store(to + i, load(from + i, count), count); });
  }
}

template <class T>
void clear_rows(T* base, std::int64_t stride, std::int64_t n, std::int64_t d) {
  for (std::int64_t row = 0; row < n; ++row) std::fill(base + row * stride, base + row * stride + d, T(0.0F));
}

/// One key head of one segment. fp32 sums into dk and dv themselves, bf16 into scratch.
template <class T>
void backward_head(const BackwardView<T>& b, const Block& segment, std::int64_t kv, char* at) {
  const Shape& shape = b.in.shape;
  const std::int64_t d = shape.d, width = shape.kv_heads * d;
  T *dk = b.dk + segment.key * width + kv * d, *dv = b.dv + segment.key * width + kv * d;
  if (segment.queries == 0 || segment.keys == 0) {
    clear_rows(dk, width, segment.keys, d);
    clear_rows(dv, width, segment.keys, d);
    for (std::int64_t j = 0; j < shape.group(); ++j) {
      clear_rows(b.dq + (segment.query * shape.heads + kv * shape.group() + j) * d, shape.heads * d, segment.queries,
                 d);
    }
    return;
  }
  const BackwardScratch<T> scratch = backward_scratch<T>(at, segment.queries, segment.keys, d);
  float *sum_k = scratch.dk, *sum_v = scratch.dv;
  std::int64_t stride = d;
  if constexpr (!kHalf<T>) {
    sum_k = dk;
    sum_v = dv;
    stride = width;
  }
  // A causal block covers fewer keys than the segment, so the sums start from zeros, not from a first block.
  clear_rows(sum_k, stride, segment.keys, d);
  clear_rows(sum_v, stride, segment.keys, d);
  for (std::int64_t j = 0; j < shape.group(); ++j) {
    for_query_blocks(segment, b.causal, [&](const Block& block) {
      backward_block(b, block, kv * shape.group() + j, scratch, false, sum_k, sum_v, stride);
    });
  }
  if constexpr (kHalf<T>) {
    for (std::int64_t row = 0; row < segment.keys; ++row) {
      lanes::for_each(d, [&](std::int64_t i, auto count) {
        store(dk + row * width + i, load(sum_k + row * d + i, count), count);
        store(dv + row * width + i, load(sum_v + row * d + i, count), count);
      });
    }
  }
}

template <class T>
void backward(const AttentionTensors& tensors, const Tensor& grad, const Tensor& out, const Tensor& lse, Tensor& dq,
              Tensor& dk, Tensor& dv) {
  const BackwardView<T> b{view<T>(tensors), data<T>(grad), data<T>(out), data<float>(lse),
                          data<T>(dq),      data<T>(dk),   data<T>(dv),  tensors.causal};
  const std::vector<Block> segments = whole_segments(tensors.segments);
  const Shape& shape = b.in.shape;
  const auto tasks = static_cast<std::int64_t>(segments.size()) * shape.kv_heads;
  const int workers = workers_for(tasks, 3 * operations(tensors.segments, shape));
  const std::int64_t bytes = worst(tensors.segments, [&](std::int64_t queries, std::int64_t keys) {
    return backward_bytes<T>(queries, keys, shape.d);
  });
  Scratch scratch(bytes * workers);
  char* base = scratch.take<char>(bytes * workers);
  for_tasks(tasks, workers, [&](std::int64_t task, int worker) {
    backward_head(b, segments[static_cast<std::size_t>(task / shape.kv_heads)], task % shape.kv_heads,
                  base + worker * bytes);
  });
}

}  // namespace

void CpuKernels::attention_forward(const AttentionTensors& tensors, Tensor& out, Tensor& lse) const {
  with_type(tensors.q.scalar_type(), [&](auto type) { forward<decltype(type)>(tensors, out, lse); });
}

void CpuKernels::attention_backward(const AttentionTensors& tensors, const Tensor& grad, const Tensor& out,
                                    const Tensor& lse, Tensor& dq, Tensor& dk, Tensor& dv) const {
  with_type(tensors.q.scalar_type(), [&](auto type) { backward<decltype(type)>(tensors, grad, out, lse, dq, dk, dv); });
}

}  // namespace plimsoll::model::cpu

namespace plimsoll::model {

std::int64_t attention_scratch_bytes(const Segments& segments, std::int64_t head_dim, at::ScalarType dtype,
                                     int threads) {
  std::int64_t most = 0;
  cpu::with_type(dtype, [&](auto type) {
    most = cpu::worst(segments, [&](std::int64_t queries, std::int64_t keys) {
      using T = decltype(type);
      return std::max(cpu::forward_bytes<T>(queries, keys, head_dim), cpu::backward_bytes<T>(queries, keys, head_dim));
    });
  });
  return most * std::max(threads, 1);
}

}  // namespace plimsoll::model
