// Thin products that read a wide matrix: n x width by width x r. bf16 on tensor cores, fp32 on plain ones.
//
// The order of a sum over channels is free as long as both operands keep it, so the tensor cores' operands need no
// shuffling: what they take for columns 2t, 2t + 1, 2t + 8, 2t + 9 of thread t are four neighbouring channels, and a
// thread reads its eight channels of two steps in one go.

#include "model/cuda/dropout.cuh"
#include "model/cuda/mma.cuh"

namespace plimsoll::model::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kRows = 16;  // of x a block works on, all its warps on the same

template <class X>
struct Down {
  const X* x;
  const float* weights;
  Mask mask;
  std::uint32_t site;
  float scale;
  std::int64_t n, width;
  int rank;
};

/// Eight channels of one row after dropout; rows past the end are zeros.
template <int kStep, bool kGrouped, class X>
__device__ F8 dropped_row(const X* x, const Mask& mask, std::uint32_t site, std::int64_t n, std::int64_t width,
                          std::int64_t row, std::int64_t at) {
  const std::int64_t count = row < n ? width - at : 0;
  F8 v = load<kGrouped>(x + (row < n ? row : 0) * width + at, count);
  drop<kStep>(mask, site, row < n ? row : 0, static_cast<std::uint32_t>(at / 8), v);
  return v;
}

/// Adds the warps' sums in order and writes them. sums: each warp's kTiles fragments.
template <int kTiles, class X>
__device__ void write_sums(const Down<X>& p, const float (&sums)[kTiles][4], std::int64_t first_row, int first_rank,
                           Half* out) {
  __shared__ float parts[kWarps][kTiles][4][32];
  const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int i = 0; i < 4; ++i) parts[warp][tile][i][lane] = sums[tile][i];
  }
  __syncthreads();
  for (int at = static_cast<int>(threadIdx.x); at < kTiles * 128; at += 32 * kWarps) {
    const int tile = at / 128, i = at / 32 % 4, from = at % 32;
    float sum = 0.0F;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += parts[w][tile][i][from];
    const std::int64_t row = first_row + from / 4 + (i < 2 ? 0 : 8);
    const int rank = first_rank + 8 * tile + 2 * (from % 4) + i % 2;
    if (row < p.n && rank < p.rank) out[row * p.rank + rank] = __float2bfloat16_rn(p.scale * sum);
  }
}

/// kTiles tiles of eight ranks.
template <int kTiles, bool kGrouped, class X>
__global__ void __launch_bounds__(32 * kWarps) down_on_tensor_cores(Down<X> p, Half* out) {
  const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const std::int64_t first_row = std::int64_t{blockIdx.x} * kRows, row = first_row + lane / 4;
  const int first_rank = static_cast<int>(blockIdx.y) * 8 * kTiles;
  float sums[kTiles][4] = {};
  for (std::int64_t at = 32 * warp + 8 * (lane % 4); at - 8 * (lane % 4) < p.width; at += 32 * kWarps) {
    const Packed8 upper = packed(dropped_row<1, kGrouped>(p.x, p.mask, p.site, p.n, p.width, row, at));
    const Packed8 lower = packed(dropped_row<1, kGrouped>(p.x, p.mask, p.site, p.n, p.width, row + 8, at));
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const int rank = first_rank + 8 * tile + static_cast<int>(lane / 4);
      const bool there = rank < p.rank;
      const Packed8 w = packed(load<kGrouped>(p.weights + (there ? rank : 0) * p.width + at, there ? p.width - at : 0));
      multiply_add(sums[tile], {{upper.pair[0], lower.pair[0], upper.pair[1], lower.pair[1]}}, w.pair[0], w.pair[1]);
      multiply_add(sums[tile], {{upper.pair[2], lower.pair[2], upper.pair[3], lower.pair[3]}}, w.pair[2], w.pair[3]);
    }
  }
  write_sums(p, sums, first_row, first_rank, out);
}

/// A warp on a row, eight ranks at a time.
template <bool kGrouped, class X>
__global__ void __launch_bounds__(128) down_in_fp32(Down<X> p, float* out) {
  const unsigned lane = threadIdx.x % 32;
  const std::int64_t row = std::int64_t{blockIdx.x} * 4 + threadIdx.x / 32;
  const int first_rank = static_cast<int>(blockIdx.y) * 8, ranks = min(8, p.rank - first_rank);
  if (row >= p.n) return;
  float sums[8] = {};
  for (std::int64_t at = 8 * lane; at - 8 * lane < p.width; at += 256) {
    const F8 v = dropped_row<1, kGrouped>(p.x, p.mask, p.site, p.n, p.width, row, at);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      if (j >= ranks) continue;
      const F8 w = load<kGrouped>(p.weights + (first_rank + j) * p.width + at, p.width - at);
#pragma unroll
      for (int i = 0; i < 8; ++i) sums[j] = fmaf(v.v[i], w.v[i], sums[j]);
    }
  }
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const float sum = warp_sum(sums[j]);
    if (lane == 0 && j < ranks) out[row * p.rank + first_rank + j] = p.scale * sum;
  }
}

template <bool kGrouped, class X>
void launch_down(const Down<X>& p, float* out) {
  const dim3 blocks(grid_size(pieces_of(p.n, 4)), grid_size(pieces_of(p.rank, 8)));
  down_in_fp32<kGrouped><<<blocks, 128, 0, stream()>>>(p, out);
}

template <bool kGrouped, class X>
void launch_down(const Down<X>& p, Half* out) {
  const auto run = [&](auto tiles) {
    constexpr int kTiles = decltype(tiles)::value;
    const dim3 blocks(grid_size(pieces_of(p.n, kRows)), grid_size(pieces_of(p.rank, 8 * kTiles)));
    down_on_tensor_cores<kTiles, kGrouped><<<blocks, 32 * kWarps, 0, stream()>>>(p, out);
  };
  if (p.rank <= 8) {
    run(std::integral_constant<int, 1>{});
  } else if (p.rank <= 16) {
    run(std::integral_constant<int, 2>{});
  } else {
    run(std::integral_constant<int, 4>{});
  }
}

}  // namespace

void thin_down(const Tensor& x, const Tensor& weights, float scale, const Mask& mask, std::uint32_t site,
               const Tensor& out) {
  const std::int64_t n = rows(x), width = columns(x);
  if (n == 0) return;
  with_type(x.scalar_type(), [&](auto type) {
    using X = decltype(type);
    const Down<X> p{data<X>(x), data<float>(weights), mask, site, scale, n, width, static_cast<int>(weights.size(0))};
    with_flag(grouped(width, p.x, p.weights), [&](auto is_grouped) {
      with_type(out.scalar_type(),
                [&](auto out_type) { launch_down<decltype(is_grouped)::value>(p, data<decltype(out_type)>(out)); });
    });
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace plimsoll::model::cuda
