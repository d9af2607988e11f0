#include "cache/int8.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

namespace plimsoll::cache {
namespace {

constexpr float kLargest = 127.0F;

float value_at(std::span<const std::byte> values, std::size_t place, Kept as) {
  if (as == Kept::kF32) {
    float value = 0;
    std::memcpy(&value, values.data() + place * sizeof value, sizeof value);
    return value;
  }
  std::uint16_t bits = 0;
  std::memcpy(&bits, values.data() + place * sizeof bits, sizeof bits);
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

void put(std::span<std::byte> values, std::size_t place, Kept as, float value) {
  if (as == Kept::kF32) {
    std::memcpy(values.data() + place * sizeof value, &value, sizeof value);
    return;
  }
  auto bits = std::bit_cast<std::uint32_t>(value);
  if (!std::isnan(value)) bits += 0x7FFFU + (bits >> 16 & 1U);
  const auto upper = static_cast<std::uint16_t>(bits >> 16);
  std::memcpy(values.data() + place * sizeof upper, &upper, sizeof upper);
}

}  // namespace

double Int8Error::relative() const { return squared_values > 0 ? std::sqrt(squared / squared_values) : 0.0; }

Int8Error& Int8Error::operator+=(const Int8Error& other) {
  squared += other.squared;
  squared_values += other.squared_values;
  return *this;
}

std::vector<std::byte> encode_int8(std::span<const std::byte> values, std::uint32_t rows, std::uint32_t width,
                                   Kept from, Int8Error& error) {
  std::vector<std::byte> payload(rows * sizeof(float) + std::size_t{rows} * width);
  const std::span<std::byte> bytes = std::span(payload).subspan(rows * sizeof(float));
  for (std::size_t row = 0; row < rows; ++row) {
    const std::size_t first = row * width;
    float most = 0;
    bool finite = true;
    for (std::size_t i = first; i < first + width; ++i) {
      const float value = value_at(values, i, from);
      finite = finite && std::isfinite(value);
      most = std::max(most, std::abs(value));
    }
    const float scale = finite ? most / kLargest : std::numeric_limits<float>::quiet_NaN();
    put(payload, row, Kept::kF32, scale);
    if (!finite || scale == 0) continue;
    for (std::size_t i = first; i < first + width; ++i) {
      const float value = value_at(values, i, from);
      const float whole = std::clamp(std::nearbyint(value / scale), -kLargest, kLargest);
      bytes[i] = static_cast<std::byte>(static_cast<std::int8_t>(whole));
      const double apart = static_cast<double>(whole * scale) - static_cast<double>(value);
      error.squared += apart * apart;
      error.squared_values += static_cast<double>(value) * static_cast<double>(value);
    }
  }
  return payload;
}

std::vector<std::byte> decode_int8(std::span<const std::byte> payload, std::uint32_t rows, std::uint32_t width,
                                   Kept to) {
  std::vector<std::byte> values(std::size_t{rows} * width * (to == Kept::kF32 ? sizeof(float) : sizeof(std::uint16_t)));
  const std::span<const std::byte> bytes = payload.subspan(rows * sizeof(float));
  for (std::size_t row = 0; row < rows; ++row) {
    const float scale = value_at(payload, row, Kept::kF32);
    for (std::size_t i = row * width; i < (row + 1) * width; ++i)
      put(values, i, to, static_cast<float>(static_cast<std::int8_t>(bytes[i])) * scale);
  }
  return values;
}

}  // namespace plimsoll::cache
