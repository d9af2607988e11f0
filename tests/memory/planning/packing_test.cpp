#include "memory/planning/packing.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#if __has_include(<rapidcheck/gtest.h>)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wshadow"
#include <rapidcheck/gtest.h>
#pragma GCC diagnostic pop
#endif

namespace plimsoll::memory {
namespace {

using Weights = std::vector<std::int64_t>;
using Order = std::vector<std::size_t>;

Order as_given(std::size_t samples) {
  Order order(samples);
  std::iota(order.begin(), order.end(), std::size_t{0});
  return order;
}

TEST(Packing, SpreadsTheHeavyOnesOverTheMicroBatches) {
  const Weights weights{9, 9, 9, 1, 1, 1};
  const Order order = balanced_order(weights, 2);
  EXPECT_EQ(order, (Order{0, 3, 1, 4, 2, 5}));
  EXPECT_EQ(heaviest_micro_batch(weights, order, 2), 10);
  EXPECT_EQ(heaviest_micro_batch(weights, as_given(6), 2), 18);
}

TEST(Packing, PutsTheHeaviestIntoTheSmallRest) {
  const Weights weights{4, 1, 1, 1, 1};
  const Order order = balanced_order(weights, 3);  // three and two
  EXPECT_EQ(heaviest_micro_batch(weights, order, 3), 5);
}

TEST(Packing, LeavesAloneWhatCannotBecomeLighter) {
  EXPECT_EQ(balanced_order(Weights{5, 5, 5, 5, 5}, 2), as_given(5));
  EXPECT_EQ(balanced_order(Weights{7, 1, 1, 7}, 2), as_given(4));
  EXPECT_EQ(balanced_order(Weights{3, 9, 1}, 1), as_given(3));
  EXPECT_EQ(balanced_order(Weights{3, 9, 1}, 3), as_given(3));
  EXPECT_EQ(balanced_order(Weights{3, 9, 1}, 8), as_given(3));
  EXPECT_TRUE(balanced_order(Weights{}, 4).empty());
}

#if __has_include(<rapidcheck/gtest.h>)
RC_GTEST_PROP(Packing, TakesEverySampleOnceAndNeverMakesTheHeaviestHeavier, ()) {
  const auto count = *rc::gen::inRange<std::size_t>(1, 65);
  const auto weights = *rc::gen::container<Weights>(count, rc::gen::inRange<std::int64_t>(0, 5000));
  const auto micro_batch = *rc::gen::inRange<std::size_t>(1, 70);
  const Order order = balanced_order(weights, micro_batch);
  Order sorted = order;
  std::sort(sorted.begin(), sorted.end());
  RC_ASSERT(sorted == as_given(count));
  RC_ASSERT(heaviest_micro_batch(weights, order, micro_batch) <=
            heaviest_micro_batch(weights, as_given(count), micro_batch));
}
#endif

}  // namespace
}  // namespace plimsoll::memory
