#pragma once
// What the hand-written row loops of model/ share: dispatch over the two dtypes of activations, sums that the compiler
// can vectorise although floating-point addition may not be reordered.

#include <torch/torch.h>

#include <cmath>
#include <cstdint>
#include <vector>

#include "model/kernels_cpu.h"

namespace plimsoll::model::rows {

/// Calls body(T{}) with T = c10::BFloat16 or float.
template <class Body>
void by_dtype(at::ScalarType type, Body body) {
  if (type == at::kBFloat16) {
    body(c10::BFloat16{});
  } else {
    body(0.0F);
  }
}

/// Sum of term(i) for i in [0, n), in eight lanes that are added up in a fixed order.
template <class Term>
float sum(std::int64_t n, Term term) {
  float lanes[8] = {};
  std::int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (std::int64_t j = 0; j < 8; ++j) lanes[j] += term(i + j);
  }
  for (; i < n; ++i) lanes[i & 7] += term(i);
  return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

/// Elements of a contiguous tensor, to read and to write.
template <class T>
const T* in(const at::Tensor& t) {
  return t.const_data_ptr<T>();
}
template <class T>
T* out(at::Tensor& t) {
  return t.mutable_data_ptr<T>();
}

/// 1 / sqrt(mean of x^2 + 1e-6) of one row.
inline float inverse_rms(const float* x, std::int64_t width) {
  const float squares = sum(width, [x](std::int64_t i) { return x[i] * x[i]; });
  return 1.0F / std::sqrt(squares / static_cast<float>(width) + 1e-6F);
}

/// Rounds a row of sums into T.
template <class T>
void store(const std::vector<float>& from, T* to) {
  for (std::size_t i = 0; i < from.size(); ++i) to[i] = static_cast<T>(from[i]);
}

/// Runs body(g) for every g in [0, n), on several threads where `elements` of each make it worth waking them; each g
/// writes what is its own.
template <class Body>
void each(std::int64_t n, std::int64_t elements, Body body) {
  constexpr std::int64_t kOperations = 8;  // on an element
  cpu::for_rows(n, kOperations * elements, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t g = begin; g < end; ++g) body(g);
  });
}

}  // namespace plimsoll::model::rows
