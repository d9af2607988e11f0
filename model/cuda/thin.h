#pragma once
// The thin products of low-rank adapters, with dropout drawn on the way. Each reads or writes its wide matrix once.

#include <vector>

#include "model/cuda/kernels_cuda.h"

namespace plimsoll::model::cuda {

/// Dropout as the kernels need it (ops.h says what it means); keys null: none.
struct Mask {
  const std::int64_t* keys = nullptr;
  std::uint32_t threshold = 0;
  float keep_scale = 1.0F;
};

inline Mask mask_of(const Dropout& dropout) {
  if (dropout.rate == 0.0F) return {};
  return {data<std::int64_t>(dropout.keys), static_cast<std::uint32_t>(static_cast<double>(dropout.rate) * 0x1.0p32),
          1.0F / (1.0F - dropout.rate)};
}

/// out = scale dropout(x) weights^T, both operands rounded to out's dtype. x: [n, width]; weights: [r, width] fp32;
/// out: [n, r].
void thin_down(const Tensor& x, const Tensor& weights, float scale, const Mask& mask, std::uint32_t site,
               const Tensor& out);

/// out = left^T dropout(x), x rounded to left's dtype. left: [n, r]; x: [n, width]; out: [r, width] fp32.
void thin_gradient(const Tensor& left, const Tensor& x, const Mask& mask, std::uint32_t site, const Tensor& out);

struct ThinPair {
  Tensor left;   ///< [n, r]
  Tensor right;  ///< [r, width] fp32
  std::uint32_t site = 0;
};

/// out = addend + bias + the sum of dropout'(left right). `addend` (fp32, may be out) and `bias` may be undefined.
/// `rounds`: right is rounded to left's dtype first.
void thin_up(const std::vector<ThinPair>& pairs, bool rounds, const Mask& mask, const Tensor& bias,
             const Tensor& addend, const Tensor& out);

/// scale b^T, fp32.
void transpose_scaled(const Tensor& b, float scale, const Tensor& out);

}  // namespace plimsoll::model::cuda
