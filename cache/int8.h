#pragma once
// Features as bytes: half of what bf16 takes. Each row is multiplied so that its largest value becomes 127, and rounded
// to the nearest whole number: no value is further from what it was than 1/254 of its row's largest. Pure, without
// torch.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "cache/record.h"

namespace plimsoll::cache {

/// How far bytes are from what they were made of.
struct Int8Error {
  double squared = 0, squared_values = 0;  ///< sums over all values
  /// Relative L2 distance.
  double relative() const;
  Int8Error& operator+=(const Int8Error& other);
};

/// `values`: [rows, width] as `from` says (kBf16 or kF32). Returns the payload of a kInt8 record: rows float scales,
/// then rows x width bytes. A row with a value that is not finite is kept as zeros with a scale that is not a number,
/// which decode_int8() gives back.
std::vector<std::byte> encode_int8(std::span<const std::byte> values, std::uint32_t rows, std::uint32_t width,
                                   Kept from, Int8Error& error);
/// The way back, as `to` says; bf16 to nearest even.
std::vector<std::byte> decode_int8(std::span<const std::byte> payload, std::uint32_t rows, std::uint32_t width,
                                   Kept to);

}  // namespace plimsoll::cache
