// Each rule of the caching allocator with numbers worked out by hand (most of them in allocator_cases.h), then random
// lists of events against a plain rewriting of the rules that searches everything every time.
#include "memory/planning/caching_allocator.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>
#include <functional>
#include <limits>
#include <map>
#include <optional>
#include <random>
#include <sstream>
#include <vector>

#include "core/error.h"
#include "tests/memory/planning/allocator_cases.h"
#include "tests/memory/planning/without_rapidcheck.h"

#if __has_include(<rapidcheck/gtest.h>)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wshadow"
#include <rapidcheck/gtest.h>
#pragma GCC diagnostic pop
#define PLIMSOLL_HAS_RAPIDCHECK
#endif

namespace plimsoll::memory {
namespace {

constexpr std::int64_t kMiB = std::int64_t{1} << 20;

AllocatorRules limited(std::int64_t limit) { return {.expandable_segments = false, .limit_bytes = limit}; }
AllocatorRules expandable(std::optional<std::int64_t> limit = {}) {
  return {.expandable_segments = true, .limit_bytes = limit};
}

AllocatorStats after_one(std::int64_t bytes, const AllocatorRules& rules = {}) {
  CachingAllocatorModel model(rules);
  EXPECT_TRUE(model.allocate(bytes, 1));
  return model.stats();
}

// ---- sizes, reuse and the limit

class CachingAllocatorCase : public testing::TestWithParam<AllocatorCase> {};

TEST_P(CachingAllocatorCase, IsAsWorkedOutByHand) {
  const AllocatorCase& one = GetParam();
  CachingAllocatorModel model({.expandable_segments = false, .limit_bytes = one.limit});
  EXPECT_EQ(model.replay(one.events), one.failures == 0);
  expect_as_by_hand(model.stats(), one);
  EXPECT_EQ(one.limit.value_or(0) % (2 * kMiB), 0) << "or a GPU's limit, a fraction, is not that";
}

INSTANTIATE_TEST_SUITE_P(Rules, CachingAllocatorCase, testing::ValuesIn(allocator_cases()),
                         [](const auto& one) { return one.param.name; });

// 50 MiB blocks freed, then 60: enough is free, but nowhere in one piece.
void outgrow(CachingAllocatorModel& model) {
  for (std::uint64_t i = 1; i <= 4; ++i) model.allocate(50 * kMiB, i);
  for (std::uint64_t i = 1; i <= 4; ++i) model.free(i);
  for (std::uint64_t i = 5; i <= 7; ++i) model.allocate(60 * kMiB, i);
}

TEST(CachingAllocator, FragmentationNeedsANewSegmentAlthoughEnoughIsFree) {
  CachingAllocatorModel model;
  outgrow(model);
  EXPECT_EQ(model.stats().allocated, 180 * kMiB);
  EXPECT_EQ(model.stats().reserved, 380 * kMiB);  // 4 x 50 and 3 x 60
  EXPECT_EQ(model.stats().peak_allocated, 200 * kMiB);
  EXPECT_EQ(model.stats().fragmentation(), 10000 * 200 / 380);
}

TEST(CachingAllocator, FragmentationIsThatOfTheFullestMomentAtThePeak) {
  CachingAllocatorModel model;
  EXPECT_EQ(model.stats().fragmentation(), 0);
  model.allocate(5 * kMiB, 1);
  EXPECT_EQ(model.stats().fragmentation(), 7500);
  model.allocate(10 * kMiB, 2);
  EXPECT_EQ(model.stats().fragmentation(), 2500);
  model.free(2);
  EXPECT_EQ(model.stats().fragmentation(), 2500);
  model.allocate(15 * kMiB, 3);
  EXPECT_EQ(model.stats().fragmentation(), 0);
}

// ---- what is needed, and a limit that moves

TEST(CachingAllocator, NeededIsWhatAReleaseWouldLeave) {
  CachingAllocatorModel model;
  model.allocate(5 * kMiB, 1);
  model.allocate(30 * kMiB, 2);
  EXPECT_EQ(model.stats().needed, 50 * kMiB) << "15 MiB of the first segment are unused, and cannot be given back";
  model.free(2);
  EXPECT_EQ(model.stats().needed, 20 * kMiB);
  EXPECT_EQ(model.stats().reserved, 50 * kMiB);
  EXPECT_EQ(model.stats().peak_needed, 50 * kMiB);
  model.reset_peaks();
  EXPECT_EQ(model.stats().peak_needed, 20 * kMiB);
  model.release_cached();
  EXPECT_EQ(model.stats().needed, 20 * kMiB);
  EXPECT_EQ(model.stats().reserved, 20 * kMiB);
}

TEST(CachingAllocator, ALimitBelowWhatIsReservedFailsNothingThatIsServedFromIt) {
  CachingAllocatorModel model(limited(100 * kMiB));
  model.allocate(60 * kMiB, 1);
  model.free(1);
  model.set_limit(20 * kMiB);
  EXPECT_TRUE(model.allocate(60 * kMiB, 2)) << "cached, and no segment is made";
  EXPECT_EQ(model.stats().reserved, 60 * kMiB);
  EXPECT_FALSE(model.allocate(1, 3));
  model.free(2);
  EXPECT_TRUE(model.allocate(1, 3)) << "the 60 are given back for it";
  EXPECT_EQ(model.stats().reserved, 2 * kMiB);
  EXPECT_THROW(model.set_limit(-1), Error);
}

TEST(CachingAllocator, RequestsNoMachineHoldsFailWithoutOverflow) {
  for (const bool grows : {false, true}) {
    CachingAllocatorModel model({.expandable_segments = grows, .limit_bytes = {}});
    EXPECT_FALSE(model.allocate(std::numeric_limits<std::int64_t>::max(), 1));
    EXPECT_TRUE(model.allocate((std::int64_t{1} << 60) - 40 * kMiB, 2));
    EXPECT_FALSE(model.allocate((std::int64_t{1} << 60) - 40 * kMiB, 3));
    EXPECT_EQ(model.stats().failures, 2);
    EXPECT_LT(model.stats().fragmentation(), 1);
  }
}

// ---- expandable segments

TEST(CachingAllocator, ExpandableSegmentsMapInGranules) {
  EXPECT_EQ(after_one(1, expandable()).reserved, 2 * kMiB);
  EXPECT_EQ(after_one(1, expandable()).allocated, 512);
  EXPECT_EQ(after_one(3 * kMiB / 2, expandable()).reserved, 20 * kMiB);
  EXPECT_EQ(after_one(11 * kMiB, expandable()).reserved, 20 * kMiB);   // 12 without
  EXPECT_EQ(after_one(11 * kMiB, expandable()).allocated, 11 * kMiB);  // split from 512 B on
  EXPECT_EQ(after_one(21 * kMiB, expandable()).reserved, 40 * kMiB);
  EXPECT_EQ(after_one(40 * kMiB, expandable()).reserved, 40 * kMiB);
}

TEST(CachingAllocator, AnExpandableSegmentGrowsByWhatIsMissing) {
  CachingAllocatorModel model(expandable());
  model.allocate(11 * kMiB, 1);  // 20 mapped, 9 free at the end
  model.allocate(15 * kMiB, 2);  // 6 missing: one granule
  EXPECT_EQ(model.stats().reserved, 40 * kMiB);
  EXPECT_EQ(model.stats().allocated, 26 * kMiB);
  EXPECT_EQ(model.stats().segments, 1);
  EXPECT_EQ(model.stats().driver_calls, 2);
  model.allocate(14 * kMiB, 3);  // exactly the rest
  EXPECT_EQ(model.stats().reserved, 40 * kMiB);
}

TEST(CachingAllocator, ExpandableSegmentsAvoidTheFragmentation) {
  CachingAllocatorModel model(expandable());
  outgrow(model);
  EXPECT_EQ(model.stats().reserved, 200 * kMiB);  // 380 without
  EXPECT_EQ(model.stats().segments, 1);
}

TEST(CachingAllocator, OnlyWholeGranulesAreUnmapped) {
  CachingAllocatorModel model(expandable());
  model.allocate(15 * kMiB, 1);  // [0, 15)
  model.allocate(70 * kMiB, 2);  // [15, 85)
  model.allocate(15 * kMiB, 3);  // [85, 100)
  EXPECT_EQ(model.stats().reserved, 100 * kMiB);
  model.free(2);
  model.release_cached();  // [20, 80) of [15, 85)
  EXPECT_EQ(model.stats().reserved, 40 * kMiB);
  EXPECT_EQ(model.stats().allocated, 30 * kMiB);
  model.allocate(5 * kMiB, 4);  // free without mapping: [15, 20) or [80, 85)
  EXPECT_EQ(model.stats().reserved, 40 * kMiB);
}

TEST(CachingAllocator, AGapIsMappedAgainBeforeTheEndGrows) {
  CachingAllocatorModel model(expandable());
  model.allocate(15 * kMiB, 1);
  model.allocate(70 * kMiB, 2);
  model.allocate(15 * kMiB, 3);
  model.free(2);
  model.release_cached();  // live [0, 15), free [15, 20), gap [20, 80), free [80, 85), live [85, 100)
  // Fits into [15, 85) with the free pieces at both ends; [20, 80) is mapped. At the end 80 MiB would be mapped.
  model.allocate(70 * kMiB, 4);
  EXPECT_EQ(model.stats().reserved, 100 * kMiB);
  EXPECT_EQ(model.stats().allocated, 100 * kMiB);
  model.free(4);
  model.release_cached();
  model.allocate(71 * kMiB, 5);  // too large for the gap: [100, 171) at the end, 80 mapped
  EXPECT_EQ(model.stats().reserved, 120 * kMiB);
}

TEST(CachingAllocator, APieceThatCanGrowCountsAsTheSizeItCanReach) {
  CachingAllocatorModel model(expandable());
  model.allocate(5 * kMiB, 1);  // [0, 5)
  model.allocate(8 * kMiB, 2);  // [5, 13)
  model.allocate(5 * kMiB, 3);  // [13, 18); [18, 20) is free and can grow without end
  model.free(2);
  // 2 MiB: the free end fits exactly but could become huge; the 8 MiB piece is the better fit.
  model.allocate(2 * kMiB, 4);
  model.allocate(4 * kMiB, 5);  // from the 6 MiB left of it
  EXPECT_EQ(model.stats().reserved, 20 * kMiB);
  model.allocate(22 * kMiB, 6);  // the end, still whole: 2 free and 20 mapped
  EXPECT_EQ(model.stats().reserved, 40 * kMiB);
}

TEST(CachingAllocator, AnEmptyExpandableSegmentIsGivenBack) {
  CachingAllocatorModel model(expandable());
  model.allocate(1, 1);
  model.allocate(100 * kMiB, 2);
  EXPECT_EQ(model.stats().segments, 2);  // one a pool
  model.free(1);
  model.free(2);
  EXPECT_EQ(model.stats().reserved, 102 * kMiB) << "freed blocks stay mapped";
  model.release_cached();
  EXPECT_EQ(model.stats().reserved, 0);
  EXPECT_EQ(model.stats().segments, 0);
  EXPECT_TRUE(model.allocate(1, 3));
  EXPECT_EQ(model.stats().segments, 1);
}

TEST(CachingAllocator, ExpandableSegmentsUseWhatALimitLeavesWhereSegmentsFail) {
  const auto fill = [](CachingAllocatorModel& model) {
    for (std::uint64_t i = 1; i <= 5; ++i) model.allocate(20 * kMiB, i);  // the whole limit
    model.free(2);
    model.free(4);  // 40 free in two pieces between live ones
    return model.allocate(40 * kMiB, 6);
  };
  CachingAllocatorModel segments(limited(100 * kMiB)), grows(expandable(100 * kMiB));
  // Segments: both are given back, a new one of 40 fits. Expandable: both are unmapped, 40 mapped at the end.
  EXPECT_TRUE(fill(segments));
  EXPECT_TRUE(fill(grows));
  EXPECT_EQ(segments.stats().reserved, 100 * kMiB);
  EXPECT_EQ(grows.stats().reserved, 100 * kMiB);
  // Pieces of one segment that holds a live block are lost to segments, not to granules.
  const auto pieces = [](CachingAllocatorModel& model) {
    model.allocate(60 * kMiB, 1);
    model.free(1);
    model.allocate(10 * kMiB, 2);  // splits the 60
    return model.allocate(60 * kMiB, 3);
  };
  CachingAllocatorModel tight(limited(100 * kMiB)), granular(expandable(100 * kMiB));
  EXPECT_FALSE(pieces(tight));
  EXPECT_TRUE(pieces(granular));
  // The limit is compared with a whole segment of 60, so there is a retry: [20, 60) is unmapped, then [20, 80) mapped.
  EXPECT_EQ(granular.stats().reserved, 80 * kMiB);
  EXPECT_EQ(granular.stats().retries, 1);
}

TEST(CachingAllocator, ExpandableSegmentsMayExceedTheLimitByPartOfAGranule) {
  // Compared is the segment of 22 MiB that would be made without them; mapped are two granules.
  const auto stats = after_one(21 * kMiB, expandable(30 * kMiB));
  EXPECT_EQ(stats.reserved, 40 * kMiB);
  EXPECT_EQ(stats.failures, 0);
  CachingAllocatorModel model(expandable(30 * kMiB));
  model.allocate(21 * kMiB, 1);
  EXPECT_TRUE(model.allocate(19 * kMiB, 2)) << "mapped already";
  EXPECT_FALSE(model.allocate(1, 3));
}

// ---- lists of events

TEST(CachingAllocator, ReplayStopsAtTheRequestThatFails) {
  const std::array<AllocatorEvent, 4> events = {
      {{kMiB, 1, false}, {30 * kMiB, 2, false}, {0, 1, true}, {kMiB, 3, false}}};
  const auto stats = replay(events, limited(20 * kMiB));
  EXPECT_EQ(stats.failures, 1);
  EXPECT_EQ(stats.failed_request_bytes, 30 * kMiB);
  EXPECT_EQ(stats.live, kMiB) << "the free behind it was not reached";
  EXPECT_EQ(replay(events).live, 31 * kMiB);
  EXPECT_EQ(replay(events).peak_live, 31 * kMiB);
}

TEST(CachingAllocator, MicroBatchesFollowOneAnotherOverStaticBlocks) {
  const std::array<AllocatorEvent, 2> weights = {{{100 * kMiB, 1, false}, {kMiB, 2, false}}};
  const std::array<AllocatorEvent, 5> batch = {
      {{40 * kMiB, 1, false}, {0, 0, true}, {30 * kMiB, 2, false}, {0, 1, true}, {0, 2, true}}};
  CachingAllocatorModel model;
  EXPECT_TRUE(model.replay(weights));
  model.reset_peaks();
  EXPECT_EQ(model.stats().peak_live, 101 * kMiB);
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(model.replay(batch, 1000));
  EXPECT_EQ(model.stats().live, 101 * kMiB) << "weights stay";
  EXPECT_EQ(model.stats().peak_live, 171 * kMiB);
  EXPECT_EQ(model.stats().peak_reserved, 172 * kMiB);
  EXPECT_EQ(model.stats().driver_calls, 4) << "the second and third found everything cached";
  model.reset_peaks();
  EXPECT_EQ(model.stats().peak_live, 101 * kMiB);
  EXPECT_EQ(model.stats().peak_reserved, 172 * kMiB);
}

TEST(CachingAllocator, ListsThatMakeNoSenseAreRefused) {
  CachingAllocatorModel model;
  EXPECT_THROW(model.allocate(-1, 1), Error);
  EXPECT_THROW(model.allocate(64, 0), Error);
  model.allocate(64, 1);
  EXPECT_THROW(model.allocate(64, 1), Error);
  EXPECT_THROW(CachingAllocatorModel({.expandable_segments = false, .limit_bytes = -1}), Error);
  model.free(7);
  EXPECT_EQ(model.stats().live, 64);
}

// Like a training step: most blocks live briefly, some long.
std::vector<AllocatorEvent> long_list(std::size_t count) {
  std::mt19937_64 random(3);
  std::vector<AllocatorEvent> events;
  std::vector<std::uint64_t> live;
  std::uint64_t block = 0;
  while (events.size() < count) {
    if (live.size() > 2000 || (!live.empty() && random() % 2 == 0)) {
      const std::size_t at = random() % 4 == 0 ? random() % live.size() : live.size() - 1;
      events.push_back({0, live[at], true});
      std::swap(live[at], live.back());
      live.pop_back();
    } else {
      live.push_back(++block);
      events.push_back({static_cast<std::int64_t>(random() % (std::uint64_t{1} << (8 + random() % 18))), block, false});
    }
  }
  return events;
}

TEST(CachingAllocator, AMillionEventsAreReplayed) {
  const auto events = long_list(1'000'000);
  for (const bool grows : {false, true}) {
    const auto start = std::chrono::steady_clock::now();
    const auto stats = replay(events, {.expandable_segments = grows, .limit_bytes = {}});
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    RecordProperty(grows ? "expandable_milliseconds" : "milliseconds", static_cast<int>(took.count() * 1000));
    EXPECT_EQ(stats.failures, 0);
  }
}

#ifdef PLIMSOLL_HAS_RAPIDCHECK

// The same rules without expandable segments, written plainly: a segment is a list of pieces, everything is searched.
class PlainAllocator {
 public:
  explicit PlainAllocator(std::int64_t limit) : limit_(limit) {}

  bool allocate(std::int64_t bytes, std::uint64_t block) {
    if (bytes == 0) return true;
    const std::int64_t size = (bytes + 511) / 512 * 512;
    if (serve(size, block)) return true;
    std::int64_t segment = 20 * kMiB;
    if (size <= kMiB) segment = 2 * kMiB;
    if (size >= 10 * kMiB) segment = (size + 2 * kMiB - 1) / (2 * kMiB) * (2 * kMiB);
    if (reserved() + segment > limit_) release();
    if (reserved() + segment > limit_) return false;
    segments_.push_back({size <= kMiB, {{segment, 0}}});
    return serve(size, block);
  }
  void free(std::uint64_t block) {
    for (Segment& segment : segments_) {
      for (Piece& piece : segment.pieces)
        if (piece.block == block) piece.block = 0;
      for (std::size_t i = 1; i < segment.pieces.size();) {
        if (segment.pieces[i - 1].block != 0 || segment.pieces[i].block != 0) {
          ++i;
          continue;
        }
        segment.pieces[i - 1].size += segment.pieces[i].size;
        segment.pieces.erase(segment.pieces.begin() + static_cast<std::ptrdiff_t>(i));
      }
    }
  }
  void release() {
    std::erase_if(segments_, [](const Segment& s) { return s.pieces.size() == 1 && s.pieces[0].block == 0; });
  }
  std::int64_t reserved() const { return sum(true); }
  std::int64_t allocated() const { return sum(false); }

 private:
  struct Piece {
    std::int64_t size;
    std::uint64_t block;
  };
  struct Segment {
    bool small;
    std::vector<Piece> pieces;
  };

  bool serve(std::int64_t size, std::uint64_t block) {
    Segment* home = nullptr;
    std::size_t best = 0;
    for (Segment& segment : segments_) {
      for (std::size_t i = 0; segment.small == (size <= kMiB) && i < segment.pieces.size(); ++i) {
        const Piece& piece = segment.pieces[i];
        if (piece.block != 0 || piece.size < size) continue;
        if (home != nullptr && home->pieces[best].size <= piece.size) continue;
        home = &segment;
        best = i;
      }
    }
    if (home == nullptr) return false;
    const std::int64_t rest = home->pieces[best].size - size;
    home->pieces[best].block = block;
    if (home->small ? rest < 512 : rest <= kMiB) return true;
    home->pieces[best].size = size;
    home->pieces.insert(home->pieces.begin() + static_cast<std::ptrdiff_t>(best) + 1, {rest, 0});
    return true;
  }
  std::int64_t sum(bool free_too) const {
    std::int64_t bytes = 0;
    for (const Segment& segment : segments_)
      for (const Piece& piece : segment.pieces)
        if (free_too || piece.block != 0) bytes += piece.size;
    return bytes;
  }

  std::int64_t limit_;
  std::vector<Segment> segments_;
};

// The same for expandable segments: each pool is one list of pieces that ends in a very large unmapped one.
class PlainExpandable {
 public:
  explicit PlainExpandable(std::int64_t limit) : limit_(limit) {}

  bool allocate(std::int64_t bytes, std::uint64_t block) {
    if (bytes == 0) return true;
    const std::int64_t size = (bytes + 511) / 512 * 512;
    Pool& pool = size <= kMiB ? small_ : large_;
    std::size_t at = best(pool, size);
    if (at == pool.pieces.size()) {
      std::int64_t segment = 20 * kMiB;
      if (size <= kMiB) segment = 2 * kMiB;
      if (size >= 10 * kMiB) segment = (size + 2 * kMiB - 1) / (2 * kMiB) * (2 * kMiB);
      if (reserved() + segment > limit_) release();
      if (reserved() + segment > limit_) return false;
      at = lowest(pool, size);
      map(pool, at, size);
    }
    divide(pool, at, size);
    pool.pieces[at].block = block;
    return true;
  }
  void free(std::uint64_t block) {
    for (Pool* pool : {&small_, &large_}) {
      for (Piece& piece : pool->pieces)
        if (piece.block == block) piece.block = 0;
      join(*pool);
    }
  }
  void release() {
    for (Pool* pool : {&small_, &large_}) {
      std::int64_t offset = 0;
      for (std::size_t i = 0; i < pool->pieces.size(); offset += pool->pieces[i++].size) {
        const std::int64_t end = offset + pool->pieces[i].size;
        const std::int64_t from = (offset + pool->granule - 1) / pool->granule * pool->granule;
        const std::int64_t to = end / pool->granule * pool->granule;
        if (pool->pieces[i].block != 0 || !pool->pieces[i].mapped || from >= to) continue;
        if (from > offset) divide(*pool, i, from - offset);
        if (from > offset) offset += pool->pieces[i++].size;
        divide(*pool, i, to - from);
        pool->pieces[i].mapped = false;
      }
      join(*pool);
    }
  }
  std::int64_t reserved() const {
    return sum([](const Piece& piece) { return piece.mapped; });
  }
  std::int64_t allocated() const {
    return sum([](const Piece& piece) { return piece.block != 0; });
  }

 private:
  struct Piece {
    std::int64_t size = std::int64_t{1} << 50;
    std::uint64_t block = 0;
    bool mapped = false;
  };
  struct Pool {
    std::int64_t granule;
    std::vector<Piece> pieces = {{}};
  };

  static std::int64_t reach(const Pool& pool, std::size_t i) {
    const bool grows = i + 1 < pool.pieces.size() && !pool.pieces[i + 1].mapped;
    return pool.pieces[i].size + (grows ? pool.pieces[i + 1].size : 0);
  }
  static std::size_t best(const Pool& pool, std::int64_t size) {
    std::vector<std::size_t> fitting;
    for (std::size_t i = 0; i < pool.pieces.size(); ++i)
      if (pool.pieces[i].block == 0 && pool.pieces[i].mapped && pool.pieces[i].size >= size) fitting.push_back(i);
    if (fitting.empty()) return pool.pieces.size();
    std::stable_sort(fitting.begin(), fitting.end(),
                     [&](std::size_t a, std::size_t b) { return pool.pieces[a].size < pool.pieces[b].size; });
    std::size_t taken = 0;
    while (taken + 1 < fitting.size() && reach(pool, fitting[taken + 1]) < reach(pool, fitting[taken])) ++taken;
    return fitting[taken];
  }
  static std::size_t lowest(const Pool& pool, std::int64_t size) {
    for (std::size_t i = 0;; ++i) {  // ends at the large one
      if (pool.pieces[i].mapped) continue;
      const std::size_t start = i > 0 && pool.pieces[i - 1].block == 0 ? i - 1 : i;
      std::int64_t bytes = 0;
      for (std::size_t k = start; k < pool.pieces.size() && pool.pieces[k].block == 0; ++k)
        bytes += pool.pieces[k].size;
      if (bytes >= size) return start;
    }
  }
  static void map(Pool& pool, std::size_t start, std::int64_t size) {
    for (std::size_t i = start; size > 0; ++i) {
      if (!pool.pieces[i].mapped) {
        const std::int64_t wanted = std::min(size, pool.pieces[i].size);
        divide(pool, i, (wanted + pool.granule - 1) / pool.granule * pool.granule);
        pool.pieces[i].mapped = true;
      }
      size -= pool.pieces[i].size;
    }
    join(pool);
  }
  static void divide(Pool& pool, std::size_t i, std::int64_t size) {
    Piece rest = pool.pieces[i];
    rest.size -= size;
    if (rest.size == 0) return;
    pool.pieces[i].size = size;
    pool.pieces.insert(pool.pieces.begin() + static_cast<std::ptrdiff_t>(i) + 1, rest);
  }
  static void join(Pool& pool) {
    for (std::size_t i = 1; i < pool.pieces.size();) {
      Piece& before = pool.pieces[i - 1];
      const Piece& piece = pool.pieces[i];
      if (before.block != 0 || piece.block != 0 || before.mapped != piece.mapped) {
        ++i;
        continue;
      }
      before.size += piece.size;
      pool.pieces.erase(pool.pieces.begin() + static_cast<std::ptrdiff_t>(i));
    }
  }
  std::int64_t sum(const auto& counts) const {
    std::int64_t bytes = 0;
    for (const Pool* pool : {&small_, &large_})
      for (const Piece& piece : pool->pieces)
        if (counts(piece)) bytes += piece.size;
    return bytes;
  }

  std::int64_t limit_;
  Pool small_{2 * kMiB}, large_{20 * kMiB};
};

// 10,000 cases in `make proofs`, always the same ones; a slice of them else.
void check_cases(const std::function<void()>& property) {
  rc::detail::TestParams cases;
  cases.seed = 20;
  cases.maxSuccess = std::getenv("PLIMSOLL_PROOFS") != nullptr ? 10'000 : 300;
  const auto result = rc::detail::checkTestable(property, rc::detail::TestMetadata(), cases);
  if (result.is<rc::detail::SuccessResult>()) return;
  std::ostringstream text;
  rc::detail::printResultMessage(result, text);
  FAIL() << text.str();
}

// Sizes around the borders of the rules as often as anywhere.
std::int64_t any_bytes() {
  const std::int64_t border = *rc::gen::element<std::int64_t>(0, 512, kMiB, 2 * kMiB, 10 * kMiB, 20 * kMiB, 38 * kMiB);
  const std::int64_t spread = *rc::gen::element<std::int64_t>(1, 1024, kMiB, 8 * kMiB);
  return std::max<std::int64_t>(0, border + *rc::gen::inRange<std::int64_t>(-spread, spread + 1));
}

std::vector<AllocatorEvent> any_events() {
  std::vector<AllocatorEvent> events;
  const int count = *rc::gen::inRange(1, 60);
  for (int i = 0; i < count; ++i) {
    // Frees name any block so far, also one that is gone already.
    const bool free = i > 0 && *rc::gen::inRange(0, 5) < 2;
    const auto block = static_cast<std::uint64_t>(free ? *rc::gen::inRange(1, i + 1) : i + 1);
    events.push_back({free ? 0 : any_bytes(), block, free});
  }
  return events;
}

AllocatorRules any_rules(bool grows) {
  AllocatorRules rules{.expandable_segments = grows, .limit_bytes = {}};
  if (*rc::gen::arbitrary<bool>()) rules.limit_bytes = *rc::gen::inRange<std::int64_t>(0, 200 * kMiB);
  return rules;
}

TEST(CachingAllocatorProperties, ReservedCoversAllocatedCoversLive) {
  check_cases([] {
    const auto rules = any_rules(*rc::gen::arbitrary<bool>());
    const auto events = any_events();
    CachingAllocatorModel model(rules), twin(rules);
    std::int64_t live = 0;
    std::map<std::uint64_t, std::int64_t> blocks;
    for (const auto& event : events) {
      if (event.free) {
        model.free(event.block);
        live -= blocks[event.block];
        blocks.erase(event.block);
      } else if (model.allocate(event.bytes, event.block)) {
        blocks[event.block] = event.bytes;
        live += event.bytes;
      }
      const AllocatorStats& s = model.stats();
      RC_ASSERT(s.live == live);
      RC_ASSERT(s.reserved >= s.needed && s.needed >= s.allocated && s.allocated >= s.live);
      RC_ASSERT(s.peak_reserved >= s.peak_needed && s.peak_needed >= s.needed);
      RC_ASSERT(s.peak_reserved >= s.reserved && s.peak_allocated >= s.allocated && s.peak_live >= s.live);
      RC_ASSERT(s.fragmentation() >= 0 && s.fragmentation() <= 10000);
      if (rules.limit_bytes) RC_ASSERT(s.reserved <= *rules.limit_bytes + (rules.expandable_segments ? 20 * kMiB : 0));
      twin.replay({&event, 1});
    }
    RC_ASSERT(twin.stats() == model.stats());  // the same events, the same result
    for (const auto& [block, bytes] : blocks) model.free(block);
    RC_ASSERT(model.stats().live == 0 && model.stats().allocated == 0);
    model.release_cached();
    RC_ASSERT(model.stats().reserved == 0 && model.stats().segments == 0);
  });
}

template <class Plain>
void compare_with(const AllocatorRules& rules) {
  CachingAllocatorModel model(rules);
  Plain plain(rules.limit_bytes.value_or(std::int64_t{1} << 60));
  for (const auto& event : any_events()) {
    if (event.free) {
      model.free(event.block);
      plain.free(event.block);
    } else {
      RC_ASSERT(model.allocate(event.bytes, event.block) == plain.allocate(event.bytes, event.block));
    }
    if (*rc::gen::inRange(0, 20) == 0) {
      const std::int64_t needed = model.stats().needed;
      model.release_cached();
      plain.release();
      RC_ASSERT(model.stats().reserved == needed);
    }
    RC_ASSERT(model.stats().reserved == plain.reserved());
    RC_ASSERT(model.stats().allocated == plain.allocated());
  }
}

TEST(CachingAllocatorProperties, EqualsThePlainRules) {
  check_cases([] { compare_with<PlainAllocator>(any_rules(false)); });
}

TEST(CachingAllocatorProperties, EqualsThePlainRulesOfExpandableSegments) {
  check_cases([] { compare_with<PlainExpandable>(any_rules(true)); });
}

#else

TEST(CachingAllocatorProperties, NeedRapidCheck) { without_rapidcheck(); }

#endif

}  // namespace
}  // namespace plimsoll::memory
