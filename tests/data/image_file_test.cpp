#include "data/image_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/error.h"
#include "tests/data/model_files.h"
#include "tests/error_of.h"

namespace plimsoll::data {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::span<const std::uint8_t> bytes_of(const std::string& text) {
  return {reinterpret_cast<const std::uint8_t*>(text.data()), text.size()};
}

const std::string kTwoPixels = std::string("P6\n2 1\n255\n") + "\x01\x02\x03\xFF\xFE\xFD";

/// A PNG of 3 x 2 grey pixels, made by hand: 10 20 30 / 40 50 60.
const std::string kGreyPng(
    "\x89\x50\x4e\x47\x0d\x0a\x1a\x0a\x00\x00\x00\x0d\x49\x48\x44\x52\x00\x00\x00\x03\x00\x00\x00\x02"
    "\x08\x00\x00\x00\x00\xb8\x1f\x39\xc6\x00\x00\x00\x10\x49\x44\x41\x54\x78\x9c\x63\xe0\x12\x91\x63"
    "\xd0\x30\xb2\x01\x00\x02\x74\x00\xd3\x7e\x4c\x63\x1a\x00\x00\x00\x00\x49\x45\x4e\x44\xae\x42\x60"
    "\x82",
    73);

/// Fails the test where it can be decoded.
std::string decoding_error(const std::string& content) {
  std::string text = error_of(ExitCode::kData, [&] { decode_image(bytes_of(content), "cam.png"); });
  EXPECT_THAT(text, HasSubstr("cam.png"));
  return text;
}

TEST(ImageFile, DecodesColours) {
  const Image image = decode_image(bytes_of(kTwoPixels), "x");
  EXPECT_EQ(image.size(), (ImageSize{1, 2}));
  EXPECT_THAT(image.pixels, ElementsAre(1, 2, 3, 255, 254, 253));
}

TEST(ImageFile, MakesColoursOfGrey) {
  const Image image = decode_image(bytes_of(kGreyPng), "x");
  EXPECT_EQ(image.size(), (ImageSize{2, 3}));
  EXPECT_THAT(image.pixels, ElementsAre(10, 10, 10, 20, 20, 20, 30, 30, 30, 40, 40, 40, 50, 50, 50, 60, 60, 60));
}

TEST(ImageFile, KnowsTheSizeFromTheHeader) {
  EXPECT_EQ(encoded_image_size(bytes_of(kGreyPng.substr(0, 30)), "x"), (ImageSize{2, 3}));
  EXPECT_EQ(encoded_image_size(bytes_of(kTwoPixels), "x"), (ImageSize{1, 2}));
}

TEST(ImageFile, ReadsFiles) {
  const TestFolder folder;
  folder.write("a.ppm", kTwoPixels);
  EXPECT_EQ(read_image(folder.file("a.ppm")).size(), (ImageSize{1, 2}));
  try {
    read_image(folder.file("b.ppm"));
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("b.ppm"));
  }
}

TEST(ImageFile, NamesWhatDoesNotDecode) {
  EXPECT_THAT(decoding_error(""), HasSubstr("0 bytes"));
  EXPECT_THAT(decoding_error("hello"), HasSubstr("none of PNG"));
  decoding_error(kGreyPng.substr(0, 50));
  decoding_error(kTwoPixels.substr(0, 14));
  std::string damaged = kGreyPng;
  damaged[45] ^= 0x10;
  decoding_error(damaged);
  decoding_error("\xFF\xD8\xFF\xE0 no picture");
  EXPECT_THROW(encoded_image_size(bytes_of("\xFF\xD8\xFF\xE0"), "x"), Error);
}

}  // namespace
}  // namespace plimsoll::data
