#pragma once
// The operators that only the action expert and the sensor encoder need, under the rules of model/ops.h: outputs are
// made first and filled afterwards, on meta tensors the filling is skipped, nothing else is allocated, no value is
// read.
//
// G groups are the noise draws of a micro-batch, sample after sample; every group has n rows of width W. The residual
// stream is fp32; what matrix products read and write has the dtype `compute` (fp32 or bf16). Sums are in fp32, row by
// row in a fixed order, so that a row's values do not depend on what else is in the batch. All functions are
// differentiable unless they say no.

#include <torch/torch.h>

#include <cstdint>
#include <vector>

namespace plimsoll::model {

using at::Tensor;

/// The start of the residual stream: rows [G * m, W] `compute` plus positions [n, W] fp32, where n = m, or n = m + 1
/// and the first row of every group is lead [G / draws, W] `compute`, the same for the draws of a sample. `lead`
/// undefined: n = m. Returns [G * n, W] fp32. Saves nothing.
Tensor embed_rows(const Tensor& rows, const Tensor& lead, const Tensor& positions, std::int64_t draws);

/// Where the rows of a context come from. Tensors as in PackedBatch.
struct ContextLayout {
  Tensor positions;    ///< [C] int64, below the rows of the position table
  Tensor token_rows;   ///< [T] int64, or undefined: row = token
  Tensor sensor_rows;  ///< [K] int64, undefined without sensor tokens
  /// Rows of each sample, whose positions never fall; empty: in any order.
  std::vector<std::int64_t> lengths = {};
};

/// The context of cross-attention: tokens [T, W] and sensor tokens [K, W] (or undefined), both `compute`, each in its
/// row, plus table [max_context, W] fp32 by position, divided by its root mean square (no weight). Returns [C, W]
/// `compute`. Without the positions nothing about places in an image is learned. Saves the result and one fp32 per row.
Tensor embed_context(const Tensor& tokens, const Tensor& sensors, const Tensor& table, const ContextLayout& layout);

/// Adaptive RMS norm: x / sqrt(mean(x^2) + 1e-6) * (1 + scale) + shift, x: [G * n, W] fp32, shift and scale: [G, W]
/// `compute`, the dtype of the result. Peebles and Xie, "Scalable Diffusion Models with Transformers" (2023),
/// section 3.2, with the RMS in place of mean and variance. Saves x, shift, scale and one fp32 per
/// row; a linear layer that reads the result makes it again in backward instead of keeping it.
Tensor modulated_norm(const Tensor& x, const Tensor& shift, const Tensor& scale);

/// x + gate * y, x: [G * n, W] fp32, y: [G * n, W] and gate: [G, W] `compute`; gate undefined: x + y. Returns fp32.
/// Saves y and gate (nothing without a gate).
Tensor gated_residual(const Tensor& x, const Tensor& y, const Tensor& gate);

/// Cuts [G, k * W] into k contiguous tensors [G, W]. One node, where k slices would each build a gradient of full size.
std::vector<Tensor> split_columns(const Tensor& x, std::int64_t k);

}  // namespace plimsoll::model
