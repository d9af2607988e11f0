#include "data/loader.h"

#include <gmock/gmock.h>
#include <malloc.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <fstream>
#include <map>
#include <numeric>
#include <set>
#include <thread>

#include "core/bytes.h"
#include "core/error.h"
#include "data/frame_cache.h"
#include "data/sample_stream.h"
#include "tests/data/lerobot_files.h"
#include "tests/data/mixture.h"
#include "tests/data/model_files.h"

namespace plimsoll::data {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

/// Samples that hold nothing but their number; some cannot be loaded. Counts what is asked of it.
class NumberedSource final : public SampleSource {
 public:
  explicit NumberedSource(std::int64_t size) : training_(static_cast<std::size_t>(size)) {
    std::iota(training_.begin(), training_.end(), 0);
  }
  std::int64_t size() const override { return static_cast<std::int64_t>(training_.size()); }
  SampleDims dims() const override { return {}; }
  SampleShape shape_of(std::int64_t) const override { return {}; }
  Sample load(std::int64_t index) const override { return load_at(index, 0); }
  Sample load_at(std::int64_t index, std::int64_t resolution) const override {
    ++loads;
    if (milliseconds > 0) std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
    if (index == broken && (repaired_after < 0 || ++attempts <= repaired_after))
      fail(ExitCode::kData, "file.parquet: column action: row 3 is null");
    Sample sample;
    sample.index = index;
    sample.state.assign(floats, static_cast<float>(resolution));
    return sample;
  }
  const std::vector<std::int64_t>& training() const override { return training_; }
  const std::vector<std::int64_t>& held_out() const override { return held_out_; }
  std::uint64_t hash() const override { return 0; }

  std::int64_t broken = -1, repaired_after = -1;
  std::size_t floats = 1;  ///< of a sample
  int milliseconds = 0;    ///< that loading one takes
  mutable std::atomic<std::int64_t> loads = 0, attempts = 0;

 private:
  std::vector<std::int64_t> training_, held_out_;
};

LoaderOptions options_for(std::int64_t batch, int workers = 1) {
  LoaderOptions options;
  options.workers = workers;
  options.effective_batch = batch;
  options.seed = 7;
  return options;
}

std::vector<std::int64_t> drawn(Loader& loader, std::int64_t from_step, std::int64_t to_step,
                                const LoaderOptions& options) {
  std::vector<std::int64_t> indices;
  for (std::int64_t step = from_step; step <= to_step; ++step) {
    const StreamRange share = share_of_step(step, options.effective_batch, options.rank, options.world);
    for (std::uint64_t position = share.begin; position < share.end; ++position)
      indices.push_back(loader.get(position)->index);
  }
  return indices;
}

std::vector<std::int64_t> expected(const NumberedSource& source, std::uint64_t from, std::uint64_t to) {
  SampleStream stream(source.training(), 7);
  std::vector<std::int64_t> indices;
  for (std::uint64_t position = from; position < to; ++position) indices.push_back(stream.at(position));
  return indices;
}

TEST(Loader, GivesTheStreamWhateverTheWorkers) {
  const NumberedSource source(10);
  for (const int workers : {1, 2, 5}) {
    for (const std::int64_t prefetch : {0, 1, 4}) {
      auto options = options_for(4, workers);
      options.prefetch = prefetch;
      Loader loader(source, options);
      EXPECT_EQ(drawn(loader, 1, 8, options), expected(source, 0, 32));
    }
  }
}

TEST(Loader, RanksTogetherSeeTheStreamAtAnyWorld) {
  const NumberedSource source(11);
  for (const int world : {1, 2, 3}) {
    std::vector<std::int64_t> all(7 * 6);
    for (int rank = 0; rank < world; ++rank) {
      auto options = options_for(7, 2);
      options.rank = rank;
      options.world = world;
      Loader loader(source, options);
      for (std::int64_t step = 1; step <= 6; ++step) {
        const StreamRange share = share_of_step(step, 7, rank, world);
        EXPECT_THAT(share.end - share.begin,
                    ::testing::AnyOf(7u / static_cast<unsigned>(world), 7u / static_cast<unsigned>(world) + 1));
        for (auto position = share.begin; position < share.end; ++position) all[position] = loader.get(position)->index;
      }
    }
    EXPECT_EQ(all, expected(source, 0, 42)) << world;
  }
}

/// Adds what all ranks of a world draw from step `from` to step `to`, by position.
void draw_steps(const NumberedSource& source, LoaderOptions options, std::int64_t from, std::int64_t to,
                std::map<std::uint64_t, std::int64_t>& draws) {
  options.first_step = from;
  for (options.rank = 0; options.rank < options.world; ++options.rank) {
    Loader loader(source, options);
    for (std::int64_t step = from; step <= to; ++step) {
      const StreamRange share = share_of_step(step, options.effective_batch, options.rank, options.world);
      for (auto position = share.begin; position < share.end; ++position)
        EXPECT_TRUE(draws.emplace(position, loader.get(position)->index).second) << "position " << position << " twice";
    }
  }
}

/// Every pass over the samples of a type (of a type's dataset, where these have weights) has each of them once; the
/// last one may have ended in its middle.
void expect_whole_passes(const StreamOrder& order, const std::map<std::uint64_t, std::int64_t>& draws) {
  std::map<std::int64_t, std::vector<std::int64_t>> all, passes;  // by type and dataset
  for (const std::int64_t sample : order.samples) all[sample / 100].push_back(sample);
  for (const auto& [position, sample] : draws) {
    auto& pass = passes[sample / 100];
    const auto& whole = all[sample / 100];
    pass.push_back(sample);
    if (pass.size() < whole.size()) continue;
    EXPECT_THAT(pass, ::testing::UnorderedElementsAreArray(whole)) << "the pass that ends at position " << position;
    pass.clear();
  }
  for (const auto& [number, rest] : passes)
    EXPECT_EQ(std::set<std::int64_t>(rest.begin(), rest.end()).size(), rest.size()) << "class " << number;
}

// Stopped in the middle of an epoch by one world, gone on with by another.
TEST(Loader, LosesAndDoublesNoneFromAnyWorldToAnyOther) {
  const NumberedSource source(1);  // what is drawn is the order's
  constexpr std::int64_t kSteps = 14;
  for (const auto& order : {mixture({11}, {}, 7), mixture({7, 5, 3}, {5000, 3000, 2000}, 7),
                            weighted_mixture({{4, 3}, {5, 0}, {2, 1}}, {5000, 3000, 2000}, {3, 1}, 7)}) {
    for (int before = 1; before <= 3; ++before) {
      for (int after = 1; after <= 3; ++after) {
        for (const std::int64_t stop : {1, 4, 7}) {
          SCOPED_TRACE(::testing::Message()
                       << (order->target.empty() ? "one type, " : "a mixture, ") << order->weights.size()
                       << " weights, " << before << " ranks until step " << stop << ", then " << after);
          auto options = options_for(4, 2);
          options.order = order;
          std::map<std::uint64_t, std::int64_t> draws;
          options.world = before;
          draw_steps(source, options, 1, stop, draws);
          options.world = after;
          draw_steps(source, options, stop + 1, kSteps, draws);
          ASSERT_EQ(draws.size(), static_cast<std::size_t>(4 * kSteps));
          EXPECT_EQ(draws.rbegin()->first, draws.size() - 1) << "all positions from 0";
          expect_whole_passes(*order, draws);
        }
      }
    }
  }
}

TEST(ShareOfStep, CutsEveryEffectiveBatchExactly) {
  for (std::int64_t effective = 1; effective <= 64; ++effective) {
    for (int world = 1; world <= effective; ++world) {
      for (const std::int64_t step : {std::int64_t{1}, std::int64_t{2}, std::int64_t{1000000007}}) {
        auto expected = static_cast<std::uint64_t>((step - 1) * effective);
        for (int rank = 0; rank < world; ++rank) {
          const StreamRange share = share_of_step(step, effective, rank, world);
          ASSERT_EQ(share.begin, expected) << effective << " over " << world << ", rank " << rank;
          const std::int64_t count = static_cast<std::int64_t>(share.end - share.begin);
          ASSERT_TRUE(count == effective / world || count == (effective + world - 1) / world);
          expected = share.end;
        }
        ASSERT_EQ(expected, static_cast<std::uint64_t>(step * effective));
      }
    }
  }
}

TEST(ShareOfStep, DrawsASampleOncePerEpochThatTheStepReachesInto) {
  for (std::int64_t samples = 1; samples <= 12; ++samples) {
    for (std::int64_t effective = 1; effective <= 30; ++effective) {
      std::int64_t most = 0;
      for (std::int64_t step = 1; step <= samples; ++step) {
        const StreamRange drawn = share_of_step(step, effective, 0, 1);
        const auto epoch = [&](std::uint64_t position) { return static_cast<std::int64_t>(position) / samples; };
        most = std::max(most, epoch(drawn.end - 1) - epoch(drawn.begin) + 1);
      }
      EXPECT_EQ(most_draws_in_a_step(samples, effective), most) << samples << " samples, " << effective << " a step";
    }
  }
}

TEST(Loader, ResumesAndSeeksInBothDirections) {
  const NumberedSource source(10);
  auto options = options_for(4, 2);
  options.first_step = 6;
  Loader loader(source, options);
  EXPECT_EQ(drawn(loader, 6, 8, options), expected(source, 20, 32));
  EXPECT_EQ(drawn(loader, 2, 3, options), expected(source, 4, 12));
  loader.seek(100);
  EXPECT_EQ(drawn(loader, 100, 101, options), expected(source, 396, 404));
}

TEST(Loader, KeepsAStepForItsReplay) {
  const NumberedSource source(40);
  auto options = options_for(4);
  options.prefetch = 1;
  Loader loader(source, options);
  const auto first = drawn(loader, 1, 1, options);
  EXPECT_EQ(drawn(loader, 1, 1, options), first);
  drawn(loader, 2, 2, options);
  EXPECT_LE(source.loads, 12) << "a sample was loaded twice";
}

TEST(Loader, HoldsNoMoreThanItsWindow) {
  const NumberedSource source(1000);
  auto options = options_for(5, 3);
  options.prefetch = 2;
  Loader loader(source, options);
  drawn(loader, 1, 10, options);
  loader.set_prefetch(0);
  EXPECT_LE(source.loads, 5 * 12);
}

// The step being used is loaded whatever it takes; beyond it no sample is begun that might pass the limit.
TEST(Loader, HoldsNoMoreBytesThanItMay) {
  NumberedSource source(1000);
  source.floats = 256;
  for (const std::int64_t samples_that_fit : {3, 5, 9, 100}) {
    auto options = options_for(5, 3);
    options.prefetch = 8;
    options.most_bytes = samples_that_fit * 1024;
    Loader loader(source, options);
    std::vector<std::int64_t> all;
    for (std::int64_t step = 1; step <= 30; ++step) {
      const auto now = drawn(loader, step, step, options);
      all.insert(all.end(), now.begin(), now.end());
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      EXPECT_LE(loader.held_bytes(), std::max<std::int64_t>(5, samples_that_fit) * 1024);
    }
    EXPECT_EQ(all, expected(source, 0, 150));
    const LoaderPeak peak = loader.peak();
    EXPECT_EQ(peak.sample, 1024);
    EXPECT_GE(peak.held, 5 * 1024) << "a step's samples are held at once";
    EXPECT_LE(peak.held, std::max<std::int64_t>(5, samples_that_fit) * 1024) << "with those in the making";
  }
}

// What is queued already is not loaded after the window has become smaller.
TEST(Loader, LoadsLessAfterItWasToldTo) {
  NumberedSource source(1000);
  source.milliseconds = 2;
  auto options = options_for(5, 1);
  options.prefetch = 50;
  Loader loader(source, options);
  drawn(loader, 1, 1, options);
  loader.set_prefetch(1);
  drawn(loader, 2, 2, options);
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  EXPECT_LE(source.loads, 5 * 3 + 1) << "two steps, one ahead, and what was being loaded";
  EXPECT_EQ(drawn(loader, 3, 12, options), expected(source, 10, 60));
}

TEST(Loader, CarriesAnErrorToWhoAsksForTheSample) {
  NumberedSource source(6);
  source.broken = 4;
  const auto options = options_for(6, 2);
  Loader loader(source, options);
  const auto order = expected(source, 0, 6);
  for (std::uint64_t position = 0; position < 6; ++position) {
    if (order[position] != 4) {
      EXPECT_EQ(loader.get(position)->index, order[position]);
      continue;
    }
    for (int again = 0; again < 2; ++again) {
      try {
        loader.get(position);
        ADD_FAILURE() << "no error";
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), ExitCode::kData);
        EXPECT_THAT(error.what(), AllOf(HasSubstr("sample 4"), HasSubstr("file.parquet"), HasSubstr("row 3")));
      }
    }
  }
}

TEST(Loader, TriesAgainAfterAnError) {
  NumberedSource source(3);
  source.broken = 1;
  source.repaired_after = 1;
  const auto options = options_for(3);
  Loader loader(source, options);
  const auto order = expected(source, 0, 3);
  const auto position = static_cast<std::uint64_t>(std::find(order.begin(), order.end(), 1) - order.begin());
  EXPECT_THROW(loader.get(position), Error);
  EXPECT_EQ(loader.get(position)->index, 1);
}

TEST(Loader, RefusesPositionsOfOtherRanksAndBadOptions) {
  const NumberedSource source(6);
  auto options = options_for(4);
  options.world = 2;
  options.rank = 1;
  Loader loader(source, options);
  EXPECT_EQ(loader.get(2)->index, expected(source, 0, 4)[2]);
  EXPECT_THROW(loader.get(0), Error);
  options.workers = 0;
  EXPECT_THROW(Loader(source, options), Error);
  EXPECT_THROW(loader.set_workers(0), Error);
}

TEST(Loader, ChangesWorkersAndResolutionWhileItRuns) {
  const NumberedSource source(10);
  const auto options = options_for(4, 1);
  Loader loader(source, options);
  std::vector<std::int64_t> all;
  for (std::int64_t step = 1; step <= 12; ++step) {
    loader.set_workers(1 + static_cast<int>(step * 5 % 4));
    const auto now = drawn(loader, step, step, options);
    all.insert(all.end(), now.begin(), now.end());
  }
  EXPECT_EQ(all, expected(source, 0, 48));
  loader.set_resolution(224);
  EXPECT_EQ(loader.get(44)->state[0], 224);
  EXPECT_EQ(loader.get(48)->state[0], 224);
}

TEST(Loader, MeasuresWhatLoadingTakes) {
  NumberedSource source(100);
  source.milliseconds = 2;
  const auto options = options_for(4, 2);
  Loader loader(source, options);
  drawn(loader, 1, 5, options);
  EXPECT_GE(loader.load_time().count(), 5 * 4 * 2'000'000) << "of both threads together";
}

/// Bytes of this process that lie in the machine's memory, but for what the allocator keeps of what was freed: how much
/// that is depends on which threads came and went when.
std::int64_t resident_bytes() {
  ::malloc_trim(0);
  std::ifstream status("/proc/self/statm");
  std::int64_t size = 0, resident = 0;
  status >> size >> resident;
  return resident * ::sysconf(_SC_PAGESIZE);
}

// Room for the moment's samples in as many arenas of the allocator as there are threads (12 samples of 0.2 MB are ready
// at most), some of which may first be full after the first measurement. Of 100,000 samples it is 140 bytes each, and
// one that is kept of a thousand would be more; in the short run it is less than a frame each.
constexpr std::int64_t kSlack = 12_MiB;

// More files than idle decoders, more frames than are kept, and threads that come and go.
TEST(Loader, DoesNotGrow) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "the address sanitizer holds back what was freed";
#endif
  const std::int64_t samples = std::getenv("PLIMSOLL_PROOFS") != nullptr ? 100'000 : 4'000;
  const TestFolder folder;
  const ModelFolder model;
  auto writing = counting_options();
  writing.frames_per_video_file = 1;  // an episode a file
  write_counting_dataset(folder.file("set"), std::vector<std::int64_t>(12, 8), writing);
  const LeRobotSource source(force_source_options(folder.file("set")), std::make_shared<VlmProcessor>(model.path()));
  const auto options = options_for(4, 2);
  Loader loader(source, options);
  decoded_frames().set_most_bytes(64_KiB);
  const std::int64_t steps = samples / options.effective_batch;
  std::int64_t early = 0;
  for (std::int64_t step = 1; step <= steps; ++step) {
    if (step % 20 == 0) loader.set_workers(1 + static_cast<int>(step / 20 % 3));
    drawn(loader, step, step, options);
    if (step == steps / 10) early = resident_bytes();
  }
  EXPECT_LT(resident_bytes() - early, kSlack) << "after " << samples << " samples";
}

TEST(Loader, StopsCleanlyAtAnyMoment) {
  const NumberedSource source(1000);
  for (int i = 0; i < 50; ++i) {
    auto options = options_for(64, 4);
    options.first_step = i + 1;
    Loader loader(source, options);
    if (i % 3 == 0) loader.seek(2 * i + 1);
    if (i % 5 == 0) loader.get(static_cast<std::uint64_t>(64 * i));
  }
}

}  // namespace
}  // namespace plimsoll::data
