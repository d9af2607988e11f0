// Kernels that move rows: gather, ordered scatter-add, place, and the rotary embedding.
//
// An index out of range cannot be reported without waiting for the device. What is gathered by one is not a number,
// which the check of the loss finds; what would be written by one is left out.

#include <algorithm>
#include <bit>

#include "model/cuda/elements.cuh"
#include "model/cuda/kernels_cuda.h"

namespace plimsoll::model::cuda {
namespace {

constexpr int kThreads = 128;

/// Rows of bytes copied word by word, the widest word that fits all addresses and the row length.
template <class Body>
void with_word(std::int64_t row_bytes, const void* a, const void* b, Body&& body) {
  const auto all = static_cast<std::uintptr_t>(row_bytes) | reinterpret_cast<std::uintptr_t>(a) |
                   reinterpret_cast<std::uintptr_t>(b);
  if (all % 16 == 0) {
    body(uint4{});
  } else if (all % 4 == 0) {
    body(std::uint32_t{});
  } else {
    body(std::uint16_t{});
  }
}

__device__ void make_nan(uint4& word) { word = {~0U, ~0U, ~0U, ~0U}; }
__device__ void make_nan(std::uint32_t& word) { word = ~0U; }
__device__ void make_nan(std::uint16_t& word) { word = 0xFFFF; }

__device__ bool inside(std::int64_t index, std::int64_t limit) { return index >= 0 && index < limit; }

/// A block for each row: threads over its words.
template <class Word>
__global__ void __launch_bounds__(kThreads)
    gather(const Word* table, const std::int64_t* indices, std::int64_t limit, std::int64_t words, Word* out) {
  const std::int64_t row = blockIdx.x, index = indices[row];
  const bool valid = inside(index, limit);
  for (std::int64_t i = threadIdx.x; i < words; i += kThreads) {
    Word word;
    make_nan(word);
    if (valid) word = table[index * words + i];
    out[row * words + i] = word;
  }
}

/// Does any of indices [first, last) equal `index`? The same answer in all threads of the block.
__device__ bool block_finds(const std::int64_t* indices, std::int64_t first, std::int64_t last, std::int64_t index) {
  bool found = false;
  for (std::int64_t i = first + threadIdx.x; i < last; i += kThreads) found = found || indices[i] == index;
  return __syncthreads_or(found) != 0;
}

/// A block for each of `rows`. Of several with one index the last is written, as if they came one after another.
template <class Word>
__global__ void __launch_bounds__(kThreads)
    place(const Word* rows, const std::int64_t* indices, std::int64_t limit, std::int64_t words, Word* out) {
  const std::int64_t row = blockIdx.x, index = indices[row];
  if (!inside(index, limit)) return;
  if (rows != nullptr && block_finds(indices, row + 1, gridDim.x, index)) return;
  for (std::int64_t i = threadIdx.x; i < words; i += kThreads) {
    out[index * words + i] = rows == nullptr ? Word{} : rows[row * words + i];
  }
}

template <bool kGrouped, class T>
__device__ void add_row(const T* from, std::int64_t width, T* to) {
  for (std::int64_t at = 8 * std::int64_t{threadIdx.x}; at < width; at += 8 * kThreads) {
    F8 v = load<kGrouped>(to + at, width - at);
    const F8 more = load<kGrouped>(from + at, width - at);
#pragma unroll
    for (int i = 0; i < 8; ++i) v.v[i] += more.v[i];
    store<kGrouped>(to + at, v, width - at);
  }
}

/// A block for each of `rows`; that of an index's first row adds all its rows, in order and rounding each time, as one
/// thread on the CPU does. The others leave.
template <bool kGrouped, class T>
__global__ void __launch_bounds__(kThreads)
    scatter_add(const T* rows, const std::int64_t* indices, std::int64_t limit, std::int64_t width, T* out) {
  const std::int64_t first = blockIdx.x, n = gridDim.x, index = indices[first];
  if (!inside(index, limit) || block_finds(indices, 0, first, index)) return;
  __shared__ unsigned matches[kThreads / 32];
  for (std::int64_t begin = first; begin < n; begin += kThreads) {
    const std::int64_t mine = begin + threadIdx.x;
    const unsigned found = __ballot_sync(kWholeWarp, mine < n && indices[mine] == index);
    __syncthreads();  // the last round's matches have been read
    if (threadIdx.x % 32 == 0) matches[threadIdx.x / 32] = found;
    __syncthreads();
    for (int warp = 0; warp < kThreads / 32; ++warp) {
      for (unsigned left = matches[warp]; left != 0; left &= left - 1) {
        const std::int64_t row = begin + 32 * warp + __ffs(static_cast<int>(left)) - 1;
        add_row<kGrouped>(rows + row * width, width, out + index * width);
      }
    }
  }
}

template <class X, class C>
struct Rotary {
  const X* x;
  std::int64_t stride;
  const C *cos, *sin;
  std::int64_t n;
  int heads, half;
  float sign;  ///< -1 backward: the transpose has the other signs, and its sines swap
  X* out;
};

/// kWide neighbouring pairs (i, i + half) of a head.
template <int kWide, class X, class C>
__device__ void rotate(const Rotary<X, C>& p, const X* x, const C* cos, const C* sin, X* out) {
  constexpr bool kGrouped = kWide == 8;
  const F8 a = load<kGrouped>(x, kWide), b = load<kGrouped>(x + p.half, kWide);
  const F8 c1 = load<kGrouped>(cos, kWide), c2 = load<kGrouped>(cos + p.half, kWide);
  F8 s1 = load<kGrouped>(sin, kWide), s2 = load<kGrouped>(sin + p.half, kWide);
  F8 first, second;
#pragma unroll
  for (int i = 0; i < kWide; ++i) {
    const float up = p.sign * (p.sign < 0.0F ? s2.v[i] : s1.v[i]), down = p.sign * (p.sign < 0.0F ? s1.v[i] : s2.v[i]);
    first.v[i] = a.v[i] * c1.v[i] - b.v[i] * up;
    second.v[i] = b.v[i] * c2.v[i] + a.v[i] * down;
  }
  store<kGrouped>(out, first, kWide);
  store<kGrouped>(out + p.half, second, kWide);
}

/// blockDim.x threads on a row of all heads, blockDim.y rows a block.
template <int kWide, class X, class C>
__global__ void __launch_bounds__(kThreads) rotate_rows(Rotary<X, C> p) {
  const std::int64_t row = std::int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  if (row >= p.n) return;
  const int a_head = p.half / kWide, d = 2 * p.half;
  for (int item = static_cast<int>(threadIdx.x); item < p.heads * a_head; item += static_cast<int>(blockDim.x)) {
    const int head = item / a_head, i = item % a_head * kWide;
    rotate<kWide>(p, p.x + row * p.stride + head * d + i, p.cos + row * d + i, p.sin + row * d + i,
                  p.out + (row * p.heads + head) * d + i);
  }
}

template <int kWide, class X, class C>
void launch_rotary(const Rotary<X, C>& p) {
  const auto items = static_cast<unsigned>(std::max(1, p.heads * p.half / kWide));
  const unsigned on_a_row = std::min<unsigned>(kThreads, std::bit_ceil(items));
  const dim3 threads(on_a_row, kThreads / on_a_row);
  rotate_rows<kWide><<<grid_size(pieces_of(p.n, threads.y)), threads, 0, stream()>>>(p);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace

void CudaKernels::rotary(const Tensor& x, const Tensor& cos, const Tensor& sin, bool backward, Tensor& out) const {
  if (x.numel() == 0) return;
  with_type(x.scalar_type(), [&](auto type) {
    using X = decltype(type);
    with_type(cos.scalar_type(), [&](auto table_type) {
      using C = decltype(table_type);
      const Rotary<X, C> p{data<X>(x),
                           x.stride(0),
                           data<C>(cos),
                           data<C>(sin),
                           x.size(0),
                           static_cast<int>(x.size(1)),
                           static_cast<int>(x.size(2) / 2),
                           backward ? -1.0F : 1.0F,
                           data<X>(out)};
      if (p.stride % 8 == 0 && grouped(p.half, p.x, p.cos, p.sin, p.out)) {
        launch_rotary<8>(p);
      } else {
        launch_rotary<1>(p);
      }
    });
  });
}

void CudaKernels::gather_rows(const Tensor& table, const Tensor& indices, Tensor& out) const {
  if (out.numel() == 0) return;
  const std::int64_t bytes = columns(out) * static_cast<std::int64_t>(out.element_size());
  with_word(bytes, table.const_data_ptr(), out.const_data_ptr(), [&](auto word) {
    using Word = decltype(word);
    gather<<<grid_size(indices.numel()), kThreads, 0, stream()>>>(
        data<Word>(table), data<std::int64_t>(indices), table.size(0), bytes / static_cast<std::int64_t>(sizeof(Word)),
        data<Word>(out));
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void CudaKernels::scatter_add_rows(const Tensor& rows_in, const Tensor& indices, Tensor& out) const {
  if (out.numel() == 0) return;
  C10_CUDA_CHECK(cudaMemsetAsync(out.mutable_data_ptr(), 0, out.nbytes(), stream()));
  if (indices.numel() == 0) return;
  const std::int64_t width = columns(out);
  with_type(out.scalar_type(), [&](auto type) {
    using T = decltype(type);
    with_flag(grouped(width, data<T>(rows_in), data<T>(out)), [&](auto is_grouped) {
      scatter_add<decltype(is_grouped)::value><<<grid_size(indices.numel()), kThreads, 0, stream()>>>(
          data<T>(rows_in), data<std::int64_t>(indices), out.size(0), width, data<T>(out));
    });
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void CudaKernels::place_rows(const Tensor& x, const Tensor& indices, const Tensor& rows_in, Tensor& out) const {
  if (out.numel() == 0) return;
  C10_CUDA_CHECK(
      cudaMemcpyAsync(out.mutable_data_ptr(), x.const_data_ptr(), out.nbytes(), cudaMemcpyDeviceToDevice, stream()));
  if (indices.numel() == 0) return;
  const std::int64_t bytes = columns(out) * static_cast<std::int64_t>(out.element_size());
  with_word(bytes, data<void>(rows_in), out.const_data_ptr(), [&](auto word) {
    using Word = decltype(word);
    place<<<grid_size(indices.numel()), kThreads, 0, stream()>>>(
        data<const Word>(rows_in), data<std::int64_t>(indices), out.size(0),
        bytes / static_cast<std::int64_t>(sizeof(Word)), data<Word>(out));
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace plimsoll::model::cuda
