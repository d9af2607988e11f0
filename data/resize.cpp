#include "data/resize.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/error.h"

namespace plimsoll::data {

namespace {

constexpr int kChannels = 3;
constexpr int kRows = 16;                  // rows that the horizontal pass handles at once
constexpr int kLanes = kChannels * kRows;  // bytes that one call of weigh() makes: sums of all fit the vector registers
constexpr int kMostPrecision = 22;         // 255 * 2^22 leaves room in 32 bits for the kernel's negative lobes

/// Keys' cubic with a = -0.5 at distance `x`.
double cubic(double x) {
  constexpr double a = -0.5;
  x = std::fabs(x);
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
  if (x < 2.0) return ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a;
  return 0.0;
}

/// The real-valued kernel under one pixel of the result.
struct Kernel {
  std::int64_t start = 0;
  std::vector<double> weights;
};

Kernel kernel_at(std::int64_t pixel, double scale, std::int64_t from) {
  const double widening = std::max(scale, 1.0), support = 2.0 * widening, inverse = 1.0 / widening;
  const double center = scale * (static_cast<double>(pixel) + 0.5);
  Kernel kernel;
  kernel.start = std::max<std::int64_t>(std::lround(center - support), 0);
  const std::int64_t end = std::min(std::lround(center + support), from);
  double total = 0.0;
  for (std::int64_t i = kernel.start; i < end; ++i) {
    kernel.weights.push_back(cubic((static_cast<double>(i) - center + 0.5) * inverse));
    total += kernel.weights.back();
  }
  if (total != 0.0)
    for (double& weight : kernel.weights) weight /= total;
  return kernel;
}

int precision_for(double largest) {
  int precision = 0;
  while (precision < kMostPrecision && std::lround(largest * static_cast<double>(1 << (precision + 1))) < (1 << 15))
    ++precision;
  return precision;
}

std::int16_t to_fixed(double weight, int precision) {
  const double scaled = weight * static_cast<double>(1 << precision);
  return static_cast<std::int16_t>(static_cast<int>(scaled < 0 ? scaled - 0.5 : scaled + 0.5));
}

/// out[j] = sum over k of weights[k] * in[k * stride + j], rounded and clamped, for kLanes values of j.
void weigh(const std::uint8_t* in, std::int64_t stride, const std::int16_t* weights, const ResampleAxis& axis,
           std::uint8_t* out) {
  std::int32_t sums[kLanes];
  std::fill_n(sums, kLanes, axis.precision > 0 ? 1 << (axis.precision - 1) : 0);
  for (std::int64_t k = 0; k < axis.taps; ++k) {
    const std::int32_t weight = weights[k];
    const std::uint8_t* row = in + k * stride;
    for (int j = 0; j < kLanes; ++j) sums[j] += weight * row[j];
  }
  for (int j = 0; j < kLanes; ++j) out[j] = static_cast<std::uint8_t>(std::clamp(sums[j] >> axis.precision, 0, 255));
}

/// Rows first..first+kRows of `image` as [width, channel, row]; rows past the end are zeros.
void turn_rows(const Image& image, std::int64_t first, std::vector<std::uint8_t>& turned) {
  const std::int64_t values = image.width * kChannels, rows = std::min<std::int64_t>(kRows, image.height - first);
  for (std::int64_t r = 0; r < rows; ++r) {
    const std::uint8_t* row = image.pixels.data() + (first + r) * values;
    for (std::int64_t i = 0; i < values; ++i) turned[i * kRows + r] = row[i];
  }
}

Image resize_width(const Image& image, std::int64_t width) {
  const ResampleAxis axis = resample_axis(image.width, width);
  Image result{image.height, width, std::vector<std::uint8_t>(image.height * width * kChannels)};
  std::vector<std::uint8_t> turned(image.width * kLanes);
  std::uint8_t made[kLanes];
  for (std::int64_t first = 0; first < image.height; first += kRows) {
    turn_rows(image, first, turned);
    const std::int64_t rows = std::min<std::int64_t>(kRows, image.height - first);
    for (std::int64_t x = 0; x < width; ++x) {
      weigh(turned.data() + axis.start[x] * kLanes, kLanes, axis.weights.data() + x * axis.taps, axis, made);
      std::uint8_t* out = result.pixels.data() + (first * width + x) * kChannels;
      for (std::int64_t r = 0; r < rows; ++r)
        for (int c = 0; c < kChannels; ++c) out[r * width * kChannels + c] = made[std::int64_t{c} * kRows + r];
    }
  }
  return result;
}

Image resize_height(const Image& image, std::int64_t height) {
  const ResampleAxis axis = resample_axis(image.height, height);
  const std::int64_t values = image.width * kChannels;
  Image result{height, image.width, std::vector<std::uint8_t>(height * values)};
  // A last block that would pass the row's end is moved back; a row shorter than a block is copied to a longer one.
  const std::int64_t stride = std::max<std::int64_t>(values, kLanes);
  std::vector<std::uint8_t> wide(values < kLanes ? image.height * stride : 0), made(kLanes);
  for (std::int64_t y = 0; y < image.height && !wide.empty(); ++y)
    std::copy_n(image.pixels.data() + y * values, values, wide.data() + y * stride);
  const std::uint8_t* source = wide.empty() ? image.pixels.data() : wide.data();
  for (std::int64_t y = 0; y < height; ++y) {
    const std::uint8_t* from = source + axis.start[y] * stride;
    for (std::int64_t block = 0; block < values; block += kLanes) {
      const std::int64_t i = std::min(block, stride - kLanes);
      weigh(from + i, stride, axis.weights.data() + y * axis.taps, axis, made.data());
      std::copy_n(made.data(), std::min<std::int64_t>(kLanes, values), result.pixels.data() + y * values + i);
    }
  }
  return result;
}

}  // namespace

ResampleAxis resample_axis(std::int64_t from, std::int64_t to) {
  const double scale = static_cast<double>(from) / static_cast<double>(to);
  std::vector<Kernel> kernels;
  double largest = 0.0;
  ResampleAxis axis;
  for (std::int64_t i = 0; i < to; ++i) {
    kernels.push_back(kernel_at(i, scale, from));
    axis.taps = std::max(axis.taps, static_cast<std::int64_t>(kernels.back().weights.size()));
    for (const double weight : kernels.back().weights) largest = std::max(largest, weight);
  }
  axis.precision = precision_for(largest);
  axis.weights.resize(to * axis.taps);
  for (std::int64_t i = 0; i < to; ++i) {
    // Near the end the window is moved back, so that all taps lie in the source.
    axis.start.push_back(std::min(kernels[i].start, from - axis.taps));
    const std::int64_t shift = kernels[i].start - axis.start.back();
    for (std::size_t k = 0; k < kernels[i].weights.size(); ++k)
      axis.weights[i * axis.taps + shift + static_cast<std::int64_t>(k)] =
          to_fixed(kernels[i].weights[k], axis.precision);
  }
  return axis;
}

Image resize_bicubic(const Image& image, const ImageSize& size) {
  if (image.height <= 0 || image.width <= 0 || size.height <= 0 || size.width <= 0)
    fail(ExitCode::kData, "an image of {} x {} pixels cannot be resized to {} x {}", image.height, image.width,
         size.height, size.width);
  Image result = image.width == size.width ? image : resize_width(image, size.width);
  if (result.height != size.height) result = resize_height(result, size.height);
  return result;
}

}  // namespace plimsoll::data
