#include "memory/planning/packing.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
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

/// The micro-batch of a share when each may weigh so much.
std::size_t filled(const Weights& weights, int least, int most, std::int64_t limit) {
  return filled_micro_batch(weights, least, most, [&](std::span<const std::size_t> places) {
    std::int64_t sum = 0;
    for (const std::size_t place : places) sum += weights.at(place);
    return sum <= limit;
  });
}

TEST(Filling, TakesAsManySamplesAsTheLimitAllows) {
  const Weights weights{3, 3, 1, 1, 1, 1, 1, 1};
  EXPECT_EQ(filled(weights, 1, 8, 3), 1U) << "a pair with a heavy one weighs 4";
  EXPECT_EQ(filled(weights, 1, 8, 4), 2U) << "the next size, 3, makes micro-batches of 5";
  EXPECT_EQ(filled(weights, 1, 8, 6), 4U);
  EXPECT_EQ(filled(weights, 1, 8, 12), 8U);
  EXPECT_EQ(filled(weights, 1, 4, 12), 4U) << "at most as many as allowed";
}

TEST(Filling, TriesOnlySizesThatMakeFewerMicroBatches) {
  const Weights weights{1, 1, 1, 1, 1, 1, 1, 1};
  EXPECT_EQ(filled(weights, 4, 8, 7), 4U) << "5 and 3 would be as many as 4 and 4";
  EXPECT_EQ(filled(weights, 4, 8, 8), 8U);
  EXPECT_EQ(filled(weights, 3, 8, 5), 4U);
}

TEST(Filling, NeverFallsBelowThePlanAndAsksNothingWithoutALimit) {
  const Weights weights{9, 9, 9, 9};
  EXPECT_EQ(filled(weights, 2, 4, 1), 2U);
  EXPECT_EQ(filled(weights, 8, 8, 1), 4U) << "the whole share";
  const auto never = [](std::span<const std::size_t>) -> bool { throw std::logic_error("asked"); };
  EXPECT_EQ(filled_micro_batch(weights, 2, 0, never), 2U);
  EXPECT_EQ(filled_micro_batch({}, 2, 4, never), 0U);
}

TEST(Filling, CountsTheSizesOfARun) {
  // Step 0 takes whatever it is asked to, step 1 up to 2, step 2 nothing beyond its plan.
  const auto fits = [](std::size_t step, int size) { return step == 0 || (step == 1 && size <= 2); };
  using Sizes = std::map<int, std::int64_t>;
  EXPECT_EQ(filled_sizes({8, 1, 8}, 3, fits), (Sizes{{8, 1}, {2, 1}, {1, 1}}));
  EXPECT_EQ(filled_sizes({8, 1, 4}, 3, fits), (Sizes{{4, 1}, {2, 1}, {1, 1}}));
  EXPECT_EQ(filled_sizes({8, 3, 8}, 3, fits), (Sizes{{8, 1}, {3, 2}}));
  EXPECT_EQ(filled_sizes({8, 8, 8}, 3, fits), (Sizes{{8, 1}}));
  EXPECT_EQ(filled_sizes({8, 2, 8}, 0, fits), (Sizes{{2, 1}}));
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

// What a step does with its share: however it is filled, each sample runs once, in micro-batches that fit or that the
// plan itself makes.
RC_GTEST_PROP(Filling, RunsEverySampleOnceAndWithinTheLimit, ()) {
  const auto count = *rc::gen::inRange<std::size_t>(1, 65);
  const auto weights = *rc::gen::container<Weights>(count, rc::gen::inRange<std::int64_t>(0, 5000));
  const auto least = *rc::gen::inRange(1, 70), most = *rc::gen::inRange(0, 70);
  const auto limit = *rc::gen::inRange<std::int64_t>(0, 60000);
  const auto fits = [&](std::span<const std::size_t> places) {
    std::int64_t sum = 0;
    for (const std::size_t place : places) sum += weights[place];
    return sum <= limit;
  };
  const std::size_t size = filled_micro_batch(weights, least, most, fits);
  RC_ASSERT(size >= 1 && size <= count);
  RC_ASSERT(size >= std::min(count, static_cast<std::size_t>(least)));
  RC_ASSERT(size <= std::max(static_cast<std::size_t>(least), static_cast<std::size_t>(most)));
  const Order order = balanced_order(weights, size);
  Order sorted = order;
  std::sort(sorted.begin(), sorted.end());
  RC_ASSERT(sorted == as_given(count));
  if (size <= static_cast<std::size_t>(least)) return;
  RC_ASSERT(heaviest_micro_batch(weights, order, size) <= limit);
}
#endif

}  // namespace
}  // namespace plimsoll::memory
