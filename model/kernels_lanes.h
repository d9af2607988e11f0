#pragma once
// Eight fp32 lanes over fp32 or bf16 memory, for the CPU kernels. GCC's vector types, so that the same source serves
// any instruction set; x86 intrinsics only where the compiler would not find the instruction by itself.

#include <c10/util/BFloat16.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace plimsoll::model::lanes {

using F8 = float __attribute__((vector_size(32)));
using I8 = std::int32_t __attribute__((vector_size(32)));
using U8 = std::uint32_t __attribute__((vector_size(32)));
using H8 = std::uint16_t __attribute__((vector_size(16)));
using Full = std::integral_constant<int, 8>;  ///< "all eight lanes", known to the compiler

inline F8 splat(float value) { return F8{} + value; }

inline F8 widen(H8 half) { return reinterpret_cast<F8>(__builtin_convertvector(half, U8) << 16); }

/// To bf16, ties to even; NaN stays NaN.
inline H8 narrow(F8 value) {
  U8 bits = reinterpret_cast<U8>(value);
  bits = bits + 0x7FFFU + ((bits >> 16) & 1U);
  // NOLINTNEXTLINE(misc-redundant-expression): false for NaN
  const U8 rounded = value == value ? (bits >> 16) : (U8{} + 0x7FC0U);
  return __builtin_convertvector(rounded, H8);
}

inline F8 load(const float* from, Full) {
  F8 value;
  std::memcpy(&value, from, sizeof value);
  return value;
}
inline F8 load(const c10::BFloat16* from, Full) {
  H8 half;
  std::memcpy(&half, from, sizeof half);
  return widen(half);
}
inline F8 load(const float* from, int count) {
  F8 value{};
  std::memcpy(&value, from, sizeof(float) * static_cast<std::size_t>(count));
  return value;
}
inline F8 load(const c10::BFloat16* from, int count) {
  H8 half{};
  std::memcpy(&half, from, sizeof(std::uint16_t) * static_cast<std::size_t>(count));
  return widen(half);
}

inline void store(float* to, F8 value, Full) { std::memcpy(to, &value, sizeof value); }
inline void store(c10::BFloat16* to, F8 value, Full) {
  const H8 half = narrow(value);
  std::memcpy(static_cast<void*>(to), &half, sizeof half);
}
inline void store(float* to, F8 value, int count) {
  std::memcpy(to, &value, sizeof(float) * static_cast<std::size_t>(count));
}
inline void store(c10::BFloat16* to, F8 value, int count) {
  const H8 half = narrow(value);
  std::memcpy(static_cast<void*>(to), &half, sizeof(std::uint16_t) * static_cast<std::size_t>(count));
}

/// a b + c, rounded once where the machine can.
inline F8 fma(F8 a, F8 b, F8 c) {
#ifdef __FMA__
  return reinterpret_cast<F8>(
      _mm256_fmadd_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b), reinterpret_cast<__m256>(c)));
#else
  return a * b + c;
#endif
}

inline float sum(F8 v) { return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7])); }
inline F8 max(F8 a, F8 b) { return a > b ? a : b; }
inline float max(F8 v) {
  float best = v[0];
  for (int i = 1; i < 8; ++i) best = v[i] > best ? v[i] : best;
  return best;
}

/// Calls body(i, count) for i = 0, 8, 16, ... below n; count is Full or, for the last few, an int.
template <class Body>
inline void for_each(std::int64_t n, Body&& body) {
  std::int64_t i = 0;
  for (; i + 8 <= n; i += 8) body(i, Full{});
  if (i < n) body(i, static_cast<int>(n - i));
}

/// e^x to 1 ulp or two; 0 below -87.3, infinity above 88.7, NaN for NaN. The usual split x = n ln 2 + r and a
/// polynomial in r (Cephes expf).
inline F8 exp(F8 x) {
  const F8 low = splat(-87.33654F), high = splat(88.72283F);
  F8 clamped = x < low ? low : x;
  clamped = clamped > high ? high : clamped;
  // Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits.
  const F8 magic = splat(12582912.0F);
  const F8 shifted = clamped * splat(1.44269504F) + magic;
  const F8 n = shifted - magic;
  F8 r = fma(n, splat(-0.693359375F), clamped);
  r = fma(n, splat(2.12194440e-4F), r);
  F8 p = splat(1.9875691500e-4F);
  p = fma(p, r, splat(1.3981999507e-3F));
  p = fma(p, r, splat(8.3334519073e-3F));
  p = fma(p, r, splat(4.1665795894e-2F));
  p = fma(p, r, splat(1.6666665459e-1F));
  p = fma(p, r, splat(5.0000001201e-1F));
  p = fma(p, r * r, r + 1.0F);
  const I8 exponent = __builtin_convertvector(n, I8);
  // Two factors: 2^n alone would leave the exponent range at n = 128.
  const I8 half = exponent >> 1;
  const F8 first = reinterpret_cast<F8>((half + 127) << 23);
  const F8 second = reinterpret_cast<F8>((exponent - half + 127) << 23);
  F8 result = p * first * second;
  result = x < low ? F8{} : result;
  result = x > high ? splat(INFINITY) : result;
  // NOLINTNEXTLINE(misc-redundant-expression): false for NaN
  return x == x ? result : x;
}

inline F8 sigmoid(F8 x) { return 1.0F / (1.0F + exp(-x)); }

inline F8 tanh(F8 x) {
  const F8 e = exp(-2.0F * (x < 0.0F ? -x : x));
  const F8 t = (1.0F - e) / (1.0F + e);
  // Near zero the difference 1 - e loses digits: the odd series is exact there.
  const F8 square = x * x;
  const F8 series = x * (1.0F + square * (-1.0F / 3.0F + square * (2.0F / 15.0F + square * (-17.0F / 315.0F))));
  return square < 0.01F ? series : (x < 0.0F ? -t : t);
}

/// erf to 1.5e-7 (Abramowitz and Stegun 7.1.26).
inline F8 erf(F8 x) {
  const F8 z = x < 0.0F ? -x : x;
  const F8 t = 1.0F / (1.0F + 0.3275911F * z);
  const F8 poly =
      t * (0.254829592F + t * (-0.284496736F + t * (1.421413741F + t * (-1.453152027F + t * 1.061405429F))));
  const F8 r = 1.0F - poly * exp(-(z * z));
  return x < 0.0F ? -r : r;
}

/// Which of 32 channels are kept: lane l of word i is for channel 8 i + l of the block.
struct KeepWords {
  U8 word[4];
};

inline void multiply(U8 a, std::uint32_t factor, U8& high, U8& low) {
#ifdef __AVX2__
  const __m256i m = _mm256_set1_epi32(static_cast<int>(factor));
  const __m256i even = _mm256_mul_epu32(reinterpret_cast<__m256i>(a), m);
  const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(reinterpret_cast<__m256i>(a), 32), m);
  high = reinterpret_cast<U8>(_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA));
  low = reinterpret_cast<U8>(_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA));
#else
  for (int i = 0; i < 8; ++i) {
    const std::uint64_t product = std::uint64_t{a[i]} * factor;
    high[i] = static_cast<std::uint32_t>(product >> 32);
    low[i] = static_cast<std::uint32_t>(product);
  }
#endif
}

/// Philox4x32-10 (core/philox.h) for eight counters at once: (token, 8 block + lane, site, 0) under key (k0, k1).
inline KeepWords philox(std::uint32_t k0, std::uint32_t k1, std::uint32_t token, std::uint32_t block,
                        std::uint32_t site) {
  U8 c0 = U8{} + token, c1 = U8{0, 1, 2, 3, 4, 5, 6, 7} + block * 8U, c2 = U8{} + site, c3 = U8{};
  for (int round = 0; round < 10; ++round) {
    U8 high0, low0, high1, low1;
    multiply(c0, 0xD2511F53U, high0, low0);
    multiply(c2, 0xCD9E8D57U, high1, low1);
    c0 = high1 ^ c1 ^ k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 += 0x9E3779B9U;
    k1 += 0xBB67AE85U;
  }
  return {{c0, c1, c2, c3}};
}

}  // namespace plimsoll::model::lanes
