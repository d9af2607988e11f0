#pragma once
// Antialiased bicubic resizing of 8-bit RGB in fixed point, to the bit as ATen's _upsample_bicubic2d_aa on uint8 does
// it.
//
// Each pass weighs the pixels under a cubic (Keys 1981, a = -0.5) that is widened by the factor of reduction. Weights
// become int16 at the largest power of two that holds them; sums are int32, rounded to nearest and clamped to 8 bits.

#include <cstdint>
#include <vector>

#include "data/image_file.h"

namespace plimsoll::data {

/// How one side is resampled: pixel i of the result is the sum of weights[i * taps + k] * source[start[i] + k] over k <
/// taps, divided by 2^precision. Weights past the kernel are 0, and start + taps never passes the source's end.
struct ResampleAxis {
  std::int64_t taps = 0;
  int precision = 0;
  std::vector<std::int64_t> start;
  std::vector<std::int16_t> weights;
};
ResampleAxis resample_axis(std::int64_t from, std::int64_t to);

/// Antialiased bicubic resize; a side that keeps its length is not touched. Throws Error(kData) for an empty source or
/// result.
Image resize_bicubic(const Image& image, const ImageSize& size);

}  // namespace plimsoll::data
