// The gradient of an adapter's A: r x n by n x width with dropout drawn again. Blocks take columns and a piece of the
// rows; the pieces' sums are added in order by a second kernel.

#include <algorithm>

#include "model/cuda/dropout.cuh"
#include "model/cuda/mma.cuh"

namespace plimsoll::model::cuda {
namespace {

template <class X, class T>
struct Gradient {
  const T* left;
  const X* x;
  Mask mask;
  std::uint32_t site;
  std::int64_t n, width;
  int rank;
  float* out;  ///< [pieces, rank, width]
};

constexpr int kWarps = 4;
constexpr int kTileRows = 16;                   // of x, one step of the tensor cores
constexpr int kTileColumns = kGradientColumns;  // eight threads of a warp side by side, eight channels each

/// The pair (row, row + 1) of one rank; zeros outside.
__device__ inline std::uint32_t left_pair(const Half* left, std::int64_t n, int ranks, std::int64_t row, int rank) {
  if (rank >= ranks) return 0;
  const auto bits = [&](std::int64_t r) -> std::uint32_t {
    return r < n ? __bfloat16_as_ushort(left[r * ranks + rank]) : 0U;
  };
  return bits(row) | bits(row + 1) << 16;
}

/// Channel j of two rows, as the tensor cores want it: the first row in the low half.
__device__ inline std::uint32_t column_pair(const Packed8& first, const Packed8& second, int j) {
  return __byte_perm(first.pair[j / 2], second.pair[j / 2], j % 2 == 0 ? 0x5410 : 0x7632);
}

/// One thread's four rows of a tile: 2t, 2t + 1, 2t + 8 and 2t + 9, after dropout. The threads of a row's four groups
/// of channels are four lanes apart.
template <bool kGrouped, class X>
__device__ void load_rows(const Gradient<X, Half>& p, std::int64_t first, std::int64_t at, Packed8 (&to)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const std::int64_t row = first + i % 2 + 8 * (i / 2);
    const bool there = row < p.n;
    F8 v = load<kGrouped>(p.x + (there ? row : 0) * p.width + at, there ? p.width - at : 0);
    drop<4>(p.mask, p.site, there ? row : 0, static_cast<std::uint32_t>(at / 8), v);
    to[i] = packed(v);
  }
}

/// Adds the warps' sums of one rank half (0: ranks 0 to 7, 1: 8 to 15) in order and writes them.
template <class X>
__device__ void write_half(const Gradient<X, Half>& p, const float (&sums)[8][4], int half, int first_rank) {
  __shared__ float parts[kWarps][8][kTileColumns + 2];
  const unsigned warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  __syncthreads();  // the other half has been read
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    parts[warp][g][8 * (2 * t) + j] = sums[j][2 * half];
    parts[warp][g][8 * (2 * t + 1) + j] = sums[j][2 * half + 1];
  }
  __syncthreads();
  for (unsigned at = threadIdx.x; at < 8 * kTileColumns; at += 32 * kWarps) {
    const int rank = first_rank + 8 * half + static_cast<int>(at / kTileColumns);
    const std::int64_t column = std::int64_t{blockIdx.x} * kTileColumns + at % kTileColumns;
    if (rank >= p.rank || column >= p.width) continue;
    float sum = 0.0F;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += parts[w][at / kTileColumns][at % kTileColumns];
    p.out[(std::int64_t{blockIdx.y} * p.rank + rank) * p.width + column] = sum;
  }
}

/// Sixteen ranks by 64 channels a block, over every tile of rows whose turn it is.
template <bool kGrouped, class X>
__global__ void __launch_bounds__(32 * kWarps) gradient_on_tensor_cores(Gradient<X, Half> p) {
  const unsigned warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  const std::int64_t at = std::int64_t{blockIdx.x} * kTileColumns + 8 * g;
  const int first_rank = static_cast<int>(blockIdx.z) * 16, rank = first_rank + static_cast<int>(g);
  float sums[8][4] = {};
  const std::int64_t step = std::int64_t{gridDim.y} * kWarps * kTileRows;
  for (std::int64_t tile = (std::int64_t{blockIdx.y} * kWarps + warp) * kTileRows; tile < p.n; tile += step) {
    const std::int64_t first = tile + 2 * t;
    Packed8 x[4];
    load_rows<kGrouped>(p, first, at, x);
    const Left16 left{{left_pair(p.left, p.n, p.rank, first, rank), left_pair(p.left, p.n, p.rank, first, rank + 8),
                       left_pair(p.left, p.n, p.rank, first + 8, rank),
                       left_pair(p.left, p.n, p.rank, first + 8, rank + 8)}};
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      multiply_add(sums[j], left, column_pair(x[0], x[1], j), column_pair(x[2], x[3], j));
    }
  }
  write_half(p, sums, 0, first_rank);
  if (first_rank + 8 < p.rank) write_half(p, sums, 1, first_rank);
}

/// Eight ranks by 256 channels a block, each warp every fourth row of the piece.
template <bool kGrouped, class X>
__global__ void __launch_bounds__(32 * kWarps) gradient_in_fp32(Gradient<X, float> p) {
  const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const std::int64_t at = std::int64_t{blockIdx.x} * 256 + 8 * lane;
  const int first_rank = static_cast<int>(blockIdx.z) * 8, ranks = min(8, p.rank - first_rank);
  float sums[8][8] = {};
  for (std::int64_t row = std::int64_t{blockIdx.y} * kWarps + warp; row < p.n; row += gridDim.y * kWarps) {
    F8 v = load<kGrouped>(p.x + row * p.width + at, p.width - at);
    drop<1>(p.mask, p.site, row, static_cast<std::uint32_t>(at / 8), v);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float l = j < ranks ? p.left[row * p.rank + first_rank + j] : 0.0F;
#pragma unroll
      for (int i = 0; i < 8; ++i) sums[j][i] = fmaf(l, v.v[i], sums[j][i]);
    }
  }
  __shared__ float parts[kWarps][8][32];
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    if (j >= ranks) continue;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 8; ++i) parts[warp][i][lane] = sums[j][i];
    __syncthreads();
    for (unsigned c = threadIdx.x; c < 256; c += 32 * kWarps) {
      const std::int64_t column = std::int64_t{blockIdx.x} * 256 + c;
      float sum = 0.0F;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) sum += parts[w][c % 8][c / 8];
      if (column < p.width) p.out[(std::int64_t{blockIdx.y} * p.rank + first_rank + j) * p.width + column] = sum;
    }
  }
}

__global__ void __launch_bounds__(256) add_pieces(const float* from, int pieces, std::int64_t n, float* out) {
  const std::int64_t at = std::int64_t{blockIdx.x} * 256 + threadIdx.x;
  if (at >= n) return;
  float sum = 0.0F;
  for (int i = 0; i < pieces; ++i) sum += from[i * n + at];
  out[at] = sum;
}

template <bool kGrouped, class X>
void launch_gradient(const Gradient<X, Half>& p, unsigned pieces) {
  const dim3 blocks(grid_size(pieces_of(p.width, kTileColumns)), pieces, grid_size(pieces_of(p.rank, 16)));
  gradient_on_tensor_cores<kGrouped><<<blocks, 32 * kWarps, 0, stream()>>>(p);
}
template <bool kGrouped, class X>
void launch_gradient(const Gradient<X, float>& p, unsigned pieces) {
  const dim3 blocks(grid_size(pieces_of(p.width, 256)), pieces, grid_size(pieces_of(p.rank, 8)));
  gradient_in_fp32<kGrouped><<<blocks, 32 * kWarps, 0, stream()>>>(p);
}

template <class X, class T>
void run_gradient(const Tensor& left, const Tensor& x, const Mask& mask, std::uint32_t site, const Tensor& out) {
  const std::int64_t n = rows(x), width = columns(x), pieces = gradient_pieces(n, width);
  Scratch scratch;
  const Tensor parts = pieces == 1 ? out : scratch.make({pieces, out.size(0), width}, at::kFloat, out);
  const Gradient<X, T> p{data<T>(left),     data<X>(x), mask, site, n, width, static_cast<int>(out.size(0)),
                         data<float>(parts)};
  with_flag(grouped(width, p.x),
            [&](auto is_grouped) { launch_gradient<decltype(is_grouped)::value>(p, grid_size(pieces)); });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  if (pieces == 1) return;
  add_pieces<<<grid_size(pieces_of(out.numel(), 256)), 256, 0, stream()>>>(p.out, static_cast<int>(pieces), out.numel(),
                                                                           data<float>(out));
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace

void thin_gradient(const Tensor& left, const Tensor& x, const Mask& mask, std::uint32_t site, const Tensor& out) {
  if (out.numel() == 0) return;
  with_type(x.scalar_type(), [&](auto type) {
    with_type(left.scalar_type(),
              [&](auto left_type) { run_gradient<decltype(type), decltype(left_type)>(left, x, mask, site, out); });
  });
}

}  // namespace plimsoll::model::cuda
