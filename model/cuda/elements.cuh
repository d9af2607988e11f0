#pragma once
// Eight elements at a time as fp32, over fp32 or bf16 memory, and sums over warps and blocks. The device's lanes.h.

#include <cuda_bf16.h>

#include <cstdint>

namespace plimsoll::model::cuda {

constexpr unsigned kWholeWarp = 0xFFFFFFFFU;

struct F8 {
  float v[8];
};

/// Eight neighbours of memory as they lie there, to be kept in few registers.
template <class T>
struct Raw8;
template <>
struct Raw8<float> {
  float4 low, high;
};
template <>
struct Raw8<__nv_bfloat16> {
  uint4 bits;
};

__device__ inline float widen(float x) { return x; }
__device__ inline float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
template <class T>
__device__ T narrow(float x);
template <>
__device__ inline float narrow<float>(float x) {
  return x;
}
template <>
__device__ inline __nv_bfloat16 narrow<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}
/// x as T would hold it.
template <class T>
__device__ float rounded(float x) {
  return widen(narrow<T>(x));
}

/// Two values rounded to bf16, the first in the low half.
__device__ inline std::uint32_t pack(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const std::uint32_t*>(&pair);
}

__device__ inline F8 widen(const Raw8<float>& raw) {
  return {{raw.low.x, raw.low.y, raw.low.z, raw.low.w, raw.high.x, raw.high.y, raw.high.z, raw.high.w}};
}
__device__ inline F8 widen(const Raw8<__nv_bfloat16>& raw) {
  const std::uint32_t words[4] = {raw.bits.x, raw.bits.y, raw.bits.z, raw.bits.w};
  F8 out;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    out.v[2 * i] = __uint_as_float(words[i] << 16);
    out.v[2 * i + 1] = __uint_as_float(words[i] & 0xFFFF0000U);
  }
  return out;
}

__device__ inline void raw_load(const float* from, Raw8<float>& to) {
  to.low = reinterpret_cast<const float4*>(from)[0];
  to.high = reinterpret_cast<const float4*>(from)[1];
}
__device__ inline void raw_load(const __nv_bfloat16* from, Raw8<__nv_bfloat16>& to) {
  to.bits = *reinterpret_cast<const uint4*>(from);
}

/// The first `count` of eight elements; the others are 0. Grouped: count is eight or nothing, from aligned memory.
template <bool kGrouped, class T>
__device__ F8 load(const T* from, std::int64_t count) {
  F8 out{};
  if constexpr (kGrouped) {
    if (count <= 0) return out;
    Raw8<T> raw;
    raw_load(from, raw);
    return widen(raw);
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (i < count) out.v[i] = widen(from[i]);
    }
    return out;
  }
}

__device__ inline void store_all(float* to, const F8& x) {
  reinterpret_cast<float4*>(to)[0] = {x.v[0], x.v[1], x.v[2], x.v[3]};
  reinterpret_cast<float4*>(to)[1] = {x.v[4], x.v[5], x.v[6], x.v[7]};
}
__device__ inline void store_all(__nv_bfloat16* to, const F8& x) {
  *reinterpret_cast<uint4*>(to) = {pack(x.v[0], x.v[1]), pack(x.v[2], x.v[3]), pack(x.v[4], x.v[5]),
                                   pack(x.v[6], x.v[7])};
}

template <bool kGrouped, class T>
__device__ void store(T* to, const F8& x, std::int64_t count) {
  if constexpr (kGrouped) {
    if (count > 0) store_all(to, x);
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (i < count) to[i] = narrow<T>(x.v[i]);
    }
  }
}

__device__ inline float warp_sum(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(kWholeWarp, x, step);
  return x;
}
__device__ inline float warp_max(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(kWholeWarp, x, step));
  return x;
}

}  // namespace plimsoll::model::cuda
