#include "data/image_processor.h"

#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <utility>

#include "core/error.h"
#include "core/file.h"
#include "data/resize.h"

namespace plimsoll::data {

namespace {

using Json = nlohmann::json;

constexpr double kMostElongated = 200.0;
constexpr int kBicubic = 3;  // Pillow's number

constexpr const char* kAdvice = "use the preprocessor_config.json of a Qwen2.5-VL model";

Json parse_json(const std::string& path) {
  const std::string text = read_file(path);
  try {
    return Json::parse(text);
  } catch (const Json::exception& error) {
    fail(ExitCode::kData, "{}: is no JSON ({}); fetch the file again", path, error.what());
  }
}

/// The image processor's settings and the file they are in. What transformers 5 nests in processor_config.json goes
/// first.
std::pair<Json, std::string> find_settings(const std::string& dir) {
  const std::string nested = dir + "/processor_config.json", plain = dir + "/preprocessor_config.json";
  if (std::filesystem::exists(nested)) {
    const Json all = parse_json(nested);
    if (all.contains("image_processor")) return {all.at("image_processor"), nested};
  }
  return {parse_json(plain), plain};
}

void expect(const Json& json, const char* key, const Json& wanted, const std::string& path) {
  if (json.contains(key) && !json.at(key).is_null() && json.at(key) != wanted)
    fail(ExitCode::kData, "{}: {} is {}, but Plimsoll's image processor needs {}; {}", path, key, json.at(key).dump(),
         wanted.dump(), kAdvice);
}

void check_settings(const Json& json, const std::string& path) {
  const std::string type = json.value("image_processor_type", "Qwen2VLImageProcessor");
  if (!type.starts_with("Qwen2VLImageProcessor") && !type.starts_with("Qwen2_5_VLImageProcessor"))
    fail(ExitCode::kData, "{}: image_processor_type is {}, expected Qwen2VLImageProcessor; {}", path, type, kAdvice);
  for (const char* key : {"do_resize", "do_rescale", "do_normalize"}) expect(json, key, true, path);
  expect(json, "resample", kBicubic, path);
  const double factor = json.value("rescale_factor", 1.0 / 255.0);
  if (std::fabs(factor * 255.0 - 1.0) > 1e-6)
    fail(ExitCode::kData, "{}: rescale_factor is {}, expected 1/255; {}", path, factor, kAdvice);
}

void read_integer(const Json& json, const char* key, std::int64_t& value) {
  if (json.contains(key) && !json.at(key).is_null()) value = json.at(key).get<std::int64_t>();
}

void check_options(const ImageProcessorOptions& options, const std::string& path) {
  for (const auto& [key, value] :
       {std::pair{"patch_size", options.patch}, {"merge_size", options.merge}, {"temporal_patch_size", options.frames}})
    if (value < 1 || value > 256)
      fail(ExitCode::kData, "{}: {} is {}, expected 1 to 256; {}", path, key, value, kAdvice);
  if (options.min_pixels < 1 || options.max_pixels < options.min_pixels)
    fail(ExitCode::kData, "{}: min_pixels {} and max_pixels {} do not bound anything; {}", path, options.min_pixels,
         options.max_pixels, kAdvice);
  for (const float std : options.std)
    if (!(std > 0.0f)) fail(ExitCode::kData, "{}: image_std has {}, expected above 0; {}", path, std, kAdvice);
}

ImageProcessorOptions read_options(const Json& json, const std::string& path) {
  check_settings(json, path);
  ImageProcessorOptions options;
  if (json.contains("size") && json.at("size").is_object()) {
    for (const char* key : {"min_pixels", "shortest_edge"}) read_integer(json.at("size"), key, options.min_pixels);
    for (const char* key : {"max_pixels", "longest_edge"}) read_integer(json.at("size"), key, options.max_pixels);
  }
  read_integer(json, "min_pixels", options.min_pixels);
  read_integer(json, "max_pixels", options.max_pixels);
  read_integer(json, "patch_size", options.patch);
  read_integer(json, "merge_size", options.merge);
  read_integer(json, "temporal_patch_size", options.frames);
  if (json.contains("image_mean")) options.mean = json.at("image_mean").get<std::array<float, 3>>();
  if (json.contains("image_std")) options.std = json.at("image_std").get<std::array<float, 3>>();
  check_options(options, path);
  return options;
}

/// Python's round(): halves go to the even neighbour. The default rounding mode of nearbyint.
std::int64_t round_to(double value, std::int64_t factor) {
  return static_cast<std::int64_t>(std::nearbyint(value / static_cast<double>(factor))) * factor;
}
std::int64_t floor_to(double value, std::int64_t factor) {
  return static_cast<std::int64_t>(std::floor(value / static_cast<double>(factor))) * factor;
}
std::int64_t ceil_to(double value, std::int64_t factor) {
  return static_cast<std::int64_t>(std::ceil(value / static_cast<double>(factor))) * factor;
}

/// Normalised value of each byte in each channel: what fp32 arithmetic gives, once instead of per pixel.
using ValueTable = std::array<std::array<float, 256>, 3>;

ValueTable value_table(const ImageProcessorOptions& options) {
  ValueTable table;
  for (int c = 0; c < 3; ++c) {
    const float mean = options.mean[c] * 255.0f, std = options.std[c] * 255.0f;
    for (int byte = 0; byte < 256; ++byte) table[c][byte] = (static_cast<float>(byte) - mean) / std;
  }
  return table;
}

/// One channel of one patch, a frame of it: [patch, patch] values from `corner` on.
void copy_patch(const std::uint8_t* corner, std::int64_t row_bytes, std::int64_t patch,
                const std::array<float, 256>& values, float* out) {
  for (std::int64_t y = 0; y < patch; ++y)
    for (std::int64_t x = 0; x < patch; ++x) *out++ = values[corner[y * row_bytes + x * 3]];
}

void write_row(const Image& image, std::int64_t top, std::int64_t left, const ImageProcessorOptions& options,
               const ValueTable& table, float* out) {
  const std::int64_t area = options.patch * options.patch, row_bytes = image.width * 3;
  for (int c = 0; c < 3; ++c) {
    float* frame = out + c * options.frames * area;
    copy_patch(image.pixels.data() + top * row_bytes + left * 3 + c, row_bytes, options.patch, table[c], frame);
    for (std::int64_t f = 1; f < options.frames; ++f) std::copy_n(frame, area, frame + f * area);
  }
}

/// Writes past the processor's caches, which would read from memory first what is written over here, and which no
/// longer hold it when a batch is made of it some steps later. finish_streams() before another thread reads.
void stream(std::span<const float> values, float* out) {
#ifdef __SSE2__
  constexpr std::size_t kLanes = 4;
  const bool aligned = reinterpret_cast<std::uintptr_t>(out) % sizeof(__m128) == 0;
  if (aligned && values.size() % kLanes == 0) {
    for (std::size_t i = 0; i < values.size(); i += kLanes) _mm_stream_ps(out + i, _mm_loadu_ps(values.data() + i));
    return;
  }
#endif
  std::copy(values.begin(), values.end(), out);
}

void finish_streams() {
#ifdef __SSE2__
  _mm_sfence();
#endif
}

/// Rows in the order of merge blocks: block row, block column, row in the block, column in the block.
void write_rows(const Image& image, const ImageProcessorOptions& options, float* out) {
  const ValueTable table = value_table(options);
  const std::int64_t side = options.patch, block = options.merge * side;
  std::vector<float> row(static_cast<std::size_t>(options.row_values()));
  for (std::int64_t top = 0; top < image.height; top += block)
    for (std::int64_t left = 0; left < image.width; left += block)
      for (std::int64_t y = top; y < top + block; y += side)
        for (std::int64_t x = left; x < left + block; x += side, out += row.size()) {
          write_row(image, y, x, options, table, row.data());
          stream(row, out);
        }
  finish_streams();
}

}  // namespace

ImageProcessorOptions read_image_processor_options(const std::string& dir) {
  const auto [json, path] = find_settings(dir);
  try {
    return read_options(json, path);
  } catch (const Json::exception& error) {
    fail(ExitCode::kData, "{}: an entry is missing or of the wrong type ({}); {}", path, error.what(), kAdvice);
  }
}

ImageSize resized_size(const ImageSize& size, const ImageProcessorOptions& options, const std::string& name) {
  if (size.height <= 0 || size.width <= 0)
    fail(ExitCode::kData, "{}: has {} x {} pixels; take it out of the data", name, size.height, size.width);
  const double height = static_cast<double>(size.height), width = static_cast<double>(size.width);
  const double ratio = std::max(height, width) / std::min(height, width);
  if (ratio > kMostElongated)
    fail(ExitCode::kData, "{}: {} x {} pixels is {:.1f} times as long as wide, at most {} are possible; crop it", name,
         size.height, size.width, ratio, kMostElongated);
  const std::int64_t factor = options.patch * options.merge;
  ImageSize result{round_to(height, factor), round_to(width, factor)};
  if (result.height * result.width > options.max_pixels) {
    const double beta = std::sqrt(height * width / static_cast<double>(options.max_pixels));
    result = {std::max(factor, floor_to(height / beta, factor)), std::max(factor, floor_to(width / beta, factor))};
  } else if (result.height * result.width < options.min_pixels) {
    const double beta = std::sqrt(static_cast<double>(options.min_pixels) / (height * width));
    result = {ceil_to(height * beta, factor), ceil_to(width * beta, factor)};
  }
  if (result.height <= 0 || result.width <= 0)
    fail(ExitCode::kData, "{}: {} x {} pixels become {} x {}; it is too small for min_pixels {}", name, size.height,
         size.width, result.height, result.width, options.min_pixels);
  return result;
}

ImageSize bounded_size(const ImageSize& size, std::int64_t resolution) {
  const std::int64_t longer = std::max(size.height, size.width);
  if (resolution <= 0 || longer <= resolution) return size;
  const auto scaled = [&](std::int64_t side) {
    return std::max<std::int64_t>(1, (2 * side * resolution + longer) / (2 * longer));
  };
  return {scaled(size.height), scaled(size.width)};
}

PatchGrid patch_grid(const ImageSize& size, const ImageProcessorOptions& options, std::int64_t resolution,
                     const std::string& name) {
  const ImageSize resized = resized_size(bounded_size(size, resolution), options, name);
  return {1, resized.height / options.patch, resized.width / options.patch};
}

void write_patches(const Image& image, const ImageProcessorOptions& options, std::int64_t resolution,
                   std::span<float> out) {
  const ImageSize bounded = bounded_size(image.size(), resolution), size = resized_size(bounded, options);
  if (std::ssize(out) * options.patch * options.patch != size.height * size.width * options.row_values())
    fail(ExitCode::kUsage, "{} values were given for the patches of {} x {} pixels", out.size(), size.height,
         size.width);
  Image resized;
  const Image* source = &image;  // one that has its size already is not copied
  for (const ImageSize& due : {bounded, size}) {
    if (source->size() == due) continue;
    resized = resize_bicubic(*source, due);
    source = &resized;
  }
  write_rows(*source, options, out.data());
}

}  // namespace plimsoll::data
