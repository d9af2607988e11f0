#include "memory/planning/packing.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "tests/memory/planning/without_rapidcheck.h"

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
#else
TEST(Packing, NeedRapidCheck) { without_rapidcheck(); }
#endif

/// Sum of the weights at most `most`.
auto lighter_than(const Weights& weights, std::int64_t most) {
  return [&weights, most](std::span<const std::size_t> places) {
    std::int64_t sum = 0;
    for (const std::size_t place : places) sum += weights[place];
    return sum <= most;
  };
}

TEST(PackedByBytes, FillsWhatIsThere) {
  const Weights weights{6, 5, 4, 3, 2};
  const auto places = packed(weights, {}, 0.5, lighter_than(weights, 10));
  EXPECT_EQ(places, (std::vector<Order>{{0, 2}, {1, 3, 4}}));
  EXPECT_EQ(packed(weights, {}, 0.5, lighter_than(weights, 100)), (std::vector<Order>{{0, 1, 2, 3, 4}}));
  const auto alone = packed(weights, {}, 0.5, lighter_than(weights, 4));
  EXPECT_EQ(alone.size(), 5U) << "what fits nowhere is alone, and takes nobody in";
  EXPECT_TRUE(packed({}, {}, 0.5, lighter_than(weights, 4)).empty());
}

TEST(PackedByBytes, MixesTypesAsMuchAsItIsAskedTo) {
  const Weights weights(12, 1);
  const std::vector<std::uint8_t> types{0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2};
  // Heavy ones first begin four micro-batches; the light ones then choose among them.
  Weights with = weights;
  std::vector<std::uint8_t> of = types;
  for (const std::uint8_t type : std::vector<std::uint8_t>{0, 1, 2, 0}) {
    with.push_back(6);
    of.push_back(type);
  }
  const auto alike = [&](double diversity) {
    std::int64_t pairs = 0;
    for (const auto& places : packed(with, of, diversity, lighter_than(with, 9)))
      for (const std::size_t a : places)
        for (const std::size_t b : places) pairs += a < b && of[a] == of[b] ? 1 : 0;
    return pairs;
  };
  EXPECT_LT(alike(1), alike(0));
  EXPECT_LE(alike(0.5), alike(0));
}

// The same samples, cut into micro-batches of as many as fit at the same peak.
std::size_t micro_batches_by_count(const Weights& weights, std::int64_t most) {
  for (std::size_t count = weights.size(); count > 1; --count)
    if (heaviest_micro_batch(weights, balanced_order(weights, count), count) <= most)
      return (weights.size() + count - 1) / count;
  return weights.size();
}

TEST(PackedByBytes, TakesFewerMicroBatchesThanCountsAtTheSamePeak) {
  std::int64_t by_bytes = 0, by_count = 0;
  for (unsigned seed = 0; seed < 200; ++seed) {
    Weights weights;
    std::uint64_t state = seed + 1;
    for (int i = 0; i < 32; ++i) {
      state = state * 6364136223846793005U + 1442695040888963407U;
      weights.push_back((state >> 33) % 5 == 0 ? 40 : 3 + static_cast<std::int64_t>((state >> 40) % 12));
    }
    const auto places = packed(weights, {}, 0, lighter_than(weights, 60));
    EXPECT_LE(places.size(), micro_batches_by_count(weights, 60)) << seed;
    by_bytes += std::ssize(places);
    by_count += static_cast<std::int64_t>(micro_batches_by_count(weights, 60));
  }
  EXPECT_LT(static_cast<double>(by_bytes), 0.95 * static_cast<double>(by_count));
}

TEST(PackedByBytes, EverySampleOnceAndNoneTooMuch) {
  for (unsigned seed = 0; seed < 300; ++seed) {
    Weights weights;
    std::vector<std::uint8_t> types;
    std::uint64_t state = seed + 7;
    const std::size_t samples = 1 + seed % 40;
    for (std::size_t i = 0; i < samples; ++i) {
      state = state * 6364136223846793005U + 1442695040888963407U;
      weights.push_back(1 + static_cast<std::int64_t>((state >> 33) % 50));
      types.push_back(static_cast<std::uint8_t>((state >> 50) % 4));
    }
    const auto fits = lighter_than(weights, 60);
    const auto places = packed(weights, types, 0.25 * (seed % 5), fits);
    Order all;
    for (const auto& one : places) {
      EXPECT_TRUE(fits(one));
      EXPECT_TRUE(std::ranges::is_sorted(one));
      all.insert(all.end(), one.begin(), one.end());
    }
    std::ranges::sort(all);
    EXPECT_EQ(all, as_given(samples));
    EXPECT_EQ(places, packed(weights, types, 0.25 * (seed % 5), fits)) << "again";
  }
}

TEST(PackingRoom, ShrinksAfterEachFailureAndGrowsAgainAfterALongerWait) {
  PackingRoom room;
  EXPECT_EQ(room.of(800), 800);
  room.took(false);
  EXPECT_EQ(room.of(800), 800) << "nothing to give back";
  room.took(true);
  EXPECT_EQ(room.of(800), 700);
  room.took(true);
  EXPECT_EQ(room.of(800), 613) << "700 less an eighth, rounded up";
  const auto steps_until = [&room](std::int64_t bytes) {
    int steps = 0;
    for (; room.of(800) != bytes && steps < 100000; ++steps) room.took(false);
    return steps;
  };
  const int first = steps_until(700);
  EXPECT_EQ(steps_until(800), first);
  room.took(true);
  EXPECT_EQ(steps_until(800), 2 * first) << "twice as long after each failure";
  for (int failure = 0; failure < 500; ++failure) room.took(true);
  EXPECT_GE(room.of(1), 1);
  EXPECT_LT(room.of(1 << 20), 1 << 12);
}

// A prediction that is and stays too low by a quarter: it fails now and then, and ever more rarely.
TEST(PackingRoom, AWrongPredictionCostsFewReplays) {
  PackingRoom room;
  int failures = 0, in_a_row = 0, most_in_a_row = 0;
  for (int step = 0; step < 20000; ++step) {
    const bool failed = room.of(1000) * 125 > 100 * 1000;
    room.took(failed);
    failures += failed ? 1 : 0;
    in_a_row = failed ? in_a_row + 1 : 0;
    most_in_a_row = std::max(most_in_a_row, in_a_row);
  }
  EXPECT_EQ(most_in_a_row, 2) << "1000 x 7/8 x 7/8 is 766, and 800 fit";
  EXPECT_LE(failures, 12);
  EXPECT_GE(failures, 4) << "it is tried again";
}

}  // namespace
}  // namespace plimsoll::memory
