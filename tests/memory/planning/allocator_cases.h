#pragma once
// Lists of allocations with what the caching allocator makes of them, worked out by hand: held against the model of it
// (caching_allocator_test.cpp) and against PyTorch's own on a GPU (tests/train/cuda_device.cpp). No expandable
// segments.

#include <gtest/gtest.h>

#include <cstdint>
#include <optional>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "memory/planning/caching_allocator.h"

namespace plimsoll::memory {

/// Figures after the last event, or after the request that fails.
struct AllocatorCase {
  std::string name;
  std::vector<AllocatorEvent> events;
  std::optional<std::int64_t> limit;  ///< a multiple of 2 MiB
  std::int64_t live = 0, allocated = 0, peak_allocated = 0, reserved = 0, peak_reserved = 0, needed = 0, segments = 0;
  std::int64_t retries = 0, failures = 0;

  friend std::ostream& operator<<(std::ostream& out, const AllocatorCase& one) { return out << one.name; }
};

inline void expect_as_by_hand(const AllocatorStats& stats, const AllocatorCase& one) {
  EXPECT_EQ(stats.live, one.live);
  EXPECT_EQ(stats.allocated, one.allocated);
  EXPECT_EQ(stats.peak_allocated, one.peak_allocated);
  EXPECT_EQ(stats.reserved, one.reserved);
  EXPECT_EQ(stats.peak_reserved, one.peak_reserved);
  EXPECT_EQ(stats.needed, one.needed);
  EXPECT_EQ(stats.segments, one.segments);
  EXPECT_EQ(stats.retries, one.retries);
  EXPECT_EQ(stats.failures, one.failures);
}

namespace allocator_cases_detail {

inline constexpr std::int64_t kKiB = 1024, kMiB = 1024 * kKiB;

inline AllocatorEvent take(std::int64_t bytes, std::uint64_t block) { return {.bytes = bytes, .block = block}; }
inline AllocatorEvent give(std::uint64_t block) { return {.block = block, .free = true}; }
inline AllocatorEvent release() { return {.release = true}; }

/// One request in an empty allocator.
inline AllocatorCase alone(const char* name, std::int64_t bytes, std::int64_t allocated, std::int64_t reserved) {
  return {name, {take(bytes, 1)}, {}, bytes, allocated, allocated, reserved, reserved, reserved, 1};
}

inline std::vector<AllocatorCase> sizes() {
  return {
      alone("OneByte", 1, 512, 2 * kMiB),
      alone("RoundedUpTo512", 513, 1024, 2 * kMiB),
      alone("OneByteUnderAMebibyte", kMiB - 1, kMiB, 2 * kMiB),
      alone("TheLargestSmallOne", kMiB, kMiB, 2 * kMiB),
      alone("TheSmallestLargeOne", kMiB + 1, kMiB + 512, 20 * kMiB),
      alone("ASharedSegment", 3 * kMiB / 2, 3 * kMiB / 2, 20 * kMiB),
      alone("TheLargestOfASharedSegment", 10 * kMiB - 512, 10 * kMiB - 512, 20 * kMiB),
      // Rounding comes first: 10 MiB less one byte is 10 MiB and gets a segment of its own.
      alone("TheSmallestOfItsOwnSegment", 10 * kMiB - 1, 10 * kMiB, 10 * kMiB),
      alone("SegmentsInStepsOfTwoMebibytes", 10 * kMiB + 1, 10 * kMiB + 512, 12 * kMiB),
      alone("ALargeSegment", 100 * kMiB, 100 * kMiB, 100 * kMiB),
      alone("ARestOfOneMebibyteStays", 11 * kMiB, 12 * kMiB, 12 * kMiB),
      alone("ALargerRestIsSplitOff", 11 * kMiB - 512, 11 * kMiB - 512, 12 * kMiB),
      alone("ARestOfOneMebibyteStaysInTwenty", 19 * kMiB, 20 * kMiB, 20 * kMiB),
      {"ARestOf512IsSplitFromASmallBlock",
       {take(kMiB, 1), take(kMiB - 512, 2), take(512, 3), take(1, 4)},
       {},
       2 * kMiB + 1,
       2 * kMiB + 512,
       2 * kMiB + 512,
       4 * kMiB,
       4 * kMiB,
       4 * kMiB,
       2},
      {"NothingIsNoBlock", {take(0, 1), give(1), take(64, 1)}, {}, 64, 512, 512, 2 * kMiB, 2 * kMiB, 2 * kMiB, 1},
  };
}

inline std::vector<AllocatorCase> reuse() {
  AllocatorCase again{"AFreedBlockIsServedAgain", {}, {}, 0, 0, 50 * kMiB, 50 * kMiB, 50 * kMiB, 0, 1};
  for (std::uint64_t i = 1; i <= 5; ++i) {
    again.events.push_back(take(50 * kMiB, i));
    again.events.push_back(give(i));
  }
  // Four pieces of one segment.
  const auto quarters = [](std::vector<AllocatorEvent> then) {
    std::vector<AllocatorEvent> events;
    for (std::uint64_t i = 1; i <= 4; ++i) events.push_back(take(5 * kMiB, i));
    events.insert(events.end(), then.begin(), then.end());
    return events;
  };
  const auto full = [](const char* name, std::vector<AllocatorEvent> events, std::int64_t bytes,
                       std::int64_t segments) {
    return AllocatorCase{name, std::move(events), {}, bytes, bytes, bytes, bytes, bytes, bytes, segments};
  };
  return {
      again,
      // The 30, though the 40 lies lower.
      full("TheSmallestBlockThatFits",
           {take(40 * kMiB, 1), take(30 * kMiB, 2), give(1), give(2), take(30 * kMiB, 3), take(40 * kMiB, 4)},
           70 * kMiB, 2),
      // The place of 1, so that freeing 2 joins 2 and 3.
      full("AmongEqualBlocksTheLowest", quarters({give(1), give(3), take(5 * kMiB, 5), give(2), take(10 * kMiB, 6)}),
           20 * kMiB, 1),
      full("NeighboursMergeOnBothSides",
           quarters({give(1), give(3), give(2), take(15 * kMiB, 5), give(5), give(4), take(20 * kMiB, 6)}), 20 * kMiB,
           1),
      {"PoolsShareNothing",
       {take(5 * kMiB, 1), take(kKiB, 2), give(2), take(6 * kMiB, 3)},
       {},
       11 * kMiB,
       11 * kMiB,
       11 * kMiB,
       22 * kMiB,
       22 * kMiB,
       20 * kMiB,
       2},
      {"SegmentsNeverMerge",
       {take(10 * kMiB, 1), take(10 * kMiB, 2), give(1), give(2), take(20 * kMiB, 3)},
       {},
       20 * kMiB,
       20 * kMiB,
       20 * kMiB,
       40 * kMiB,
       40 * kMiB,
       20 * kMiB,
       3},
  };
}

/// 50 MiB blocks freed, then 60: enough is free, but nowhere in one piece.
inline std::vector<AllocatorEvent> outgrown() {
  std::vector<AllocatorEvent> events;
  for (std::uint64_t i = 1; i <= 4; ++i) events.push_back(take(50 * kMiB, i));
  for (std::uint64_t i = 1; i <= 4; ++i) events.push_back(give(i));
  for (std::uint64_t i = 5; i <= 7; ++i) events.push_back(take(60 * kMiB, i));
  return events;
}

inline std::vector<AllocatorCase> limits() {
  return {
      {"FragmentationNeedsNewSegments",
       outgrown(),
       {},
       180 * kMiB,
       180 * kMiB,
       200 * kMiB,
       380 * kMiB,
       380 * kMiB,
       180 * kMiB,
       7},
      // 200 are cached, a first 60 makes 260, the second needs the 200 back.
      {"TheLimitReleasesWhatIsCached", outgrown(), 300 * kMiB, 180 * kMiB, 180 * kMiB, 200 * kMiB, 180 * kMiB,
       260 * kMiB, 180 * kMiB, 3, 1},
      // A retry is counted though there was nothing to release.
      {"TheLimitItselfMayBeReserved",
       {take(40 * kMiB, 1), take(1, 2)},
       40 * kMiB,
       40 * kMiB,
       40 * kMiB,
       40 * kMiB,
       40 * kMiB,
       40 * kMiB,
       40 * kMiB,
       1,
       1,
       1},
      // 15 of the segment's 20 MiB are free, but block 1 lives.
      {"ASegmentWithALiveBlockIsKept",
       {take(5 * kMiB, 1), take(9 * kMiB, 2), give(2), take(30 * kMiB, 3)},
       40 * kMiB,
       5 * kMiB,
       5 * kMiB,
       14 * kMiB,
       20 * kMiB,
       20 * kMiB,
       20 * kMiB,
       1,
       1,
       1},
      {"WithoutItIsReleased",
       {take(5 * kMiB, 1), take(9 * kMiB, 2), give(2), give(1), take(30 * kMiB, 3)},
       40 * kMiB,
       30 * kMiB,
       30 * kMiB,
       30 * kMiB,
       30 * kMiB,
       30 * kMiB,
       30 * kMiB,
       1,
       1},
      {"BothPoolsAreReleased",
       {take(1, 1), give(1), take(22 * kMiB, 2)},
       22 * kMiB,
       22 * kMiB,
       22 * kMiB,
       22 * kMiB,
       22 * kMiB,
       22 * kMiB,
       22 * kMiB,
       1,
       1},
      {"AReleaseByHandIsNoRetry",
       {take(kMiB, 1), take(30 * kMiB, 2), give(2), release()},
       {},
       kMiB,
       kMiB,
       31 * kMiB,
       2 * kMiB,
       32 * kMiB,
       2 * kMiB,
       1},
      {"AReleaseKeepsWhatHoldsALiveBlock",
       {take(5 * kMiB, 1), take(5 * kMiB, 2), give(2), release()},
       {},
       5 * kMiB,
       5 * kMiB,
       10 * kMiB,
       20 * kMiB,
       20 * kMiB,
       20 * kMiB,
       1},
  };
}

}  // namespace allocator_cases_detail

inline std::vector<AllocatorCase> allocator_cases() {
  std::vector<AllocatorCase> all;
  for (const auto& some :
       {allocator_cases_detail::sizes(), allocator_cases_detail::reuse(), allocator_cases_detail::limits()})
    all.insert(all.end(), some.begin(), some.end());
  return all;
}

}  // namespace plimsoll::memory
