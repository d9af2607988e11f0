#pragma once
// Pictures in memory: decoding PNG, JPEG and their like (whatever FFmpeg's libraries know) to 8-bit RGB.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace plimsoll::data {

/// Pixels of a picture's sides.
struct ImageSize {
  std::int64_t height = 0, width = 0;
  friend bool operator==(const ImageSize&, const ImageSize&) = default;
};

/// An 8-bit RGB picture: `pixels` is [height, width, 3] row-major, without padding.
struct Image {
  std::int64_t height = 0, width = 0;
  std::vector<std::uint8_t> pixels;
  ImageSize size() const { return {height, width}; }
};

/// Decodes the first picture of an encoded file in memory. Alpha is dropped (not composited), grey and palettes become
/// RGB, 16 bits are cut to the upper 8, CMYK JPEGs are converted. EXIF rotation is not applied (transformers does not
/// either). Any thread. Throws Error(kData) that starts with `name` when it does not decode or has no pixels.
Image decode_image(std::span<const std::uint8_t> bytes, std::string_view name);

/// The same from a file; errors name `path`.
Image read_image(const std::string& path);

/// Height and width out of the file's header, without decoding the pixels where the format allows it (PNG, JPEG).
ImageSize encoded_image_size(std::span<const std::uint8_t> bytes, std::string_view name);

/// The same where the first few bytes of a file tell it, as a PNG's first 24 do; else nothing.
std::optional<ImageSize> size_in_head(std::span<const std::uint8_t> head);

}  // namespace plimsoll::data
