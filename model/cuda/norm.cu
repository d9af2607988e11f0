// RMS norm, and sums over rows. A team of threads takes a row and keeps it in registers between the two passes.

#include <algorithm>
#include <cmath>

#include "model/cuda/elements.cuh"
#include "model/cuda/kernels_cuda.h"

namespace plimsoll::model::cuda {
namespace {

constexpr int kTeamThreads = 256;  // most threads on a row; narrow rows share a block of so many / 2

/// Sum over a team: blockDim.x threads, which are one warp or the whole block. The same in every thread.
__device__ float team_sum(float x) {
  x = warp_sum(x);
  if (blockDim.x == 32) return x;
  __shared__ float parts[kTeamThreads / 32];
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
  __syncthreads();
  float total = 0.0F;
  for (unsigned i = 0; i < blockDim.x / 32; ++i) total += parts[i];
  return total;
}

/// A row's groups of eight that one thread of a team works on: the first kHeld are kept, further ones read again.
/// body(held slot or -1, column, how many of eight).
template <int kHeld, class Body>
__device__ void for_team_groups(std::int64_t width, Body&& body) {
  const std::int64_t step = 8 * std::int64_t{blockDim.x};
  std::int64_t at = 8 * std::int64_t{threadIdx.x};
#pragma unroll
  for (int slot = 0; slot < kHeld; ++slot, at += step) {
    if (at < width) body(slot, at, width - at);
  }
  for (; at < width; at += step) body(-1, at, width - at);
}

template <class T>
struct Norm {
  const T *x, *weight;
  std::int64_t n, width;
  float eps;
  T* out;
  float* rstd;
};

template <int kHeld, bool kGrouped, class T>
__global__ void __launch_bounds__(kTeamThreads) norm_rows(Norm<T> p) {
  const std::int64_t row = std::int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  if (row >= p.n) return;
  const T* x = p.x + row * p.width;
  F8 held[kHeld];
  float squares = 0.0F;
  for_team_groups<kHeld>(p.width, [&](int slot, std::int64_t at, std::int64_t count) {
    const F8 v = load<kGrouped>(x + at, count);
#pragma unroll
    for (const float e : v.v) squares = fmaf(e, e, squares);
    if (slot >= 0) held[slot] = v;
  });
  const float r = 1.0F / sqrtf(team_sum(squares) / static_cast<float>(p.width) + p.eps);
  if (p.rstd != nullptr && threadIdx.x == 0) p.rstd[row] = r;
  for_team_groups<kHeld>(p.width, [&](int slot, std::int64_t at, std::int64_t count) {
    F8 v = slot >= 0 ? held[slot] : load<kGrouped>(x + at, count);
#pragma unroll
    for (float& e : v.v) e *= r;
    if (p.weight != nullptr) {
      const F8 w = load<kGrouped>(p.weight + at, count);
#pragma unroll
      for (int i = 0; i < 8; ++i) v.v[i] = rounded<T>(v.v[i]) * w.v[i];  // Qwen's order: cast, then weigh
    }
    store<kGrouped>(p.out + row * p.width + at, v, count);
  });
}

template <class T>
struct NormBackward {
  const T *grad, *x, *weight;
  const float* rstd;
  const T* residual;
  std::int64_t n, width;
  T* dx;  ///< may be grad
};

template <bool kGrouped, class T>
__device__ F8 weighted(const T* grad, const T* weight, std::int64_t at, std::int64_t count) {
  F8 g = load<kGrouped>(grad + at, count);
  if (weight == nullptr) return g;
  const F8 w = load<kGrouped>(weight + at, count);
#pragma unroll
  for (int i = 0; i < 8; ++i) g.v[i] *= w.v[i];
  return g;
}

template <int kHeld, bool kGrouped, class T>
__global__ void __launch_bounds__(kTeamThreads) norm_rows_backward(NormBackward<T> p) {
  const std::int64_t row = std::int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  if (row >= p.n) return;
  const T *grad = p.grad + row * p.width, *x = p.x + row * p.width;
  F8 held_g[kHeld], held_x[kHeld];
  float dots = 0.0F;
  for_team_groups<kHeld>(p.width, [&](int slot, std::int64_t at, std::int64_t count) {
    const F8 g = weighted<kGrouped>(grad, p.weight, at, count), v = load<kGrouped>(x + at, count);
#pragma unroll
    for (int i = 0; i < 8; ++i) dots = fmaf(g.v[i], v.v[i], dots);
    if (slot >= 0) held_g[slot] = g, held_x[slot] = v;
  });
  const float r = p.rstd[row];
  const float mean = team_sum(dots) * r * r / static_cast<float>(p.width);
  for_team_groups<kHeld>(p.width, [&](int slot, std::int64_t at, std::int64_t count) {
    F8 g = slot >= 0 ? held_g[slot] : weighted<kGrouped>(grad, p.weight, at, count);
    const F8 v = slot >= 0 ? held_x[slot] : load<kGrouped>(x + at, count);
#pragma unroll
    for (int i = 0; i < 8; ++i) g.v[i] = (g.v[i] - v.v[i] * mean) * r;
    if (p.residual != nullptr) {
      const F8 more = load<kGrouped>(p.residual + row * p.width + at, count);
#pragma unroll
      for (int i = 0; i < 8; ++i) g.v[i] += more.v[i];
    }
    store<kGrouped>(p.dx + row * p.width + at, g, count);
  });
}

/// Teams for rows of this width: one warp each for narrow rows, four to a block, else a block.
struct Teams {
  dim3 blocks, threads;
  int held;  ///< groups of eight a thread keeps
};

Teams teams(std::int64_t n, std::int64_t width) {
  const std::int64_t groups = pieces_of(width, 8);
  if (groups <= 64) return {dim3(grid_size(pieces_of(n, 4))), dim3(32, 4), groups <= 32 ? 1 : 2};
  const std::int64_t threads = std::min<std::int64_t>(kTeamThreads, 32 * pieces_of(groups, 64));
  return {dim3(grid_size(n)), dim3(static_cast<unsigned>(threads)), groups <= threads ? 1 : 2};
}

template <class Body>
void with_held(int held, Body&& body) {
  if (held == 1) {
    body(std::integral_constant<int, 1>{});
  } else {
    body(std::integral_constant<int, 2>{});
  }
}

/// Sums over rows: a block takes 256 columns and a piece of the rows, each warp every eighth row of the piece.
constexpr int kSumWarps = 8, kSumColumns = 256;

template <bool kGrouped, class T>
struct PlainTerm {
  const T* x;
  std::int64_t width;
  __device__ F8 operator()(std::int64_t row, std::int64_t at, std::int64_t count) const {
    return load<kGrouped>(x + row * width + at, count);
  }
};

/// Of the gradient of a norm's weight.
template <bool kGrouped, class T>
struct NormTerm {
  const T *grad, *x;
  const float* rstd;
  std::int64_t width;
  __device__ F8 operator()(std::int64_t row, std::int64_t at, std::int64_t count) const {
    F8 g = load<kGrouped>(grad + row * width + at, count);
    const F8 v = load<kGrouped>(x + row * width + at, count);
    const float r = rstd[row];
#pragma unroll
    for (int i = 0; i < 8; ++i) g.v[i] = g.v[i] * v.v[i] * r;
    return g;
  }
};

template <class Term, class O>
__global__ void __launch_bounds__(32 * kSumWarps)
    sum_pieces(Term term, std::int64_t n, std::int64_t width, std::int64_t piece_rows, O* out) {
  const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const std::int64_t at = std::int64_t{blockIdx.x} * kSumColumns + 8 * lane;
  const std::int64_t first = blockIdx.y * piece_rows, last = min(n, first + piece_rows);
  F8 total{};
  if (at < width) {
    for (std::int64_t row = first + warp; row < last; row += kSumWarps) {
      const F8 v = term(row, at, width - at);
#pragma unroll
      for (int i = 0; i < 8; ++i) total.v[i] += v.v[i];
    }
  }
  __shared__ float parts[kSumWarps][8][32];  // lanes last: no two of a warp share a bank
#pragma unroll
  for (int i = 0; i < 8; ++i) parts[warp][i][lane] = total.v[i];
  __syncthreads();
  const unsigned column = threadIdx.x;
  if (std::int64_t{blockIdx.x} * kSumColumns + column >= width) return;
  float sum = 0.0F;
#pragma unroll
  for (int i = 0; i < kSumWarps; ++i) sum += parts[i][column % 8][column / 8];
  out[blockIdx.y * width + std::int64_t{blockIdx.x} * kSumColumns + column] = narrow<O>(sum);
}

template <class Term, class O>
void launch_sum(const Term& term, std::int64_t n, std::int64_t width, std::int64_t pieces, O* out) {
  const dim3 blocks(grid_size(pieces_of(width, kSumColumns)), grid_size(pieces));
  sum_pieces<<<blocks, 32 * kSumWarps, 0, stream()>>>(term, n, width, pieces_of(n, pieces), out);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

/// out[c] = sum over rows of term. Long columns in two steps, so that many blocks work.
template <class Term>
void sum_terms(const Term& term, std::int64_t n, std::int64_t width, const Tensor& out) {
  const std::int64_t pieces = pieces_of_sum(n);
  with_type(out.scalar_type(), [&](auto type) {
    using O = decltype(type);
    if (pieces == 1) return launch_sum(term, n, width, 1, data<O>(out));
    Scratch scratch;
    const Tensor parts = scratch.make({pieces, width}, at::kFloat, out);
    launch_sum(term, n, width, pieces, data<float>(parts));
    launch_sum(PlainTerm<false, float>{data<float>(parts), width}, pieces, width, 1, data<O>(out));
  });
}

template <class T>
void norm_weight_gradient(const Tensor& grad, const Tensor& x, const Tensor& rstd, const Tensor& dweight) {
  const std::int64_t n = rows(x), width = columns(x);
  const T *g = data<T>(grad), *v = data<T>(x);
  with_flag(grouped(width, g, v), [&](auto is_grouped) {
    sum_terms(NormTerm<decltype(is_grouped)::value, T>{g, v, data<float>(rstd), width}, n, width, dweight);
  });
}

}  // namespace

void CudaKernels::rms_norm_forward(const Tensor& x, const Tensor& weight, double eps, Tensor& out, Tensor& rstd) const {
  const std::int64_t n = rows(x), width = columns(x);
  if (n == 0) return;
  const Teams t = teams(n, width);
  with_type(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    with_flag(grouped(width, data<T>(x), data<T>(weight), data<T>(out)), [&](auto is_grouped) {
      constexpr bool kGrouped = decltype(is_grouped)::value;
      const Norm<T> p{data<T>(x), data<T>(weight), n, width, static_cast<float>(eps), data<T>(out), data<float>(rstd)};
      with_held(t.held, [&](auto held) {
        norm_rows<decltype(held)::value, kGrouped, T><<<t.blocks, t.threads, 0, stream()>>>(p);
      });
    });
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void CudaKernels::rms_norm_backward(const Tensor& grad, const Tensor& x, const Tensor& weight, const Tensor& rstd,
                                    const Tensor& residual, Tensor& dx, Tensor& dweight) const {
  const std::int64_t n = rows(x), width = columns(x);
  with_type(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    if (dweight.defined()) norm_weight_gradient<T>(grad, x, rstd, dweight);  // before dx, which may overwrite grad
    if (!dx.defined() || n == 0) return;
    const Teams t = teams(n, width);
    const NormBackward<T> p{data<T>(grad),     data<T>(x), data<T>(weight), data<float>(rstd),
                            data<T>(residual), n,          width,           data<T>(dx)};
    with_flag(grouped(width, p.grad, p.x, p.weight, p.residual, p.dx), [&](auto is_grouped) {
      with_held(t.held, [&](auto held) {
        norm_rows_backward<decltype(held)::value, decltype(is_grouped)::value, T>
            <<<t.blocks, t.threads, 0, stream()>>>(p);
      });
    });
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
}

void CudaKernels::sum_rows(const Tensor& x, Tensor& out) const {
  const std::int64_t n = rows(x), width = columns(x);
  if (width == 0) return;
  with_type(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    with_flag(grouped(width, data<T>(x)), [&](auto is_grouped) {
      sum_terms(PlainTerm<decltype(is_grouped)::value, T>{data<T>(x), width}, n, width, out);
    });
  });
}

}  // namespace plimsoll::model::cuda
