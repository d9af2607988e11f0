#include "data/video.h"

#include <gmock/gmock.h>

#include <filesystem>

#include "core/error.h"
#include "data/video_writer.h"
#include "tests/data/lerobot_files.h"
#include "tests/data/model_files.h"
#include "tests/error_of.h"

namespace plimsoll::data {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class VideoTest : public ::testing::Test {
 protected:
  VideoTest() {
    VideoWriter writer(path, {32, 32, 10, 18});
    for (std::int64_t i = 0; i < 40; ++i) writer.add(grey(32, 32, level_of(i)), i % 7 == 0);
    writer.finish();
  }
  static void expect_frame(VideoDecoder& video, double seconds, std::int64_t number) {
    const Image image = video.frame_at(seconds);
    EXPECT_NEAR(image.pixels[0], level_of(number), 3) << seconds;
    EXPECT_NEAR(image.pixels.back(), level_of(number), 3) << seconds;
  }
  std::string error_at(double seconds) const {
    return error_of(ExitCode::kData, [&] { VideoDecoder(path).frame_at(seconds); });
  }
  TestFolder folder;
  std::string path = folder.file("video.mp4");
};

TEST_F(VideoTest, FindsEachFrameInAnyOrder) {
  VideoDecoder video(path);
  EXPECT_EQ(video.info().frames, 40);
  EXPECT_DOUBLE_EQ(video.info().average_fps, 10);
  for (std::int64_t i = 0; i < 40; ++i) expect_frame(video, static_cast<double>(i) / 10, i);
  for (std::int64_t i = 39; i >= 0; --i) expect_frame(video, static_cast<double>(i) / 10, i);
  for (std::int64_t i = 0; i < 40; ++i) expect_frame(video, static_cast<double>(i * 17 % 40) / 10, i * 17 % 40);
  expect_frame(video, 3.9, 39);  // the last, twice
  expect_frame(video, 3.9, 39);
}

TEST_F(VideoTest, KeepsToTheTolerance) {
  VideoDecoder video(path);
  expect_frame(video, 1.20009, 12);
  EXPECT_THAT(error_at(1.2002), AllOf(HasSubstr(path), HasSubstr("1.200200"), HasSubstr("tolerance")));
}

TEST_F(VideoTest, SaysWhenThereIsNoSuchFrame) {
  EXPECT_THAT(error_at(4.0), AllOf(HasSubstr(path), HasSubstr("frame 40 of 40")));
  EXPECT_THAT(error_at(1e6), HasSubstr("no frame"));
}

TEST_F(VideoTest, RefusesWhatIsNoVideo) {
  std::filesystem::resize_file(path, 100);
  EXPECT_THAT(error_at(0), HasSubstr(path));
  folder.write("video.mp4", "a text");
  EXPECT_THAT(error_at(0), HasSubstr(path));
  std::filesystem::remove(path);
  EXPECT_THAT(error_at(0), HasSubstr(path));
}

TEST_F(VideoTest, NoticesDamageInside) {
  std::string bytes;
  {
    std::ifstream file(path, std::ios::binary);
    bytes.assign(std::istreambuf_iterator<char>(file), {});
  }
  const auto media = bytes.find("mdat");
  std::fill(bytes.begin() + static_cast<std::ptrdiff_t>(media) + 4,
            bytes.begin() + static_cast<std::ptrdiff_t>(media) + 600, '\xff');
  folder.write("video.mp4", bytes);
  EXPECT_THAT(error_at(0.1), HasSubstr(path));
}

TEST_F(VideoTest, WritesEvenSidesOnly) {
  EXPECT_THROW(VideoWriter(folder.file("odd.mp4"), {31, 32, 10, 18}), Error);
  VideoWriter writer(folder.file("even.mp4"), {32, 32, 10, 18});
  EXPECT_THROW(writer.add(grey(16, 32, 0), true), Error);
}

TEST_F(VideoTest, PngKeepsPixels) {
  Image image = grey(5, 7, 9);
  image.pixels[11] = 250;
  EXPECT_EQ(decode_image(encode_png(image), "picture").pixels, image.pixels);
}

}  // namespace
}  // namespace plimsoll::data
