// Attention without tensor cores, for fp32 and for the heads that flash attention refuses. Plain rather than fast: a
// warp takes one row of the result, each lane one of 32 keys (or queries) for the scores and every 32nd channel for the
// sums. Also where segments start, which both ways of attention read.

#include <algorithm>
#include <cmath>

#include "model/cuda/elements.cuh"
#include "model/cuda/kernels_cuda.h"

namespace plimsoll::model::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kMostChannels = 256;
constexpr int kHeld = kMostChannels / 32;  // channels of a lane

template <class T>
struct Exact {
  const T *q, *k, *v;
  std::int64_t q_stride, k_stride, v_stride;
  const int *query_starts, *key_starts;
  int segments, heads, group, d;
  std::int64_t n, m;
  float scale;
  bool causal;
};

template <class T>
struct ExactBackward {
  Exact<T> in;
  const T *grad, *out;
  const float* lse;
  float* delta;  ///< [n, heads]: grad . out
  T *dq, *dk, *dv;
};

/// The segment that holds a row: the last that starts at it or before.
__device__ int segment_of(const int* starts, int segments, std::int64_t row) {
  int low = 0, high = segments;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (starts[middle] <= row) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

template <class T>
__device__ void share_row(const T* from, int d, float* to) {
  for (int c = static_cast<int>(threadIdx.x % 32); c < d; c += 32) to[c] = widen(from[c]);
  __syncwarp();
}

template <class T>
__device__ float dot(const float* shared, const T* row, int d) {
  float sum = 0.0F;
  for (int c = 0; c < d; ++c) sum = fmaf(shared[c], widen(row[c]), sum);
  return sum;
}

/// sums += weight row, this lane's channels.
template <class T>
__device__ void add_scaled(float (&sums)[kHeld], float weight, const T* row, int d) {
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int c = static_cast<int>(threadIdx.x % 32) + 32 * i;
    if (c < d) sums[i] = fmaf(weight, widen(row[c]), sums[i]);
  }
}

template <class T>
__device__ void store_row(const float (&sums)[kHeld], float factor, int d, T* to) {
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int c = static_cast<int>(threadIdx.x % 32) + 32 * i;
    if (c < d) to[c] = narrow<T>(sums[i] * factor);
  }
}

/// Keys of a query: [first, last).
struct Range {
  std::int64_t first, last;
};

template <class T>
__device__ Range keys_of(const Exact<T>& p, std::int64_t row) {
  const int segment = segment_of(p.query_starts, p.segments, row);
  const std::int64_t first = p.key_starts[segment], last = p.key_starts[segment + 1];
  return {first, p.causal ? min(last, first + row - p.query_starts[segment] + 1) : last};
}

template <class T>
__device__ Range queries_of(const Exact<T>& p, std::int64_t key) {
  const int segment = segment_of(p.key_starts, p.segments, key);
  const std::int64_t first = p.query_starts[segment];
  return {p.causal ? first + key - p.key_starts[segment] : first, p.query_starts[segment + 1]};
}

template <class T>
__global__ void __launch_bounds__(32 * kWarps) exact_forward(Exact<T> p, T* out, float* lse) {
  __shared__ float shared[kWarps][kMostChannels];
  const std::int64_t row = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  const int head = static_cast<int>(blockIdx.y), kv = head / p.group, lane = static_cast<int>(threadIdx.x % 32);
  if (row >= p.n) return;
  float* q = shared[threadIdx.x / 32];
  share_row(p.q + row * p.q_stride + head * p.d, p.d, q);
  const Range keys = keys_of(p, row);
  float sums[kHeld] = {}, top = -INFINITY, total = 0.0F;
  for (std::int64_t first = keys.first; first < keys.last; first += 32) {
    const bool mine = first + lane < keys.last;
    const float score = mine ? p.scale * dot(q, p.k + (first + lane) * p.k_stride + kv * p.d, p.d) : -INFINITY;
    const float new_top = fmaxf(top, warp_max(score)), shrink = expf(top - new_top);
    const float weight = mine ? expf(score - new_top) : 0.0F;
    total = total * shrink + warp_sum(weight);
    top = new_top;
#pragma unroll
    for (float& sum : sums) sum *= shrink;
    for (int j = 0; j < 32 && first + j < keys.last; ++j) {
      add_scaled(sums, __shfl_sync(kWholeWarp, rounded<T>(weight), j), p.v + (first + j) * p.v_stride + kv * p.d, p.d);
    }
  }
  const bool any = keys.last > keys.first;
  store_row(sums, any ? 1.0F / total : 0.0F, p.d, out + (row * p.heads + head) * p.d);
  if (lse != nullptr && lane == 0) lse[row * p.heads + head] = any ? top + logf(total) : 0.0F;
}

/// p and ds = p (dp - delta) scale of one query and key.
struct Weights {
  float p, ds;
};

template <class T>
__device__ Weights weights(const Exact<T>& in, float score, float slope, float lse, float delta) {
  const float p = expf(in.scale * score - lse);
  return {rounded<T>(p), p == 0.0F ? 0.0F : rounded<T>(p * (slope - delta) * in.scale)};
}

template <class T>
__global__ void __launch_bounds__(32 * kWarps) exact_backward_queries(ExactBackward<T> b) {
  __shared__ float shared[kWarps][2][kMostChannels];
  const Exact<T>& p = b.in;
  const std::int64_t row = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  const int head = static_cast<int>(blockIdx.y), kv = head / p.group, lane = static_cast<int>(threadIdx.x % 32);
  if (row >= p.n) return;
  const std::int64_t at = row * p.heads + head;
  float *q = shared[threadIdx.x / 32][0], *grad = shared[threadIdx.x / 32][1];
  share_row(p.q + row * p.q_stride + head * p.d, p.d, q);
  share_row(b.grad + at * p.d, p.d, grad);
  float delta = 0.0F;
  for (int c = lane; c < p.d; c += 32) delta = fmaf(grad[c], widen(b.out[at * p.d + c]), delta);
  delta = warp_sum(delta);
  if (lane == 0) b.delta[at] = delta;
  const Range keys = keys_of(p, row);
  float sums[kHeld] = {};
  for (std::int64_t first = keys.first; first < keys.last; first += 32) {
    float ds = 0.0F;
    if (first + lane < keys.last) {
      const float score = dot(q, p.k + (first + lane) * p.k_stride + kv * p.d, p.d);
      const float slope = dot(grad, p.v + (first + lane) * p.v_stride + kv * p.d, p.d);
      ds = weights(p, score, slope, b.lse[at], delta).ds;
    }
    for (int j = 0; j < 32 && first + j < keys.last; ++j) {
      add_scaled(sums, __shfl_sync(kWholeWarp, ds, j), p.k + (first + j) * p.k_stride + kv * p.d, p.d);
    }
  }
  store_row(sums, 1.0F, p.d, b.dq + at * p.d);
}

/// After exact_backward_queries, whose delta it reads.
template <class T>
__global__ void __launch_bounds__(32 * kWarps) exact_backward_keys(ExactBackward<T> b) {
  __shared__ float shared[kWarps][2][kMostChannels];
  const Exact<T>& p = b.in;
  const std::int64_t row = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  const int kv = static_cast<int>(blockIdx.y), lane = static_cast<int>(threadIdx.x % 32);
  if (row >= p.m) return;
  float *k = shared[threadIdx.x / 32][0], *v = shared[threadIdx.x / 32][1];
  share_row(p.k + row * p.k_stride + kv * p.d, p.d, k);
  share_row(p.v + row * p.v_stride + kv * p.d, p.d, v);
  const Range queries = queries_of(p, row);
  float sums_k[kHeld] = {}, sums_v[kHeld] = {};
  for (int head = kv * p.group; head < (kv + 1) * p.group; ++head) {
    for (std::int64_t first = queries.first; first < queries.last; first += 32) {
      Weights mine{0.0F, 0.0F};
      if (first + lane < queries.last) {
        const std::int64_t at = (first + lane) * p.heads + head;
        const float score = dot(k, p.q + (first + lane) * p.q_stride + head * p.d, p.d);
        mine = weights(p, score, dot(v, b.grad + at * p.d, p.d), b.lse[at], b.delta[at]);
      }
      for (int j = 0; j < 32 && first + j < queries.last; ++j) {
        const float weight = __shfl_sync(kWholeWarp, mine.p, j), ds = __shfl_sync(kWholeWarp, mine.ds, j);
        add_scaled(sums_v, weight, b.grad + ((first + j) * p.heads + head) * p.d, p.d);
        add_scaled(sums_k, ds, p.q + (first + j) * p.q_stride + head * p.d, p.d);
      }
    }
  }
  const std::int64_t to = (row * (p.heads / p.group) + kv) * p.d;
  store_row(sums_k, 1.0F, p.d, b.dk + to);
  store_row(sums_v, 1.0F, p.d, b.dv + to);
}

template <class T>
Exact<T> exact_of(const AttentionTensors& t, Scratch& scratch) {
  const Tensor queries = starts_of(t.segments.queries, t.q, scratch), keys = starts_of(t.segments.keys, t.q, scratch);
  const std::int64_t heads = t.q.size(1), d = t.q.size(2);
  return {data<T>(t.q),
          data<T>(t.k),
          data<T>(t.v),
          t.q.stride(0),
          t.k.stride(0),
          t.v.stride(0),
          data<int>(queries),
          data<int>(keys),
          static_cast<int>(t.segments.queries.size()),
          static_cast<int>(heads),
          static_cast<int>(heads / t.k.size(1)),
          static_cast<int>(d),
          t.q.size(0),
          t.k.size(0),
          1.0F / std::sqrt(static_cast<float>(d)),
          t.causal};
}

dim3 blocks_of(std::int64_t rows, int heads) {
  return dim3(grid_size(pieces_of(rows, kWarps)), static_cast<unsigned>(heads));
}

/// As many numbers as fit in a kernel's arguments everywhere.
struct Numbers {
  static constexpr int kMost = 960;
  int values[kMost];
};

__global__ void write_numbers(Numbers numbers, int count, int* to) {
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) to[i] = numbers.values[i];
}

}  // namespace

Tensor starts_of(const std::vector<std::int64_t>& lengths, const Tensor& like, Scratch& scratch) {
  const auto count = static_cast<std::int64_t>(lengths.size()) + 1;
  const Tensor starts = scratch.make({count}, at::kInt, like);
  std::int64_t at = 0;
  for (std::int64_t done = 0; done < count; done += Numbers::kMost) {
    Numbers numbers{};
    const auto piece = static_cast<int>(std::min<std::int64_t>(Numbers::kMost, count - done));
    for (int i = 0; i < piece; ++i) {
      if (done + i > 0) at += lengths[static_cast<std::size_t>(done + i - 1)];
      TORCH_CHECK(at <= INT32_MAX, "attention over ", at, " rows");
      numbers.values[i] = static_cast<int>(at);
    }
    write_numbers<<<1, 256, 0, stream()>>>(numbers, piece, data<int>(starts) + done);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return starts;
}

void exact_attention_forward(const AttentionTensors& t, Tensor& out, Tensor& lse) {
  Scratch scratch;
  with_type(t.q.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const Exact<T> p = exact_of<T>(t, scratch);
    exact_forward<<<blocks_of(p.n, p.heads), 32 * kWarps, 0, stream()>>>(p, data<T>(out), data<float>(lse));
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void exact_attention_backward(const AttentionTensors& t, const Tensor& grad, const Tensor& out, const Tensor& lse,
                              Tensor& dq, Tensor& dk, Tensor& dv) {
  Scratch scratch;
  const Tensor delta = scratch.make(lse.sizes(), at::kFloat, lse);
  with_type(t.q.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const ExactBackward<T> b{exact_of<T>(t, scratch), data<T>(grad), data<T>(out), data<float>(lse),
                             data<float>(delta),      data<T>(dq),   data<T>(dk),  data<T>(dv)};
    exact_backward_queries<<<blocks_of(b.in.n, b.in.heads), 32 * kWarps, 0, stream()>>>(b);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
    exact_backward_keys<<<blocks_of(b.in.m, b.in.heads / b.in.group), 32 * kWarps, 0, stream()>>>(b);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
}

}  // namespace plimsoll::model::cuda
