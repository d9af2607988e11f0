#pragma once
// Counter-based randomness: a value depends only on what it is for, never on what was drawn before it. That is why
// splitting a batch, recomputing a block or replaying after a failure cannot change a result.
//
// Philox4x32-10 of Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011), Table 2 and section 3.3.

#include <array>
#include <cmath>
#include <cstdint>

namespace plimsoll {

/// What a random value is for. The number is part of the key: never reuse or renumber one.
enum class RandomSite : std::uint32_t {
  kSampler = 1,    ///< order of the samples in an epoch
  kTimestep = 2,   ///< diffusion time of a draw
  kNoise = 3,      ///< Gaussian noise of a draw
  kInit = 4,       ///< initial weights
  kSimulator = 5,  ///< the demo's tabletop
  kEvaluate = 6,   ///< noise that sampled actions start from
  kDropout = 256,  ///< and above: one site per adapter, kDropout + its index
};

/// Key of a stream of values: (seed, position in the sample stream, draw, site).
struct RandomKey {
  std::uint64_t seed = 0;
  std::uint64_t position = 0;
  std::uint32_t draw = 0;
  std::uint32_t site = 0;
};

/// The ten rounds of Philox4x32 over `counter` under `key`.
constexpr std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter,
                                                  std::array<std::uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = std::uint64_t{0xD2511F53u} * counter[0];
    const std::uint64_t b = std::uint64_t{0xCD9E8D57u} * counter[2];
    counter = {static_cast<std::uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<std::uint32_t>(b),
               static_cast<std::uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<std::uint32_t>(a)};
    key = {key[0] + 0x9E3779B9u, key[1] + 0xBB67AE85u};
  }
  return counter;
}

/// Two 32-bit words that stand for a RandomKey: the four parts go through Philox once, so that related keys are
/// unrelated.
constexpr std::array<std::uint32_t, 2> mix(const RandomKey& key) {
  const auto words = philox4x32(
      {static_cast<std::uint32_t>(key.position), static_cast<std::uint32_t>(key.position >> 32), key.draw, key.site},
      {static_cast<std::uint32_t>(key.seed), static_cast<std::uint32_t>(key.seed >> 32)});
  return {words[0] ^ words[2], words[1] ^ words[3]};
}

/// Four random words for element group `index` of the stream `key`.
constexpr std::array<std::uint32_t, 4> random_words(std::array<std::uint32_t, 2> mixed_key, std::uint64_t index) {
  return philox4x32({static_cast<std::uint32_t>(index), static_cast<std::uint32_t>(index >> 32), 0, 0}, mixed_key);
}

/// Uniform in [0, 1): the top 24 bits of a word, exact in a float.
constexpr float uniform(std::uint32_t word) { return static_cast<float>(word >> 8) * 0x1.0p-24F; }

/// Fills `out[0..n)` with standard normal values of stream `key` (Box-Muller, in double on the host, so that every
/// device is given the same numbers).
inline void fill_normal(const RandomKey& key, float* out, std::int64_t n) {
  const auto mixed = mix(key);
  for (std::int64_t i = 0; i < n; i += 4) {
    const auto words = random_words(mixed, static_cast<std::uint64_t>(i / 4));
    for (std::int64_t pair = 0; pair < 2; ++pair) {
      const double u = (static_cast<double>(words[2 * pair]) + 1.0) * 0x1.0p-32;  // (0, 1]
      const double angle = 6.283185307179586476925 * static_cast<double>(words[2 * pair + 1]) * 0x1.0p-32;
      const double radius = std::sqrt(-2.0 * std::log(u));
      if (i + 2 * pair < n) out[i + 2 * pair] = static_cast<float>(radius * std::cos(angle));
      if (i + 2 * pair + 1 < n) out[i + 2 * pair + 1] = static_cast<float>(radius * std::sin(angle));
    }
  }
}

}  // namespace plimsoll
