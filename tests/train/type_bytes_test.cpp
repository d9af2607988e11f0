#include "train/type_bytes.h"

#include <gtest/gtest.h>

#include <limits>

namespace plimsoll::train {
namespace {

TEST(TypeBytes, AMicroBatchOfOneTypeIsAllOfIt) {
  std::vector<TypeMemory> types(2);
  const std::vector<TypedSample> samples = {{1, 30}, {1, 50}};
  compare(samples, 110, 100, types);
  EXPECT_EQ(types[0].micro_batches, 0);
  EXPECT_EQ(types[1].micro_batches, 1);
  EXPECT_EQ(types[1].samples, 2);
  EXPECT_EQ(types[1].predicted, 110);
  EXPECT_EQ(types[1].measured, 100);
  EXPECT_DOUBLE_EQ(types[1].largest_error, 0.1);
}

TEST(TypeBytes, AMixedOneIsSharedByWhatEachNeedsAloneAndItsErrorIsEverybodys) {
  std::vector<TypeMemory> types(3);
  const std::vector<TypedSample> samples = {{0, 100}, {2, 200}, {2, 100}};
  compare(samples, 3600, 4000, types);
  EXPECT_EQ(types[0].measured, 1000);
  EXPECT_EQ(types[2].measured, 3000);
  EXPECT_EQ(types[0].predicted, 900);
  EXPECT_EQ(types[2].predicted, 2700);
  EXPECT_DOUBLE_EQ(types[0].error_sum, 0.1);
  EXPECT_DOUBLE_EQ(types[2].error_sum, 0.1);
  compare(samples, 5000, 4000, types);
  EXPECT_EQ(types[2].micro_batches, 2);
  EXPECT_DOUBLE_EQ(types[2].error_sum, 0.35);
  EXPECT_DOUBLE_EQ(types[2].largest_error, 0.25);
}

TEST(TypeBytes, WhatHasNoBytesIsNotCompared) {
  std::vector<TypeMemory> types(1);
  const std::vector<TypedSample> samples = {{0, 0}};
  compare(samples, 0, 10, types);
  compare(samples, 10, 0, types);
  compare({}, 10, 10, types);
  EXPECT_EQ(types[0].micro_batches, 0);
  compare(samples, 10, 10, types);
  EXPECT_EQ(types[0].measured, 10) << "samples of no bytes share alike";
}

/// The slots of all ranks after the reduction: each rank writes its own, and the others add zeros to them.
std::vector<float> reduced(const std::vector<std::vector<TypeMemory>>& ranks) {
  const auto of_a_rank = ranks.front().size() * static_cast<std::size_t>(kTypeMemorySlots);
  std::vector<float> sums(ranks.size() * of_a_rank);
  for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
    std::vector<float> mine(sums.size());
    pack_types(ranks[rank], std::span(mine).subspan(rank * of_a_rank, of_a_rank));
    for (std::size_t i = 0; i < sums.size(); ++i) sums[i] += mine[i];
  }
  return sums;
}

TEST(TypeBytes, OfAllRanksBytesAreSummedExactly) {
  const std::int64_t odd = (std::int64_t{1} << 40) + 12345677, large = (std::int64_t{1} << 24) - 1;
  const std::vector<float> slots = reduced({{{1, 2, odd, odd + 1, 0.25, 0.25}, {}},
                                            {{3, 4, odd + 3, large, 0.5, 0.125}, {1, 1, 7, 8, 0.75, 0.75}},
                                            {{}, {large, 1, 1, 1, 0, 0}}});
  const auto types = sum_types(slots, 2);
  ASSERT_EQ(types.size(), 2U);
  EXPECT_EQ(types[0].micro_batches, 4);
  EXPECT_EQ(types[0].samples, 6);
  EXPECT_EQ(types[0].predicted, 2 * odd + 3);
  EXPECT_EQ(types[0].measured, odd + 1 + large);
  EXPECT_EQ(types[0].error_sum, 0.75);
  EXPECT_EQ(types[0].largest_error, 0.25) << "the largest of any rank, not their sum";
  EXPECT_EQ(types[1].micro_batches, 1 + large);
  EXPECT_EQ(types[1].measured, 9);
  EXPECT_EQ(types[1].largest_error, 0.75);
}

TEST(TypeBytes, WhatFitsNoSlotIsTheLargestNumberThatDoes) {
  const std::int64_t huge = std::numeric_limits<std::int64_t>::max();
  const auto types = sum_types(reduced({{{huge, -1, huge, 1, 0, 0}}}), 1);
  EXPECT_EQ(types[0].micro_batches, (std::int64_t{1} << 24) - 1);
  EXPECT_EQ(types[0].samples, 0);
  EXPECT_EQ(types[0].predicted, (std::int64_t{1} << 48) - 1);
}

TEST(TypeBytes, WithoutTypesThereIsNothing) { EXPECT_TRUE(sum_types({}, 0).empty()); }

}  // namespace
}  // namespace plimsoll::train
