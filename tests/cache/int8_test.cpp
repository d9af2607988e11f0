#include "cache/int8.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>

namespace plimsoll::cache {
namespace {

std::vector<std::byte> floats(const std::vector<float>& values) {
  std::vector<std::byte> bytes(values.size() * sizeof(float));
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

std::vector<float> as_floats(const std::vector<std::byte>& bytes) {
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

TEST(Int8, NoValueIsFurtherThanHalfAStepOfItsRow) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  const std::uint32_t rows = 7, width = 50;
  std::vector<float> values(rows * width);
  for (std::size_t i = 0; i < values.size(); ++i)
    values[i] = normal(random) * std::pow(10.0F, static_cast<float>(i / width) - 3.0F);
  Int8Error error;
  const auto payload = encode_int8(floats(values), rows, width, Kept::kF32, error);
  EXPECT_EQ(payload.size(), payload_bytes({0, 0, rows, width, Kept::kInt8}));
  const auto back = as_floats(decode_int8(payload, rows, width, Kept::kF32));
  double apart = 0, size = 0;
  for (std::uint32_t row = 0; row < rows; ++row) {
    float most = 0;
    for (std::uint32_t i = 0; i < width; ++i) most = std::max(most, std::abs(values[row * width + i]));
    for (std::uint32_t i = row * width; i < (row + 1) * width; ++i) {
      EXPECT_LE(std::abs(back[i] - values[i]), most / 254 * 1.001F);
      apart += std::pow(static_cast<double>(back[i]) - values[i], 2);
      size += std::pow(static_cast<double>(values[i]), 2);
    }
  }
  EXPECT_NEAR(error.relative(), std::sqrt(apart / size), 1e-6) << "what it says of itself is measured";
  EXPECT_LT(error.relative(), 0.01);
}

TEST(Int8, ExtremesComeBack) {
  const std::vector<float> values = {0, 0, 0, 1, -1, 0.5F, std::nanf(""), 1, 2, 3e38F, -3e38F, 0};
  Int8Error error;
  const auto back = as_floats(decode_int8(encode_int8(floats(values), 4, 3, Kept::kF32, error), 4, 3, Kept::kF32));
  for (std::size_t i = 0; i < 3; ++i) EXPECT_EQ(back[i], 0.0F);
  EXPECT_EQ(back[3], 1.0F);
  EXPECT_EQ(back[4], -1.0F);
  for (std::size_t i = 6; i < 9; ++i) EXPECT_TRUE(std::isnan(back[i])) << "a row that is not finite stays so";
  EXPECT_NEAR(back[9], 3e38F, 1e34F);
  EXPECT_EQ(Int8Error().relative(), 0.0);
}

TEST(Int8, Bf16IsRoundedToNearest) {
  std::vector<std::byte> values(2 * sizeof(std::uint16_t));
  const std::uint16_t one = 0x3F80, half = 0x3F00;  // 1.0 and 0.5
  std::memcpy(values.data(), &one, sizeof one);
  std::memcpy(values.data() + sizeof one, &half, sizeof half);
  Int8Error error;
  const auto back = decode_int8(encode_int8(values, 1, 2, Kept::kBf16, error), 1, 2, Kept::kBf16);
  std::uint16_t first = 0, second = 0;
  std::memcpy(&first, back.data(), sizeof first);
  std::memcpy(&second, back.data() + sizeof first, sizeof second);
  EXPECT_EQ(first, one);
  EXPECT_EQ(second, 0x3F01) << "64 / 127 = 0.50394, of which 0.503906 is the nearest bf16";
}

}  // namespace
}  // namespace plimsoll::cache
