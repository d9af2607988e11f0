// The action expert's own operators (model/expert_kernels.h). They read and write each element once or twice and add
// without atomics: a warp takes a row where a row is summed; where columns are, a lane takes a column, and the warps of
// its block take the rows by turns.

#include <algorithm>
#include <cmath>
#include <numeric>

#include "model/cuda/elements.cuh"
#include "model/cuda/kernels_cuda.h"

namespace plimsoll::model::cuda {
namespace {

constexpr int kRowWarps = 4;         // rows of a block, a warp each
constexpr int kColumnThreads = 128;  // columns of a block that sums none of them
constexpr int kSumColumns = 32;      // columns of a block that does, a lane each
constexpr unsigned kSumWarps = 8;    // its warps, each of which takes every eighth row
constexpr unsigned kSumThreads = kSumColumns * kSumWarps;
constexpr float kNormEps = 1e-6F;

__device__ std::int64_t row_of_warp() { return std::int64_t{blockIdx.x} * kRowWarps + threadIdx.x / 32; }
__device__ std::int64_t column_of_thread() { return std::int64_t{blockIdx.x} * kColumnThreads + threadIdx.x; }
__device__ std::int64_t column_of_lane() { return std::int64_t{blockIdx.x} * kSumColumns + threadIdx.x; }

/// term(column) over a row's columns, the same on all lanes.
template <class Term>
__device__ float sum_of_row(std::int64_t width, Term term) {
  float sum = 0.0F;
  for (std::int64_t c = threadIdx.x % 32; c < width; c += 32) sum += term(c);
  return warp_sum(sum);
}

/// x of a block's warps, summed lane by lane in the warps' order, in the first warp; 0 in the others. All threads of
/// the block call it.
__device__ float sum_of_warps(float x) {
  __shared__ float parts[kSumWarps][kSumColumns];
  __syncthreads();  // the last sum has been read
  parts[threadIdx.y][threadIdx.x] = x;
  __syncthreads();
  float sum = 0.0F;
  if (threadIdx.y == 0) {
    for (unsigned warp = 0; warp < kSumWarps; ++warp) sum += parts[warp][threadIdx.x];
  }
  return sum;
}

dim3 warps_for(std::int64_t rows) { return dim3(grid_size(pieces_of(rows, kRowWarps))); }
/// So many columns a block across, so many rows or groups down, by turns where there are more than a grid has.
dim3 blocks_for(std::int64_t width, int columns, std::int64_t down) {
  constexpr std::int64_t kMostDown = 65535;
  return dim3(grid_size(pieces_of(width, columns)), static_cast<unsigned>(std::min(down, kMostDown)));
}
dim3 columns_for(std::int64_t width, std::int64_t down) { return blocks_for(width, kColumnThreads, down); }
dim3 sums_for(std::int64_t width, std::int64_t down) { return blocks_for(width, kSumColumns, down); }
dim3 sum_threads() { return dim3(kSumColumns, kSumWarps); }

// --- modulated_norm

template <class T>
struct ModulatedNorm {
  const float* x;
  const T *shift, *scale;
  std::int64_t rows, width, group;  ///< rows of a group share shift and scale
};

template <class T>
__global__ void __launch_bounds__(32 * kRowWarps) modulated_norm(ModulatedNorm<T> p, T* y, float* inverse) {
  const std::int64_t row = row_of_warp();
  if (row >= p.rows) return;
  const float* x = p.x + row * p.width;
  const T *shift = p.shift + row / p.group * p.width, *scale = p.scale + row / p.group * p.width;
  const float squares = sum_of_row(p.width, [&](std::int64_t c) { return x[c] * x[c]; });
  const float r = 1.0F / sqrtf(squares / static_cast<float>(p.width) + kNormEps);
  if (threadIdx.x % 32 == 0) inverse[row] = r;
  for (std::int64_t c = threadIdx.x % 32; c < p.width; c += 32)
    y[row * p.width + c] = narrow<T>(x[c] * r * (1.0F + widen(scale[c])) + widen(shift[c]));
}

template <class T>
__global__ void __launch_bounds__(32 * kRowWarps)
    modulated_norm_input(ModulatedNorm<T> p, const T* grad, const float* inverse, float* dx) {
  const std::int64_t row = row_of_warp();
  if (row >= p.rows) return;
  const float* x = p.x + row * p.width;
  const T *g = grad + row * p.width, *scale = p.scale + row / p.group * p.width;
  const float r = inverse[row];
  const auto d_hat = [&](std::int64_t c) { return widen(g[c]) * (1.0F + widen(scale[c])); };
  const float mean =
      sum_of_row(p.width, [&](std::int64_t c) { return d_hat(c) * x[c] * r; }) / static_cast<float>(p.width);
  for (std::int64_t c = threadIdx.x % 32; c < p.width; c += 32)
    dx[row * p.width + c] = r * (d_hat(c) - x[c] * r * mean);
}

/// Gradients of shift and scale: a block 32 columns of a group.
template <class T>
__global__ void __launch_bounds__(kSumThreads)
    modulated_norm_columns(ModulatedNorm<T> p, const T* grad, const float* inverse, T* dshift, T* dscale) {
  const std::int64_t column = column_of_lane();
  for (std::int64_t group = blockIdx.y; group < p.rows / p.group; group += gridDim.y) {
    float shift = 0.0F, scale = 0.0F;
    const std::int64_t end = column < p.width ? (group + 1) * p.group : 0;
    for (std::int64_t row = group * p.group + threadIdx.y; row < end; row += kSumWarps) {
      const float g = widen(grad[row * p.width + column]);
      shift += g;
      scale += g * (p.x[row * p.width + column] * inverse[row]);
    }
    shift = sum_of_warps(shift);
    scale = sum_of_warps(scale);
    if (threadIdx.y != 0 || column >= p.width) continue;
    dshift[group * p.width + column] = narrow<T>(shift);
    dscale[group * p.width + column] = narrow<T>(scale);
  }
}

template <class T>
ModulatedNorm<T> norm_of(const Tensor& x, const Tensor& shift, const Tensor& scale) {
  return {data<float>(x), data<T>(shift), data<T>(scale), rows(x), columns(x), rows(x) / scale.size(0)};
}

// --- gated_residual

template <class T>
__global__ void __launch_bounds__(kColumnThreads)
    gated_residual(const float* x, const T* y, const T* gate, std::int64_t rows, std::int64_t width, std::int64_t group,
                   float* out) {
  const std::int64_t column = column_of_thread();
  if (column >= width) return;
  for (std::int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    const std::int64_t at = row * width + column;
    const float y_value = widen(y[at]);
    out[at] = x[at] + (gate == nullptr ? y_value : widen(gate[row / group * width + column]) * y_value);
  }
}

template <class T>
__global__ void __launch_bounds__(kSumThreads)
    gated_residual_gradient(const float* grad, const T* y, const T* gate, std::int64_t groups, std::int64_t width,
                            std::int64_t group_rows, T* dy, T* dgate) {
  const std::int64_t column = column_of_lane();
  const bool inside = column < width;
  for (std::int64_t group = blockIdx.y; group < groups; group += gridDim.y) {
    const float a = inside ? widen(gate[group * width + column]) : 0.0F;
    float total = 0.0F;
    const std::int64_t end = inside ? (group + 1) * group_rows : 0;
    for (std::int64_t row = group * group_rows + threadIdx.y; row < end; row += kSumWarps) {
      const float g = grad[row * width + column];
      dy[row * width + column] = narrow<T>(g * a);
      total += g * widen(y[row * width + column]);
    }
    total = sum_of_warps(total);
    if (threadIdx.y == 0 && inside) dgate[group * width + column] = narrow<T>(total);
  }
}

// --- embed_rows

struct Embedded {
  std::int64_t groups, n, m, width, draws;
  __device__ std::int64_t first() const { return n - m; }
};

template <class T>
__global__ void __launch_bounds__(kColumnThreads)
    embed_rows(const T* source, const T* lead, const float* positions, Embedded s, float* out) {
  const std::int64_t column = column_of_thread();
  if (column >= s.width) return;
  for (std::int64_t row = blockIdx.y; row < s.groups * s.n; row += gridDim.y) {
    const std::int64_t group = row / s.n, place = row % s.n;
    const T* from =
        place < s.first() ? lead + group / s.draws * s.width : source + (group * s.m + place - s.first()) * s.width;
    out[row * s.width + column] = widen(from[column]) + positions[place * s.width + column];
  }
}

template <class T>
__global__ void __launch_bounds__(kColumnThreads) embed_rows_source(const float* grad, Embedded s, T* drows) {
  const std::int64_t column = column_of_thread();
  if (column >= s.width) return;
  for (std::int64_t row = blockIdx.y; row < s.groups * s.m; row += gridDim.y) {
    const std::int64_t from = row / s.m * s.n + s.first() + row % s.m;
    drows[row * s.width + column] = narrow<T>(grad[from * s.width + column]);
  }
}

template <class T>
__global__ void __launch_bounds__(kColumnThreads) embed_rows_lead(const float* grad, Embedded s, T* dlead) {
  const std::int64_t column = column_of_thread();
  if (column >= s.width) return;
  for (std::int64_t sample = blockIdx.y; sample < s.groups / s.draws; sample += gridDim.y) {
    float total = 0.0F;
    for (std::int64_t draw = 0; draw < s.draws; ++draw)
      total += grad[(sample * s.draws + draw) * s.n * s.width + column];
    dlead[sample * s.width + column] = narrow<T>(total);
  }
}

__global__ void __launch_bounds__(kSumThreads) embed_rows_positions(const float* grad, Embedded s, float* dpositions) {
  const std::int64_t column = column_of_lane();
  for (std::int64_t place = blockIdx.y; place < s.n; place += gridDim.y) {
    float total = 0.0F;
    const std::int64_t end = column < s.width ? s.groups : 0;
    for (std::int64_t group = threadIdx.y; group < end; group += kSumWarps)
      total += grad[(group * s.n + place) * s.width + column];
    total = sum_of_warps(total);
    if (threadIdx.y == 0 && column < s.width) dpositions[place * s.width + column] = total;
  }
}

Embedded embedded_of(const Tensor& out, const Tensor& source, std::int64_t n, std::int64_t draws) {
  const std::int64_t groups = rows(out) / n;
  return {groups, n, rows(source) / groups, columns(out), draws};
}

// --- embed_context

/// One of the context's sources.
template <class T>
struct Source {
  const T* values;
  const std::int64_t* index;  ///< null: row = place in the source
  std::int64_t count;
  __device__ std::int64_t row(std::int64_t i) const { return index == nullptr ? i : index[i]; }
};

struct Positions {
  const std::int64_t* of_row;
  std::int64_t table_rows, width;
};

/// Segments of the context's rows within which positions never fall.
struct PositionSegments {
  const int* starts;  ///< and where the last one ends; null: each row is a segment
  std::int64_t count;
  __device__ std::int64_t start(std::int64_t i) const { return starts == nullptr ? i : starts[i]; }
};

template <class T>
__global__ void __launch_bounds__(32 * kRowWarps)
    embed_context(Source<T> source, const float* table, Positions p, T* out, float* inverse) {
  const std::int64_t i = row_of_warp();
  if (i >= source.count) return;
  const std::int64_t row = source.row(i), position = p.of_row[row];
  const bool there = position >= 0 && position < p.table_rows;
  const T* x = source.values + i * p.width;
  const float* add = table + (there ? position : 0) * p.width;
  const auto sum = [&](std::int64_t c) { return there ? widen(x[c]) + add[c] : NAN; };
  const float squares = sum_of_row(p.width, [&](std::int64_t c) { return sum(c) * sum(c); });
  const float r = 1.0F / sqrtf(squares / static_cast<float>(p.width) + kNormEps);
  if (threadIdx.x % 32 == 0) inverse[row] = r;
  for (std::int64_t c = threadIdx.x % 32; c < p.width; c += 32) out[row * p.width + c] = narrow<T>(sum(c) * r);
}

/// Gradient of a source, and each context row's mean of gradient times result, which the table's gradient reads.
template <class T>
__global__ void __launch_bounds__(32 * kRowWarps)
    embed_context_source(const T* grad, const T* out, const float* inverse, Source<T> source, std::int64_t width,
                         T* dsource, float* means) {
  const std::int64_t i = row_of_warp();
  if (i >= source.count) return;
  const std::int64_t row = source.row(i);
  const T *g = grad + row * width, *y = out + row * width;
  const float mean =
      sum_of_row(width, [&](std::int64_t c) { return widen(g[c]) * widen(y[c]); }) / static_cast<float>(width);
  if (threadIdx.x % 32 == 0) means[row] = mean;
  for (std::int64_t c = threadIdx.x % 32; c < width; c += 32)
    dsource[i * width + c] = narrow<T>(inverse[row] * (widen(g[c]) - widen(y[c]) * mean));
}

/// The first row of [first, end), where positions never fall, that has at least this one; `end` where none has.
__device__ std::int64_t first_from(const std::int64_t* of_row, std::int64_t first, std::int64_t end,
                                   std::int64_t position) {
  while (first < end) {
    const std::int64_t middle = first + (end - first) / 2;
    if (of_row[middle] < position) {
      first = middle + 1;
    } else {
      end = middle;
    }
  }
  return first;
}

template <class T>
struct ContextGradient {
  const T *grad, *out;
  const float *inverse, *means;
  std::int64_t width;
  __device__ float at(std::int64_t row, std::int64_t column) const {
    const std::int64_t place = row * width + column;
    return inverse[row] * (widen(grad[place]) - widen(out[place]) * means[row]);
  }
};

/// A block 32 columns of a position. Each thread looks for the position in one segment; then the warps take the rows
/// that were found by turns, in order.
template <class T>
__global__ void __launch_bounds__(kSumThreads)
    embed_context_table(ContextGradient<T> gradient, PositionSegments segments, Positions p, float* dtable) {
  __shared__ std::int64_t firsts[kSumThreads], ends[kSumThreads];
  const unsigned thread = threadIdx.y * kSumColumns + threadIdx.x;
  const std::int64_t column = column_of_lane();
  for (std::int64_t position = blockIdx.y; position < p.table_rows; position += gridDim.y) {
    float total = 0.0F;
    unsigned found = 0;  // rows before those of a segment: whose turn it is
    for (std::int64_t begin = 0; begin < segments.count; begin += kSumThreads) {
      const auto here = static_cast<unsigned>(min(std::int64_t{kSumThreads}, segments.count - begin));
      __syncthreads();  // the last segments' rows have been read
      if (thread < here) {
        const std::int64_t end = segments.start(begin + thread + 1);
        firsts[thread] = first_from(p.of_row, segments.start(begin + thread), end, position);
        ends[thread] = first_from(p.of_row, firsts[thread], end, position + 1);
      }
      __syncthreads();
      for (unsigned i = 0; i < here; ++i) {
        const std::int64_t first = firsts[i], end = column < p.width ? ends[i] : first;
        for (std::int64_t row = first + (threadIdx.y - found) % kSumWarps; row < end; row += kSumWarps)
          total += gradient.at(row, column);
        found += static_cast<unsigned>(ends[i] - first);
      }
    }
    total = sum_of_warps(total);
    if (threadIdx.y == 0 && column < p.width) dtable[position * p.width + column] = total;
  }
}

template <class T>
Source<T> source_of(const Tensor& values, const Tensor& index) {
  return {data<T>(values), data<std::int64_t>(index), rows(values)};
}

/// Undefined where nothing is known of the rows' order.
Tensor segment_starts(const ContextRows& of, const Tensor& grad, Scratch& scratch) {
  if (of.lengths.empty()) return {};
  const std::int64_t rows_said = std::accumulate(of.lengths.begin(), of.lengths.end(), std::int64_t{0});
  TORCH_CHECK(rows_said == rows(grad), "a context of ", rows(grad), " rows in samples of ", rows_said);
  return starts_of(of.lengths, grad, scratch);
}

}  // namespace

void CudaKernels::modulated_norm_forward(const Tensor& x, const Tensor& shift, const Tensor& scale, Tensor& y,
                                         Tensor& inverse) const {
  if (x.numel() == 0) return;
  with_type(shift.scalar_type(), [&](auto type) {
    using T = decltype(type);
    modulated_norm<<<warps_for(rows(x)), 32 * kRowWarps, 0, stream()>>>(norm_of<T>(x, shift, scale), data<T>(y),
                                                                        data<float>(inverse));
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void CudaKernels::modulated_norm_backward(const Tensor& grad, const Tensor& x, const Tensor& scale,
                                          const Tensor& inverse, Tensor& dx, Tensor& dshift, Tensor& dscale) const {
  if (x.numel() == 0) return;
  with_type(scale.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const ModulatedNorm<T> p = norm_of<T>(x, {}, scale);
    modulated_norm_input<<<warps_for(p.rows), 32 * kRowWarps, 0, stream()>>>(p, data<T>(grad), data<float>(inverse),
                                                                             data<float>(dx));
    C10_CUDA_KERNEL_LAUNCH_CHECK();
    modulated_norm_columns<<<sums_for(p.width, scale.size(0)), sum_threads(), 0, stream()>>>(
        p, data<T>(grad), data<float>(inverse), data<T>(dshift), data<T>(dscale));
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
}

void CudaKernels::gated_residual_forward(const Tensor& x, const Tensor& y, const Tensor& gate, Tensor& out) const {
  if (x.numel() == 0) return;
  const std::int64_t group = gate.defined() ? rows(x) / gate.size(0) : 1;
  with_type(y.scalar_type(), [&](auto type) {
    using T = decltype(type);
    gated_residual<<<columns_for(columns(x), rows(x)), kColumnThreads, 0, stream()>>>(
        data<float>(x), data<T>(y), data<T>(gate), rows(x), columns(x), group, data<float>(out));
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void CudaKernels::gated_residual_backward(const Tensor& grad, const Tensor& y, const Tensor& gate, Tensor& dy,
                                          Tensor& dgate) const {
  if (y.numel() == 0) return;
  with_type(y.scalar_type(), [&](auto type) {
    using T = decltype(type);
    gated_residual_gradient<<<sums_for(columns(y), gate.size(0)), sum_threads(), 0, stream()>>>(
        data<float>(grad), data<T>(y), data<T>(gate), gate.size(0), columns(y), rows(y) / gate.size(0), data<T>(dy),
        data<T>(dgate));
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void CudaKernels::embed_rows_forward(const Tensor& source, const Tensor& lead, const Tensor& positions,
                                     std::int64_t draws, Tensor& out) const {
  if (out.numel() == 0) return;
  const Embedded s = embedded_of(out, source, positions.size(0), draws);
  with_type(source.scalar_type(), [&](auto type) {
    using T = decltype(type);
    embed_rows<<<columns_for(s.width, s.groups * s.n), kColumnThreads, 0, stream()>>>(
        data<T>(source), data<T>(lead), data<float>(positions), s, data<float>(out));
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void CudaKernels::embed_rows_backward(const Tensor& grad, std::int64_t draws, Tensor& drows, Tensor& dlead,
                                      Tensor& dpositions) const {
  if (grad.numel() == 0) return;
  const Embedded s = embedded_of(grad, drows, dpositions.size(0), draws);
  const float* g = data<float>(grad);
  with_type(drows.scalar_type(), [&](auto type) {
    using T = decltype(type);
    embed_rows_source<<<columns_for(s.width, s.groups * s.m), kColumnThreads, 0, stream()>>>(g, s, data<T>(drows));
    C10_CUDA_KERNEL_LAUNCH_CHECK();
    if (!dlead.defined()) return;
    embed_rows_lead<<<columns_for(s.width, s.groups / s.draws), kColumnThreads, 0, stream()>>>(g, s, data<T>(dlead));
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
  embed_rows_positions<<<sums_for(s.width, s.n), sum_threads(), 0, stream()>>>(g, s, data<float>(dpositions));
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void CudaKernels::embed_context_forward(const Tensor& tokens, const Tensor& sensors, const Tensor& table,
                                        const ContextRows& of, Tensor& out, Tensor& inverse) const {
  const Positions p{data<std::int64_t>(of.positions), table.size(0), columns(out)};
  with_type(out.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const auto fill = [&](const Tensor& values, const Tensor& index) {
      if (!values.defined() || values.numel() == 0) return;
      embed_context<<<warps_for(rows(values)), 32 * kRowWarps, 0, stream()>>>(
          source_of<T>(values, index), data<float>(table), p, data<T>(out), data<float>(inverse));
      C10_CUDA_KERNEL_LAUNCH_CHECK();
    };
    fill(tokens, of.token_rows);
    fill(sensors, of.sensor_rows);
  });
}

void CudaKernels::embed_context_backward(const Tensor& grad, const Tensor& out, const Tensor& inverse,
                                         const ContextRows& of, Tensor& dtokens, Tensor& dsensors,
                                         Tensor& dtable) const {
  const Positions p{data<std::int64_t>(of.positions), dtable.size(0), columns(grad)};
  Scratch scratch;
  const Tensor means = scratch.make({rows(grad)}, at::kFloat, grad);
  const Tensor starts = segment_starts(of, grad, scratch);
  const PositionSegments segments{data<int>(starts), starts.defined() ? starts.size(0) - 1 : rows(grad)};
  with_type(grad.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const auto fill = [&](const Tensor& gradient, const Tensor& index) {
      if (!gradient.defined() || gradient.numel() == 0) return;
      embed_context_source<<<warps_for(rows(gradient)), 32 * kRowWarps, 0, stream()>>>(
          data<T>(grad), data<T>(out), data<float>(inverse), source_of<T>(gradient, index), p.width, data<T>(gradient),
          data<float>(means));
      C10_CUDA_KERNEL_LAUNCH_CHECK();
    };
    fill(dtokens, of.token_rows);
    fill(dsensors, of.sensor_rows);
    embed_context_table<<<sums_for(p.width, p.table_rows), sum_threads(), 0, stream()>>>(
        ContextGradient<T>{data<T>(grad), data<T>(out), data<float>(inverse), data<float>(means), p.width}, segments, p,
        data<float>(dtable));
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
}

}  // namespace plimsoll::model::cuda
