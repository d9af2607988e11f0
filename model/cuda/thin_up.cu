// Thin products that write a wide matrix: n x r by r x width, several at once, with dropout on each, on top of a bias
// and of what was there. Also the transpose of an adapter's B.

#include <algorithm>

#include "model/cuda/dropout.cuh"

namespace plimsoll::model::cuda {
namespace {

constexpr int kRows = 4;        // of the output a block works on at once
constexpr int kThreads = 128;   // at most; each has eight columns
constexpr int kMostRanks = 64;  // of a pair that lie in shared memory at once

template <class T>
struct Pair {
  const T* left;
  const float* right;
  int rank;
  std::uint32_t site;
};

template <class T>
struct Up {
  Pair<T> pairs[kMostPairs];
  int count;
  Mask mask;
  const void* bias;
  bool bias_is_half;
  const float* addend;
  std::int64_t n, width;
};

template <bool kGrouped>
__device__ F8 load_bias(const void* bias, bool is_half, std::int64_t at, std::int64_t count) {
  return is_half ? load<kGrouped>(static_cast<const Half*>(bias) + at, count)
                 : load<kGrouped>(static_cast<const float*>(bias) + at, count);
}

/// The left factor of kRows rows and up to kMostRanks ranks, for the block.
template <class T>
__device__ void share_left(const Pair<T>& pair, std::int64_t n, std::int64_t first_row, int first_rank, int ranks,
                           float4* left) {
  __syncthreads();  // the last piece has been read
  for (int j = static_cast<int>(threadIdx.x); j < ranks; j += static_cast<int>(blockDim.x)) {
    const auto at = [&](int i) {
      return first_row + i < n ? widen(pair.left[(first_row + i) * pair.rank + first_rank + j]) : 0.0F;
    };
    left[j] = {at(0), at(1), at(2), at(3)};
  }
  __syncthreads();
}

/// sums = left right for kRows rows and eight columns.
template <bool kRound, bool kGrouped, class T>
__device__ void multiply(const Pair<T>& pair, const Up<T>& p, std::int64_t first_row, std::int64_t at, float4* left,
                         F8 (&sums)[kRows]) {
  for (int first = 0; first < pair.rank; first += kMostRanks) {
    const int ranks = min(kMostRanks, pair.rank - first);
    share_left(pair, p.n, first_row, first, ranks, left);
    for (int j = 0; j < ranks; ++j) {
      F8 right = load<kGrouped>(pair.right + (first + j) * p.width + at, p.width - at);
      const float4 l = left[j];
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float r = kRound ? rounded<T>(right.v[i]) : right.v[i];
        sums[0].v[i] = fmaf(l.x, r, sums[0].v[i]);
        sums[1].v[i] = fmaf(l.y, r, sums[1].v[i]);
        sums[2].v[i] = fmaf(l.z, r, sums[2].v[i]);
        sums[3].v[i] = fmaf(l.w, r, sums[3].v[i]);
      }
    }
  }
}

/// What a row holds before the products.
template <bool kGrouped, class T>
__device__ F8 begin_row(const Up<T>& p, std::int64_t row, std::int64_t at) {
  F8 v{};
  if (p.addend != nullptr && row < p.n) v = load<kGrouped>(p.addend + row * p.width + at, p.width - at);
  if (p.bias == nullptr) return v;
  const F8 bias = load_bias<kGrouped>(p.bias, p.bias_is_half, at, p.width - at);
#pragma unroll
  for (int i = 0; i < 8; ++i) v.v[i] += bias.v[i];
  return v;
}

/// Blocks of columns by turns of kRows rows. Threads beyond the width only help with left and with dropout's bits.
template <bool kRound, bool kGrouped, class T, class O>
__global__ void __launch_bounds__(kThreads) up_rows(Up<T> p, O* out) {
  __shared__ float4 left[kMostRanks];
  const std::int64_t at = 8 * (std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x);
  for (std::int64_t first = std::int64_t{blockIdx.y} * kRows; first < p.n; first += std::int64_t{gridDim.y} * kRows) {
    F8 total[kRows];
#pragma unroll
    for (int i = 0; i < kRows; ++i) total[i] = begin_row<kGrouped>(p, first + i, at);
    for (int pair = 0; pair < p.count; ++pair) {
      F8 sums[kRows] = {};
      multiply<kRound, kGrouped>(p.pairs[pair], p, first, at, left, sums);
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const std::int64_t row = min(first + i, p.n - 1);
        drop<1>(p.mask, p.pairs[pair].site, row, static_cast<std::uint32_t>(at / 8), sums[i]);
#pragma unroll
        for (int c = 0; c < 8; ++c) total[i].v[c] += sums[i].v[c];
      }
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (first + i < p.n) store<kGrouped>(out + (first + i) * p.width + at, total[i], p.width - at);
    }
  }
}

template <class T, class O>
void launch_up(const Up<T>& p, bool rounds, O* out) {
  constexpr std::int64_t kBlocks = 132 * 12;  // more only read the right factors again
  const auto threads = static_cast<unsigned>(std::min<std::int64_t>(kThreads, 32 * pieces_of(p.width, 256)));
  const std::int64_t across = pieces_of(p.width, 8 * std::int64_t{threads});
  const std::int64_t down = std::min(pieces_of(p.n, kRows), std::max<std::int64_t>(1, kBlocks / across));
  const dim3 blocks(grid_size(across), grid_size(down));
  bool even = grouped(p.width, out, p.bias, p.addend);
  for (int i = 0; i < p.count; ++i) even = even && grouped(p.width, p.pairs[i].right);
  with_flag(rounds, [&](auto round) {
    with_flag(even, [&](auto is_grouped) {
      up_rows<decltype(round)::value, decltype(is_grouped)::value><<<blocks, threads, 0, stream()>>>(p, out);
    });
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

template <class T>
Up<T> up_of(const ThinPair* pairs, int count, const Mask& mask, const Tensor& bias, const Tensor& addend,
            const Tensor& out) {
  Up<T> p{};
  for (int i = 0; i < count; ++i) {
    p.pairs[i] = {data<T>(pairs[i].left), data<float>(pairs[i].right), static_cast<int>(pairs[i].right.size(0)),
                  pairs[i].site};
  }
  p.count = count;
  p.mask = mask;
  p.bias = data<void>(bias);
  p.bias_is_half = bias.defined() && bias.scalar_type() == at::kBFloat16;
  p.addend = data<float>(addend);
  p.n = rows(out);
  p.width = columns(out);
  return p;
}

void up_once(const ThinPair* pairs, int count, bool rounds, const Mask& mask, const Tensor& bias, const Tensor& addend,
             const Tensor& out) {
  with_type(count == 0 ? at::kFloat : pairs[0].left.scalar_type(), [&](auto type) {
    with_type(out.scalar_type(), [&](auto out_type) {
      launch_up(up_of<decltype(type)>(pairs, count, mask, bias, addend, out), rounds, data<decltype(out_type)>(out));
    });
  });
}

constexpr int kTile = 32;

template <bool kFinite>
__global__ void __launch_bounds__(kTile * 8)
    transpose(const float* x, float scale, std::int64_t n, std::int64_t width, float* out) {
  __shared__ float tile[kTile][kTile + 1];
  const std::int64_t row = std::int64_t{blockIdx.x} * kTile, column = std::int64_t{blockIdx.y} * kTile;
  const unsigned i = threadIdx.x % kTile, first = threadIdx.x / kTile;
  for (unsigned j = first; j < kTile; j += 8) {
    if (row + j < n && column + i < width) tile[j][i] = x[(row + j) * width + column + i];
  }
  __syncthreads();
  for (unsigned j = first; j < kTile; j += 8) {
    const float v = tile[i][j];
    if (row + i < n && column + j < width) out[(column + j) * n + row + i] = kFinite && isinf(v) ? 0.0F : scale * v;
  }
}

template <bool kFinite>
void launch_transpose(const Tensor& x, float scale, const Tensor& out) {
  if (x.numel() == 0) return;
  const dim3 blocks(grid_size(pieces_of(x.size(0), kTile)), grid_size(pieces_of(x.size(1), kTile)));
  transpose<kFinite><<<blocks, kTile * 8, 0, stream()>>>(data<float>(x), scale, x.size(0), x.size(1), data<float>(out));
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace

void thin_up(const std::vector<ThinPair>& pairs, bool rounds, const Mask& mask, const Tensor& bias,
             const Tensor& addend, const Tensor& out) {
  if (out.numel() == 0) return;
  Scratch scratch;
  const auto count = static_cast<int>(pairs.size());
  int done = 0;
  Tensor base = addend;
  // Never seen in a model: more pairs than one launch takes. All but the last go into an fp32 sum.
  for (; count - done > kMostPairs; done += kMostPairs) {
    const Tensor sum = scratch.make(out.sizes(), at::kFloat, out);
    up_once(pairs.data() + done, kMostPairs, rounds, mask, {}, base, sum);
    base = sum;
  }
  up_once(pairs.data() + done, count - done, rounds, mask, bias, base, out);
}

void fill_bias(const Tensor& bias, const Tensor& out) { thin_up({}, false, {}, bias, {}, out); }

void transpose_scaled(const Tensor& b, float scale, const Tensor& out) { launch_transpose<false>(b, scale, out); }

void transpose_finite(const Tensor& x, const Tensor& out) { launch_transpose<true>(x, 1.0F, out); }

}  // namespace plimsoll::model::cuda
