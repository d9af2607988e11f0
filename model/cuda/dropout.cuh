#pragma once
// Dropout's bits on the device: the words of core/philox.h, drawn where they are used and never stored.

#include <cstdint>

#include "model/cuda/elements.cuh"
#include "model/cuda/thin.h"

namespace plimsoll::model::cuda {

/// Philox4x32-10 of counter (c0, c1, c2, 0), as philox4x32 of core/philox.h.
__device__ inline uint4 philox(std::uint32_t c0, std::uint32_t c1, std::uint32_t c2, std::uint32_t k0,
                               std::uint32_t k1) {
  std::uint32_t c3 = 0;
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const std::uint32_t high0 = __umulhi(c0, 0xD2511F53U), low0 = c0 * 0xD2511F53U;
    const std::uint32_t high1 = __umulhi(c2, 0xCD9E8D57U), low1 = c2 * 0xCD9E8D57U;
    c0 = high1 ^ c1 ^ k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 += 0x9E3779B9U;
    k1 += 0xBB67AE85U;
  }
  return {c0, c1, c2, c3};
}

/// Which of the eight channels from 8 `group` on are kept in a row, one bit each. Four threads kStep lanes apart hold
/// the four groups of a block of 32 channels and the same row; each draws two of the block's eight calls, and they
/// exchange the bits. All threads of a warp must call it together.
template <int kStep>
__device__ std::uint32_t kept(const Mask& mask, std::uint32_t site, std::int64_t row, std::uint32_t group) {
  const std::int64_t words = mask.keys[2 * row], token = mask.keys[2 * row + 1];
  const std::uint32_t k0 = static_cast<std::uint32_t>(words),
                      k1 = static_cast<std::uint32_t>(static_cast<std::uint64_t>(words) >> 32);
  const std::uint32_t part = group % 4;
  std::uint32_t bits = 0;
#pragma unroll
  for (std::uint32_t i = 0; i < 2; ++i) {
    const std::uint32_t lane = 2 * part + i;
    const uint4 drawn = philox(static_cast<std::uint32_t>(token), 8 * (group / 4) + lane, site, k0, k1);
    const std::uint32_t four = (drawn.x >= mask.threshold ? 1U : 0U) | (drawn.y >= mask.threshold ? 1U << 8 : 0U) |
                               (drawn.z >= mask.threshold ? 1U << 16 : 0U) |
                               (drawn.w >= mask.threshold ? 1U << 24 : 0U);
    bits |= four << lane;
  }
  bits |= __shfl_xor_sync(kWholeWarp, bits, kStep);
  bits |= __shfl_xor_sync(kWholeWarp, bits, 2 * kStep);
  return bits >> (8 * part) & 0xFFU;
}

/// x where kept, scaled, else 0; all of x without a mask. Together with `kept`: same rules.
template <int kStep>
__device__ void drop(const Mask& mask, std::uint32_t site, std::int64_t row, std::uint32_t group, F8& x) {
  if (mask.keys == nullptr) return;
  const std::uint32_t bits = kept<kStep>(mask, site, row, group);
#pragma unroll
  for (int i = 0; i < 8; ++i) x.v[i] = (bits >> i & 1U) != 0 ? x.v[i] * mask.keep_scale : 0.0F;
}

}  // namespace plimsoll::model::cuda
