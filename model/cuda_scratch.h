#pragma once
// How much scratch the CUDA kernels cut their sums into: the shapes that model/cuda/ makes and a dry run counts
// (kernels_meta_cuda.cpp), said once. No torch.

#include <algorithm>
#include <cstdint>

namespace plimsoll::model::cuda {

constexpr std::int64_t pieces_of(std::int64_t n, std::int64_t size) { return (n + size - 1) / size; }

/// Pieces of n rows whose sums a second kernel adds up, for sums over rows. One piece: no scratch.
constexpr std::int64_t pieces_of_sum(std::int64_t n) {
  constexpr std::int64_t kRows = 64, kMost = 128;
  return std::clamp<std::int64_t>(pieces_of(n, kRows), 1, kMost);
}

/// Columns that a block of the gradient of an adapter's A works on.
inline constexpr int kGradientColumns = 64;

/// The same for the gradient of an adapter's A, [r, width] from n rows: enough blocks for a large device, few enough
/// that adding them up costs little.
constexpr std::int64_t gradient_pieces(std::int64_t n, std::int64_t width) {
  constexpr std::int64_t kBlocks = 1024, kRows = 64;
  return std::clamp<std::int64_t>(kBlocks / pieces_of(width, kGradientColumns), 1,
                                  std::max<std::int64_t>(1, pieces_of(n, kRows)));
}

/// Low-rank pairs that one launch adds up; more go through an fp32 sum of the output's shape.
inline constexpr int kMostPairs = 4;

/// Heads up to this size go through flash attention, in bf16, when a multiple of 8.
inline constexpr std::int64_t kMostHeadSize = 256;

}  // namespace plimsoll::model::cuda
