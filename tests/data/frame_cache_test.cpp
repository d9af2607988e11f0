#include "data/frame_cache.h"

#include <gmock/gmock.h>

#include <atomic>
#include <stdexcept>
#include <thread>
#include <vector>

#include "data/loader.h"
#include "tests/data/lerobot_files.h"
#include "tests/data/model_files.h"

namespace plimsoll::data {
namespace {

constexpr std::int64_t kSmallFrame = 2 * 2 * 3, kTopFrame = 32 * 48 * 3;  // bytes

/// Frames of kSmallFrame bytes whose level is their row; counts how often one is decoded.
class FrameCacheTest : public ::testing::Test {
 protected:
  void get(const FrameKey& key) {
    const Image frame = cache.get(key, [&] {
      ++decoded;
      return grey(2, 2, static_cast<std::uint8_t>(key.row));
    });
    EXPECT_EQ(frame.pixels, grey(2, 2, static_cast<std::uint8_t>(key.row)).pixels);
  }
  static constexpr std::uint64_t kDataset = 100;  // not one of new_dataset()
  /// Of one dataset and camera.
  void get_rows(const std::vector<std::int64_t>& rows) {
    for (const std::int64_t row : rows) get({kDataset, 0, row});
  }
  FrameCache cache{3 * kSmallFrame};
  std::atomic<int> decoded = 0;
};

TEST_F(FrameCacheTest, GivesAFrameAgain) {
  get_rows({5, 5, 6, 5});
  EXPECT_EQ(decoded.load(), 2);
  EXPECT_EQ(cache.hits(), 2);
  EXPECT_EQ(cache.misses(), 2);
  EXPECT_EQ(cache.bytes(), 2 * kSmallFrame);
}

TEST_F(FrameCacheTest, TellsDatasetsAndCamerasApart) {
  get({1, 0, 5});
  get({1, 1, 5});
  get({2, 0, 5});
  EXPECT_EQ(decoded.load(), 3);
}

TEST_F(FrameCacheTest, DropsTheLongestUnused) {
  get_rows({1, 2, 3, 1, 4});
  EXPECT_EQ(cache.bytes(), 3 * kSmallFrame);
  EXPECT_EQ(decoded.load(), 4);
  get_rows({3, 1, 4});
  EXPECT_EQ(decoded.load(), 4);
  get_rows({2});
  EXPECT_EQ(decoded.load(), 5) << "it went for the fourth";
}

TEST_F(FrameCacheTest, KeepsWhatFits) {
  get_rows({1, 2, 3});
  cache.set_most_bytes(2 * kSmallFrame);
  EXPECT_EQ(cache.bytes(), 2 * kSmallFrame);
  cache.set_most_bytes(kSmallFrame - 1);
  EXPECT_EQ(cache.bytes(), 0);
  get_rows({1, 1});
  EXPECT_EQ(decoded.load(), 5) << "a frame that is too large is not kept";
  cache.set_most_bytes(0);
  get_rows({1});
  EXPECT_EQ(cache.bytes(), 0);
}

TEST_F(FrameCacheTest, KeepsNothingWhereDecodingFails) {
  EXPECT_THROW(cache.get({kDataset, 0, 7}, []() -> Image { throw std::runtime_error("damaged"); }), std::runtime_error);
  EXPECT_EQ(cache.bytes(), 0);
  get_rows({7, 7});
  EXPECT_EQ(decoded.load(), 1);
}

TEST_F(FrameCacheTest, ForgetsADatasetThatIsClosed) {
  get_rows({1});
  {
    DatasetFrames frames(cache), others(cache);
    frames.get(0, 2, [] { return grey(2, 2, 2); });
    others.get(0, 2, [] { return grey(2, 2, 2); });
    EXPECT_EQ(cache.misses(), 3) << "each has a number of its own";
  }
  EXPECT_EQ(cache.bytes(), kSmallFrame);
  get_rows({1});
  EXPECT_EQ(cache.hits(), 1);
}

TEST_F(FrameCacheTest, ServesManyThreads) {
  std::vector<std::thread> threads;
  for (std::int64_t t = 0; t < 4; ++t) {
    threads.emplace_back([this, t] {
      for (std::int64_t i = 0; i < 2000; ++i) get_rows({(i * 7 + t) % 5});
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(cache.hits() + cache.misses(), 4 * 2000);
  EXPECT_EQ(cache.misses(), decoded.load());
  EXPECT_LE(cache.bytes(), 3 * kSmallFrame);
}

/// Datasets of eight frames; what decoded_frames() has counted since.
class FramesOfADataset : public ::testing::Test {
 protected:
  FramesOfADataset() {
    write_counting_dataset(folder.file("set"), {4, 4});
    decoded_frames().set_most_bytes(kFrameBytes);
  }
  std::int64_t hits() const { return decoded_frames().hits() - hits_before; }
  std::int64_t misses() const { return decoded_frames().misses() - misses_before; }
  TestFolder folder;
  std::int64_t hits_before = decoded_frames().hits(), misses_before = decoded_frames().misses();
};

TEST_F(FramesOfADataset, AreDecodedOnce) {
  {
    const LeRobotDataset dataset(folder.file("set")), again(folder.file("set"));
    const std::size_t top = dataset.camera("observation.images.top");
    std::vector<Image> first;
    for (std::int64_t i = 0; i < 8; ++i) first.push_back(dataset.image(top, i));
    EXPECT_EQ(misses(), 8);
    EXPECT_EQ(hits(), 0);
    for (std::int64_t i = 7; i >= 0; --i)
      EXPECT_EQ(dataset.image(top, i).pixels, first[static_cast<std::size_t>(i)].pixels);
    EXPECT_EQ(misses(), 8);
    EXPECT_EQ(hits(), 8);
    EXPECT_EQ(again.image(top, 3).pixels, first[3].pixels);
    EXPECT_EQ(misses(), 9) << "its files may have changed since the other was opened";
    EXPECT_EQ(decoded_frames().bytes(), 9 * kTopFrame);
  }
  EXPECT_EQ(decoded_frames().bytes(), 0);
}

/// What the loader makes of the same dataset.
class LoaderOfADataset : public FramesOfADataset {
 protected:
  ModelFolder model;
  LeRobotSource source{force_source_options(folder.file("set")), std::make_shared<VlmProcessor>(model.path())};
};

// Twice as many draws in a step as there are samples.
TEST_F(LoaderOfADataset, DecodesOnceForAllDrawsOfASample) {
  LoaderOptions options;
  options.effective_batch = 16;
  Loader loader(source, options);
  std::int64_t samples = 0;
  for (std::uint64_t position = 0; position < 48; ++position) samples += loader.get(position) != nullptr;
  EXPECT_EQ(samples, 48);
  EXPECT_EQ(misses(), 8) << "one thread: none is decoded twice at the same time";
  EXPECT_GE(hits(), 48 - 8);
  EXPECT_GE(loader.held_bytes(), 8 * kTopFrame);
}

TEST_F(LoaderOfADataset, CountsFramesAmongTheBytesThatItMayHold) {
  LoaderOptions options;
  options.workers = 3;
  options.effective_batch = 2;
  options.prefetch = 8;
  options.most_bytes = 2_MiB;
  Loader loader(source, options);
  EXPECT_EQ(decoded_frames().most_bytes(), 2_MiB / 8);
  for (std::uint64_t position = 0; position < 60; ++position) {
    loader.get(position);
    EXPECT_LE(loader.held_bytes(), 2_MiB) << "at position " << position;
  }
  options.most_bytes = 8 * 2 * kTopFrame;  // two frames
  Loader scarce(source, options);
  EXPECT_EQ(decoded_frames().bytes(), 2 * kTopFrame) << "the others have gone";
  options.most_bytes = 0;
  const Loader unbounded(source, options);
  EXPECT_EQ(decoded_frames().most_bytes(), kFrameBytes);
}

}  // namespace
}  // namespace plimsoll::data
