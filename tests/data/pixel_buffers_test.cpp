#include "data/pixel_buffers.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <thread>

#include "data/lerobot_source.h"
#include "data/loader.h"
#include "tests/data/lerobot_files.h"
#include "tests/data/model_files.h"

namespace plimsoll::data {
namespace {

constexpr std::int64_t kBytes = 1000 * sizeof(float);

std::vector<float> filled(std::size_t values) { return std::vector<float>(values, 1.0F); }

TEST(PixelBuffers, GivesWhatWasGivenBack) {
  PixelBuffers buffers(10 * kBytes);
  auto given = filled(1000);
  const float* place = given.data();
  buffers.give(std::move(given));
  EXPECT_EQ(buffers.bytes(), kBytes);
  const auto taken = buffers.take(900);
  EXPECT_EQ(taken.data(), place);
  EXPECT_EQ(taken.size(), 900U);
  EXPECT_EQ(buffers.bytes(), 0);
  EXPECT_EQ(buffers.reused(), 1);
}

TEST(PixelBuffers, GivesNoneThatIsTooSmallOrFarTooLarge) {
  PixelBuffers buffers(10 * kBytes);
  buffers.give(filled(1000));
  EXPECT_GE(buffers.take(1001).capacity(), 1001U);
  EXPECT_LT(buffers.take(790).capacity(), 1000U);
  EXPECT_EQ(buffers.reused(), 0);
  EXPECT_EQ(buffers.bytes(), kBytes);
  EXPECT_EQ(buffers.take(800).capacity(), 1000U) << "a quarter more";
}

TEST(PixelBuffers, KeepsWhatFits) {
  PixelBuffers buffers(2 * kBytes);
  buffers.give({});
  buffers.give(filled(3000));
  EXPECT_EQ(buffers.bytes(), 0) << "one that is too large";
  for (const std::size_t values : {800U, 900U, 1000U}) buffers.give(filled(values));
  EXPECT_EQ(buffers.bytes(), 1900 * static_cast<std::int64_t>(sizeof(float))) << "the first has gone";
  buffers.set_most_bytes(kBytes);
  EXPECT_EQ(buffers.bytes(), kBytes);
  EXPECT_EQ(buffers.take(1000).capacity(), 1000U) << "the last has stayed";
  buffers.set_most_bytes(0);
  buffers.give(filled(1));
  EXPECT_EQ(buffers.bytes(), 0);
}

TEST(PixelBuffers, ServesManyThreads) {
  PixelBuffers buffers(3 * kBytes);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 2000; ++i) {
        auto buffer = buffers.take(1000);
        std::fill(buffer.begin(), buffer.end(), 1.0F);
        buffers.give(std::move(buffer));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_LE(buffers.bytes(), 3 * kBytes);
  EXPECT_GT(buffers.reused(), 0);
}

/// Loads some samples by a loader that may hold `most_bytes`; whether any had the room of another.
bool reuses(std::int64_t most_bytes) {
  const TestFolder folder;
  const ModelFolder model;
  write_counting_dataset(folder.file("set"), {4, 4});
  const LeRobotSource source(force_source_options(folder.file("set")), std::make_shared<VlmProcessor>(model.path()));
  LoaderOptions options;
  options.effective_batch = 2;
  options.most_bytes = most_bytes;
  const std::int64_t before = spare_pixels().reused();
  Loader loader(source, options);
  for (std::uint64_t position = 0; position < 24; ++position) {
    const auto sample = loader.get(position);
    EXPECT_EQ(sample->vlm.pixel_values, source.load(sample->index).vlm.pixel_values) << "at position " << position;
  }
  return spare_pixels().reused() > before;
}

TEST(PixelBuffers, AreThoseOfSamplesThatHaveGone) { EXPECT_TRUE(reuses(0)); }

TEST(PixelBuffers, AreNotKeptByALoaderThatIsBounded) {
  EXPECT_FALSE(reuses(64_MiB));
  EXPECT_EQ(spare_pixels().bytes(), 0);
}

}  // namespace
}  // namespace plimsoll::data
