#include "data/image_processor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/error.h"
#include "data/resize.h"
#include "tests/data/model_files.h"

namespace plimsoll::data {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

Image plain(std::int64_t height, std::int64_t width, std::uint8_t value) {
  return {height, width, std::vector<std::uint8_t>(height * width * 3, value)};
}

Image numbered(std::int64_t height, std::int64_t width) {
  Image image = plain(height, width, 0);
  for (std::size_t i = 0; i < image.pixels.size(); ++i)
    image.pixels[i] = static_cast<std::uint8_t>(i * 2654435761u >> 24);
  return image;
}

ImageSize resized(std::int64_t height, std::int64_t width) { return resized_size({height, width}, {}); }

TEST(ResizedSize, RoundsHalvesToEven) {
  EXPECT_EQ(resized(126, 70), (ImageSize{112, 56}));
  EXPECT_EQ(resized(98, 154), (ImageSize{112, 168}));
  EXPECT_EQ(resized(112, 112), (ImageSize{112, 112}));
}

TEST(ResizedSize, StaysWithinThePixelBounds) {
  EXPECT_EQ(resized(1, 1), (ImageSize{56, 56}));
  EXPECT_EQ(resized(14, 98), (ImageSize{28, 168}));
  const ImageSize large = resized(3000, 2000);
  EXPECT_LE(large.height * large.width, 28 * 28 * 1280);
  EXPECT_EQ(large.height % 28, 0);
}

TEST(ResizedSize, RefusesEmptyAndVeryLongPictures) {
  EXPECT_THROW(resized(0, 5), Error);
  EXPECT_NO_THROW(resized(1, 200));
  try {
    resized_size({2, 401}, {}, "cam.png");
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kData);
    EXPECT_THAT(error.what(), HasSubstr("cam.png"));
    EXPECT_THAT(error.what(), HasSubstr("200.5"));
  }
}

TEST(BoundedSize, CutsTheLongerSideAndKeepsTheAspect) {
  EXPECT_EQ(bounded_size({480, 640}, 224), (ImageSize{168, 224}));
  EXPECT_EQ(bounded_size({300, 433}, 140), (ImageSize{97, 140}));
  EXPECT_EQ(bounded_size({480, 640}, 0), (ImageSize{480, 640}));
  EXPECT_EQ(bounded_size({48, 64}, 224), (ImageSize{48, 64}));
  EXPECT_EQ(bounded_size({1, 1000}, 100), (ImageSize{1, 100}));
}

TEST(Resize, WeightsOfEveryPixelSumToOne) {
  for (const auto& [from, to] : {std::pair{640, 224}, {30, 84}, {7, 56}, {1, 28}, {1000, 28}, {3, 2}}) {
    const ResampleAxis axis = resample_axis(from, to);
    for (std::int64_t i = 0; i < to; ++i) {
      EXPECT_GE(axis.start[i], 0);
      EXPECT_LE(axis.start[i] + axis.taps, from);
      int sum = 0;
      for (std::int64_t k = 0; k < axis.taps; ++k) sum += axis.weights[i * axis.taps + k];
      EXPECT_NEAR(sum, 1 << axis.precision, static_cast<double>(axis.taps));
    }
  }
}

TEST(Resize, KeepsPlainColoursAndEqualSizes) {
  for (const int value : {0, 1, 127, 255}) {
    const Image image = resize_bicubic(plain(37, 53, static_cast<std::uint8_t>(value)), {84, 28});
    EXPECT_EQ(image.pixels, plain(84, 28, static_cast<std::uint8_t>(value)).pixels);
  }
  const Image image = numbered(31, 17);
  EXPECT_EQ(resize_bicubic(image, {31, 17}).pixels, image.pixels);
}

/// The definition, in plain loops over one value at a time.
std::uint8_t by_definition(const Image& image, const ResampleAxis& axis, std::int64_t i, std::int64_t line, int channel,
                           bool along_width) {
  std::int64_t sum = std::int64_t{1} << (axis.precision - 1);
  for (std::int64_t k = 0; k < axis.taps; ++k) {
    const std::int64_t at = axis.start[i] + k, y = along_width ? line : at, x = along_width ? at : line;
    sum += axis.weights[i * axis.taps + k] * image.pixels[(y * image.width + x) * 3 + channel];
  }
  return static_cast<std::uint8_t>(std::clamp<std::int64_t>(sum >> axis.precision, 0, 255));
}

TEST(Resize, EqualsItsDefinitionForEveryBlockBorder) {
  for (const std::int64_t width : {1, 5, 15, 16, 17, 33, 100})
    for (const std::int64_t height : {1, 15, 16, 17, 40}) {
      const Image image = numbered(height, width);
      const Image wide = resize_bicubic(image, {height, 28}), tall = resize_bicubic(image, {56, width});
      const ResampleAxis x_axis = resample_axis(width, 28), y_axis = resample_axis(height, 56);
      for (std::int64_t y = 0; y < height; ++y)
        for (std::int64_t x = 0; x < 28; ++x)
          for (int c = 0; c < 3; ++c)
            ASSERT_EQ(wide.pixels[(y * 28 + x) * 3 + c], by_definition(image, x_axis, x, y, c, true));
      for (std::int64_t y = 0; y < 56; ++y)
        for (std::int64_t x = 0; x < width; ++x)
          for (int c = 0; c < 3; ++c)
            ASSERT_EQ(tall.pixels[(y * width + x) * 3 + c], by_definition(image, y_axis, y, x, c, false));
    }
}

TEST(Resize, RefusesEmptySizes) {
  EXPECT_THROW(resize_bicubic(plain(0, 0, 0), {28, 28}), Error);
  EXPECT_THROW(resize_bicubic(plain(2, 2, 0), {0, 28}), Error);
}

TEST(WritePatches, OrdersRowsByMergeBlockAndValuesByChannelAndFrame) {
  ImageProcessorOptions options;
  options.mean = {0, 0, 0};
  options.std = {1.0f / 255, 1.0f / 255, 1.0f / 255};  // values are bytes again
  const Image image = numbered(56, 84);
  EXPECT_THAT(patch_grid(image.size(), options, 0), ElementsAre(1, 4, 6));
  std::vector<float> values(1 + 24 * 1176);
  write_patches(image, options, 0, std::span(values).subspan(1));
  EXPECT_EQ(values[0], 0.0f);
  // Row 7 is the second block's last patch but none: block column 1, row 1, column 1 within it.
  const std::int64_t top = 14, left = 28 + 14;
  for (const int channel : {0, 2})
    for (const int frame : {0, 1})
      for (const int y : {0, 13})
        for (const int x : {0, 9}) {
          const float value = values[1 + 7 * 1176 + ((channel * 2 + frame) * 14 + y) * 14 + x];
          EXPECT_FLOAT_EQ(value, image.pixels[((top + y) * 84 + left + x) * 3 + channel]);
        }
}

TEST(ImageProcessorOptions, AreReadAsWritten) {
  ImageProcessorOptions options;
  options.min_pixels = 28 * 28;
  options.max_pixels = 28 * 28 * 16;
  options.mean = {0.5f, 0.25f, 0.125f};
  const ModelFolder folder(300, options);
  const ImageProcessorOptions read = read_image_processor_options(folder.path());
  EXPECT_EQ(read.min_pixels, options.min_pixels);
  EXPECT_EQ(read.max_pixels, options.max_pixels);
  EXPECT_EQ(read.mean, options.mean);
  EXPECT_EQ(read.std, options.std);
}

TEST(ImageProcessorOptions, LetPixelBoundsWinOverSize) {
  const TestFolder folder;
  folder.write("preprocessor_config.json",
               R"({"size": {"shortest_edge": 784, "longest_edge": 7840}, "max_pixels": 15680})");
  const ImageProcessorOptions read = read_image_processor_options(folder.path());
  EXPECT_EQ(read.min_pixels, 784);
  EXPECT_EQ(read.max_pixels, 15680);
}

TEST(ImageProcessorOptions, NameFileAndKeyOfWhatIsNotDone) {
  const std::vector<std::pair<std::string, std::string>> refused{
      {R"({"do_normalize": false})", "do_normalize"},
      {R"({"rescale_factor": 0.5})", "rescale_factor"},
      {R"({"image_mean": [0.5]})", "preprocessor_config"},
      {R"({"merge_size": 0})", "merge_size"},
      {R"({"image_std": [0.5, 0, 0.5]})", "image_std"},
      {R"({"min_pixels": 10, "max_pixels": 5})", "max_pixels 5"},
      {R"({"image_processor_type": "SiglipImageProcessor"})", "Siglip"},
      {"{\"patch", "JSON"},
      {"", "JSON"}};
  const TestFolder folder;
  for (const auto& [content, named] : refused) {
    folder.write("preprocessor_config.json", content);
    try {
      read_image_processor_options(folder.path());
      FAIL() << "no error for " << content;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kData);
      EXPECT_THAT(error.what(), HasSubstr("preprocessor_config.json"));
      EXPECT_THAT(error.what(), HasSubstr(named));
    }
  }
}

}  // namespace
}  // namespace plimsoll::data
