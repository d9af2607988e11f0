#include "data/vlm_input.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/error.h"
#include "tests/data/model_files.h"
#include "tests/error_of.h"

namespace plimsoll::data {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

Image plain(std::int64_t height, std::int64_t width) {
  return {height, width, std::vector<std::uint8_t>(height * width * 3, 128)};
}

std::string repeat(const std::string& text, int times) {
  std::string result;
  for (int i = 0; i < times; ++i) result += text;
  return result;
}

class VlmInputTest : public ::testing::Test {
 protected:
  std::string refusal(std::string_view text, const std::vector<Image>& images = {}) const {
    return error_of(ExitCode::kData, [&] { processor.prepare(text, images); });
  }
  ModelFolder folder;
  VlmProcessor processor{folder.path()};
};

TEST_F(VlmInputTest, WritesQwensPrompt) {
  const std::vector<Image> images{plain(56, 84), plain(112, 56)};
  const VlmInput input = processor.prepare("reach the red pad", images);
  EXPECT_EQ(processor.tokenizer().decode(input.input_ids),
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>" +
                repeat("<|image_pad|>", 6) + "<|vision_end|><|vision_start|>" + repeat("<|image_pad|>", 8) +
                "<|vision_end|>reach the red pad<|im_end|>\n<|im_start|>assistant\n");
  EXPECT_THAT(input.image_grid_thw, ElementsAre(ElementsAre(1, 4, 6), ElementsAre(1, 8, 4)));
  EXPECT_EQ(input.pixel_values.size(), (24 + 32) * 1176u);
  EXPECT_EQ(input.position_ids.size(), 3 * input.input_ids.size());
}

TEST_F(VlmInputTest, KnowsTheShapeWithoutPictures) {
  for (const std::int64_t resolution : {0, 56, 112}) {
    const std::vector<Image> images{plain(61, 200), plain(300, 300)};
    const std::vector<ImageSize> sizes{{61, 200}, {300, 300}};
    Sample sample;
    sample.vlm = processor.prepare("go", images, resolution);
    EXPECT_EQ(processor.shape("go", sizes, resolution), sample.shape());
  }
  Sample sample;
  sample.vlm = processor.prepare("  only text", {});
  EXPECT_EQ(processor.shape("  only text", {}), sample.shape());
}

TEST_F(VlmInputTest, TakesGivenPatches) {
  const std::vector<Image> images{plain(56, 84)};
  const VlmInput made = processor.prepare("go", images);
  const VlmInput taken = processor.prepare_pixels("go", made.pixel_values, made.image_grid_thw);
  EXPECT_EQ(taken.input_ids, made.input_ids);
  EXPECT_EQ(taken.position_ids, made.position_ids);
  EXPECT_EQ(taken.pixel_values, made.pixel_values);
  EXPECT_THROW(processor.prepare_pixels("go", made.pixel_values, {{1, 4, 4}}), Error);
  EXPECT_THROW(processor.prepare_pixels("go", std::vector<float>(1176), {{1, 1, 1}}), Error);
  EXPECT_THROW(processor.prepare_pixels("go", {}, {{-1, 2, 2}}), Error);
}

TEST_F(VlmInputTest, NamesTheTextOrPictureThatItRefuses) {
  EXPECT_THAT(refusal("a <|image_pad|> b"), HasSubstr("a <|image_pad|> b"));
  EXPECT_THAT(refusal("<|video_pad|>"), HasSubstr("<|video_pad|>"));
  EXPECT_THAT(refusal("go", {plain(56, 56), plain(1, 500)}), HasSubstr("image 1"));
  EXPECT_THAT(refusal("go", {plain(0, 0)}), HasSubstr("image 0"));
}

TEST_F(VlmInputTest, NamesATokenThatTheTokenizerLacks) {
  auto json = folder.read_json("tokenizer.json");
  json["added_tokens"].erase(12);  // <|image_pad|>
  folder.write("tokenizer.json", json.dump());
  try {
    const VlmProcessor other(folder.path());
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("<|image_pad|>"));
    EXPECT_THAT(error.what(), HasSubstr("tokenizer.json"));
  }
}

}  // namespace
}  // namespace plimsoll::data
