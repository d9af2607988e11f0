// CPU kernels that go element by element or row by row.

#include <cmath>

#include "core/error.h"
#include "model/kernels_cpu.h"
#include "model/kernels_lanes.h"

namespace plimsoll::model::cpu {
namespace {

using lanes::F8;
using lanes::load;
using lanes::store;

constexpr std::int64_t kPiece = 4096;  // elements that one element-wise task covers

/// body(i, count) over n elements in eights, threaded when it pays; `cost` operations an element.
template <class Body>
void for_elements(std::int64_t n, std::int64_t cost, Body&& body) {
  for_rows((n + kPiece - 1) / kPiece, kPiece * cost, [&](std::int64_t first, std::int64_t last) {
    const std::int64_t begin = first * kPiece, end = std::min(n, last * kPiece);
    lanes::for_each(end - begin, [&](std::int64_t i, auto count) { body(begin + i, count); });
  });
}

F8 gelu_erf(F8 x) { return 0.5F * x * (1.0F + lanes::erf(x * 0.70710678F)); }
F8 gelu_erf_slope(F8 x) {
  return 0.5F * (1.0F + lanes::erf(x * 0.70710678F)) + x * 0.39894228F * lanes::exp(-0.5F * x * x);
}
F8 gelu_tanh_inner(F8 x) { return 0.79788456F * (x + 0.044715F * x * x * x); }
F8 gelu_tanh(F8 x) { return 0.5F * x * (1.0F + lanes::tanh(gelu_tanh_inner(x))); }
F8 gelu_tanh_slope(F8 x) {
  const F8 t = lanes::tanh(gelu_tanh_inner(x));
  return 0.5F * (1.0F + t) + 0.5F * x * (1.0F - t * t) * 0.79788456F * (1.0F + 3.0F * 0.044715F * x * x);
}
F8 silu(F8 x) { return x * lanes::sigmoid(x); }
F8 silu_slope(F8 x) {
  const F8 s = lanes::sigmoid(x);
  return s * (1.0F + x * (1.0F - s));
}

template <class Body>
void with_activation(Activation kind, Body&& body) {
  switch (kind) {
    case Activation::kGeluErf:
      return body(gelu_erf, gelu_erf_slope);
    case Activation::kGeluTanh:
      return body(gelu_tanh, gelu_tanh_slope);
    case Activation::kSilu:
      return body(silu, silu_slope);
  }
}

template <class T>
void norm_row(const T* x, const T* weight, std::int64_t n, float eps, T* out, float* rstd) {
  F8 squares{};
  lanes::for_each(n, [&](std::int64_t i, auto count) {
    const F8 v = load(x + i, count);
    squares = lanes::fma(v, v, squares);
  });
  const float r = 1.0F / std::sqrt(lanes::sum(squares) / static_cast<float>(n) + eps);
  if (rstd != nullptr) *rstd = r;
  lanes::for_each(n, [&](std::int64_t i, auto count) {
    F8 v = load(x + i, count) * r;
    if (weight != nullptr) {
      if constexpr (!std::is_same_v<T, float>) v = lanes::widen(lanes::narrow(v));  // Qwen's order: cast, then weigh
      v = v * load(weight + i, count);
    }
    store(out + i, v, count);
  });
}

template <class T>
void norm_row_backward(const T* grad, const T* x, const T* weight, float rstd, const T* residual, std::int64_t n,
                       T* dx) {
  F8 dots{};
  lanes::for_each(n, [&](std::int64_t i, auto count) {
    F8 g = load(grad + i, count);
    if (weight != nullptr) g = g * load(weight + i, count);
    dots = lanes::fma(g, load(x + i, count), dots);
  });
  const float mean = lanes::sum(dots) * rstd * rstd / static_cast<float>(n);
  lanes::for_each(n, [&](std::int64_t i, auto count) {
    F8 g = load(grad + i, count);
    if (weight != nullptr) g = g * load(weight + i, count);
    F8 v = (g - load(x + i, count) * mean) * rstd;
    if (residual != nullptr) v = v + load(residual + i, count);
    store(dx + i, v, count);
  });
}

/// Sums over rows, one task per block of columns, so that the order of a sum does not depend on the threads.
/// term(row, column, count) -> F8.
template <class T, class Term>
void sum_columns(std::int64_t first_row, std::int64_t last_row, std::int64_t begin, std::int64_t end, T* out,
                 Term&& term) {
  lanes::for_each(end - begin, [&](std::int64_t i, auto count) {
    F8 total{};
    for (std::int64_t row = first_row; row < last_row; ++row) total = total + term(row, begin + i, count);
    store(out + begin + i, total, count);
  });
}

template <class Body>
void for_column_blocks(std::int64_t n_rows, std::int64_t n_columns, Body&& body) {
  constexpr std::int64_t kBlock = 64;
  const std::int64_t blocks = (n_columns + kBlock - 1) / kBlock;
  for_tasks(blocks, workers_for(blocks, n_rows * n_columns),
            [&](std::int64_t block, int) { body(block * kBlock, std::min(n_columns, (block + 1) * kBlock)); });
}

template <class X, class C>
void rotate_head(const X* x, const C* cos, const C* sin, std::int64_t half, bool backward, X* out) {
  const float sign = backward ? -1.0F : 1.0F;
  lanes::for_each(half, [&](std::int64_t i, auto count) {
    const F8 a = load(x + i, count), b = load(x + half + i, count);
    const F8 c1 = load(cos + i, count), c2 = load(cos + half + i, count);
    const F8 s1 = load(sin + i, count) * sign, s2 = load(sin + half + i, count) * sign;
    // Backward is the transpose: the sines change sign and swap.
    store(out + i, a * c1 - b * (backward ? s2 : s1), count);
    store(out + half + i, b * c2 + a * (backward ? s1 : s2), count);
  });
}

void check_indices(const std::int64_t* indices, std::int64_t count, std::int64_t limit, const char* what) {
  for (std::int64_t i = 0; i < count; ++i) {
    if (indices[i] < 0 || indices[i] >= limit) {
      fail(ExitCode::kData, "{}: index {} at position {} is outside 0..{}", what, indices[i], i, limit - 1);
    }
  }
}

}  // namespace

void CpuKernels::sum_rows(const Tensor& x, Tensor& out) const {
  const std::int64_t n = rows(x), width = columns(x);
  with_type(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const T* from = data<T>(x);
    with_type(out.scalar_type(), [&](auto out_type) {
      auto* to = data<decltype(out_type)>(out);
      for_column_blocks(n, width, [&](std::int64_t begin, std::int64_t end) {
        sum_columns(0, n, begin, end, to, [&](std::int64_t row, std::int64_t column, auto count) {
          return load(from + row * width + column, count);
        });
      });
    });
  });
}

void CpuKernels::cast(const Tensor& x, Tensor& out) const {
  with_type(x.scalar_type(), [&](auto type) {
    const auto* from = data<decltype(type)>(x);
    with_type(out.scalar_type(), [&](auto out_type) {
      auto* to = data<decltype(out_type)>(out);
      for_elements(x.numel(), 1, [&](std::int64_t i, auto count) { store(to + i, load(from + i, count), count); });
    });
  });
}

void CpuKernels::add(const Tensor& x, const Tensor& y, Tensor& out) const {
  with_type(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const T *a = data<T>(x), *b = data<T>(y);
    T* to = data<T>(out);
    for_elements(x.numel(), 1,
                 [&](std::int64_t i, auto count) { store(to + i, load(a + i, count) + load(b + i, count), count); });
  });
}

void CpuKernels::rms_norm_forward(const Tensor& x, const Tensor& weight, double eps, Tensor& out, Tensor& rstd) const {
  const std::int64_t width = columns(x);
  with_type(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    for_rows(rows(x), 3 * width, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t row = first; row < last; ++row) {
        norm_row(data<T>(x) + row * width, data<T>(weight), width, static_cast<float>(eps), data<T>(out) + row * width,
                 rstd.defined() ? data<float>(rstd) + row : nullptr);
      }
    });
  });
}

void CpuKernels::rms_norm_backward(const Tensor& grad, const Tensor& x, const Tensor& weight, const Tensor& rstd,
                                   const Tensor& residual, Tensor& dx, Tensor& dweight) const {
  const std::int64_t n = rows(x), width = columns(x);
  with_type(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const T *g = data<T>(grad), *from = data<T>(x), *more = data<T>(residual);
    const float* r = data<float>(rstd);
    if (dweight.defined()) {  // before dx, which may overwrite grad
      for_column_blocks(n, width, [&](std::int64_t begin, std::int64_t end) {
        sum_columns(0, n, begin, end, data<T>(dweight), [&](std::int64_t row, std::int64_t column, auto count) {
          return load(g + row * width + column, count) * load(from + row * width + column, count) * r[row];
        });
      });
    }
    if (!dx.defined()) return;
    for_rows(n, 5 * width, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t row = first; row < last; ++row) {
        const std::int64_t at = row * width;
        norm_row_backward(g + at, from + at, data<T>(weight), r[row], more == nullptr ? nullptr : more + at, width,
                          data<T>(dx) + at);
      }
    });
  });
}

void CpuKernels::swiglu_forward(const Tensor& gate, const Tensor& up, Tensor& out) const {
  with_type(gate.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const T *g = data<T>(gate), *u = data<T>(up);
    T* to = data<T>(out);
    for_elements(gate.numel(), 6, [&](std::int64_t i, auto count) {
      store(to + i, silu(load(g + i, count)) * load(u + i, count), count);
    });
  });
}

void CpuKernels::swiglu_backward(const Tensor& grad, const Tensor& gate, const Tensor& up, Tensor& dgate,
                                 Tensor& dup) const {
  with_type(gate.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const T *d = data<T>(grad), *g = data<T>(gate), *u = data<T>(up);
    T *to_gate = data<T>(dgate), *to_up = data<T>(dup);
    for_elements(gate.numel(), 8, [&](std::int64_t i, auto count) {
      const F8 x = load(g + i, count), y = load(d + i, count);
      const F8 s = lanes::sigmoid(x);
      store(to_gate + i, y * load(u + i, count) * s * (1.0F + x * (1.0F - s)), count);
      store(to_up + i, y * x * s, count);
    });
  });
}

void CpuKernels::activation_forward(Activation kind, const Tensor& x, Tensor& out) const {
  with_type(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const T* from = data<T>(x);
    T* to = data<T>(out);
    with_activation(kind, [&](auto value, auto) {
      for_elements(x.numel(), 8,
                   [&](std::int64_t i, auto count) { store(to + i, value(load(from + i, count)), count); });
    });
  });
}

void CpuKernels::activation_backward(Activation kind, const Tensor& grad, const Tensor& x, Tensor& dx) const {
  with_type(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const T *g = data<T>(grad), *from = data<T>(x);
    T* to = data<T>(dx);
    with_activation(kind, [&](auto, auto slope) {
      for_elements(x.numel(), 10, [&](std::int64_t i, auto count) {
        store(to + i, load(g + i, count) * slope(load(from + i, count)), count);
      });
    });
  });
}

void CpuKernels::rotary(const Tensor& x, const Tensor& cos, const Tensor& sin, bool backward, Tensor& out) const {
  const std::int64_t heads = x.size(1), d = x.size(2);
  with_type(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    with_type(cos.scalar_type(), [&](auto table_type) {
      using C = decltype(table_type);
      const auto rotate_row = [&](std::int64_t row) {
        for (std::int64_t head = 0; head < heads; ++head) {
          rotate_head(data<T>(x) + row * x.stride(0) + head * d, data<C>(cos) + row * d, data<C>(sin) + row * d, d / 2,
                      backward, data<T>(out) + (row * heads + head) * d);
        }
      };
      for_rows(x.size(0), 2 * heads * d, [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t row = first; row < last; ++row) rotate_row(row);
      });
    });
  });
}

void CpuKernels::gather_rows(const Tensor& table, const Tensor& indices, Tensor& out) const {
  const std::int64_t* index = data<std::int64_t>(indices);
  check_indices(index, indices.numel(), table.size(0), "gather_rows");
  const auto bytes = static_cast<std::size_t>(table.size(1)) * table.element_size();
  const char* from = data<char>(table);
  char* to = data<char>(out);
  for_rows(indices.numel(), table.size(1), [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t row = first; row < last; ++row) {
      std::memcpy(to + static_cast<std::size_t>(row) * bytes, from + static_cast<std::size_t>(index[row]) * bytes,
                  bytes);
    }
  });
}

void CpuKernels::scatter_add_rows(const Tensor& rows_in, const Tensor& indices, Tensor& out) const {
  const std::int64_t* index = data<std::int64_t>(indices);
  const std::int64_t n = indices.numel(), width = columns(out);
  check_indices(index, n, out.size(0), "scatter_add_rows");
  with_type(out.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const T* from = data<T>(rows_in);
    T* to = data<T>(out);
    std::memset(static_cast<void*>(to), 0, out.nbytes());
    for_column_blocks(n, width, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t row = 0; row < n; ++row) {
        T* target = to + index[row] * width + begin;
        const T* source = from + row * width + begin;
        lanes::for_each(end - begin, [&](std::int64_t i, auto count) {
          store(target + i, load(target + i, count) + load(source + i, count), count);
        });
      }
    });
  });
}

void CpuKernels::place_rows(const Tensor& x, const Tensor& indices, const Tensor& rows_in, Tensor& out) const {
  const std::int64_t* index = data<std::int64_t>(indices);
  check_indices(index, indices.numel(), out.size(0), "place_rows");
  std::memcpy(data<char>(out), data<char>(x), out.nbytes());
  const auto bytes = static_cast<std::size_t>(columns(out)) * out.element_size();
  for (std::int64_t row = 0; row < indices.numel(); ++row) {
    char* to = data<char>(out) + static_cast<std::size_t>(index[row]) * bytes;
    if (rows_in.defined()) {
      std::memcpy(to, data<char>(rows_in) + static_cast<std::size_t>(row) * bytes, bytes);
    } else {
      std::memset(to, 0, bytes);
    }
  }
}

}  // namespace plimsoll::model::cpu
