#pragma once
// Pictures to rows of patches, as Qwen2.5-VL's image processor of transformers 5 makes them (its torchvision variant).
//
// A picture is resized so that both sides are multiples of patch * merge and the pixel count is within bounds, with an
// antialiased bicubic filter on 8-bit values in fixed point: horizontal pass, rounded to 8 bits, then vertical pass.
// Then (x - 255 mean) / (255 std) in fp32, cut into patches. Equals transformers bit for bit where tested.
//
// Keys, "Cubic convolution interpolation for digital image processing" (IEEE TASSP 1981), a = -0.5.

#include <array>
#include <cstdint>
#include <span>
#include <string>

#include "data/image_file.h"

namespace plimsoll::data {

/// preprocessor_config.json; defaults are the library's.
struct ImageProcessorOptions {
  std::int64_t min_pixels = std::int64_t{56} * 56;         ///< pixels (not a side) at least, after resizing
  std::int64_t max_pixels = std::int64_t{28} * 28 * 1280;  ///< pixels at most
  std::int64_t patch = 14;                                 ///< side of a patch in pixels
  std::int64_t merge = 2;                                  ///< patches per side that become one token
  std::int64_t frames = 2;  ///< times a still picture is repeated ("temporal_patch_size")
  std::array<float, 3> mean{0.48145466f, 0.4578275f, 0.40821073f};  ///< per channel, in 0..1
  std::array<float, 3> std{0.26862954f, 0.26130258f, 0.27577711f};

  std::int64_t row_values() const { return 3 * frames * patch * patch; }  ///< of a patch
};

/// Reads `dir`/preprocessor_config.json (or processor_config.json, as transformers 5 writes it). Throws Error(kData)
/// naming file and key when it is missing, of another processor, or asks for something that is not done here.
ImageProcessorOptions read_image_processor_options(const std::string& dir);

/// Size after transformers' smart resizing: sides rounded half to even to multiples of patch * merge, then scaled into
/// the pixel bounds. Throws Error(kData) that starts with `name` for an empty picture or one more than 200 times as
/// long as wide.
ImageSize resized_size(const ImageSize& size, const ImageProcessorOptions& options, const std::string& name = "image");

/// The size with its longer side cut down to `resolution` pixels, aspect kept (rounded to nearest, at least 1).
/// `resolution` 0, or a picture that is small enough: as it is.
ImageSize bounded_size(const ImageSize& size, std::int64_t resolution);

/// image_grid_thw: frames, rows and columns of patches.
using PatchGrid = std::array<std::int64_t, 3>;

/// What a picture of `size` becomes, of one frame. With `resolution` above 0 it is first bounded by bounded_size().
/// Throws Error(kData) as resized_size().
PatchGrid patch_grid(const ImageSize& size, const ImageProcessorOptions& options, std::int64_t resolution,
                     const std::string& name = "image");

/// Writes the patches of `image`, as many as patch_grid() says for its size, to `out`: rows of row_values() values
/// (channel, frame, row, column), ordered by blocks of merge x merge patches. Any thread. Throws as patch_grid(), and
/// Error(kUsage) where `out` is of another size.
void write_patches(const Image& image, const ImageProcessorOptions& options, std::int64_t resolution,
                   std::span<float> out);

}  // namespace plimsoll::data
