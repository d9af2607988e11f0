#include "memory/planning/ways.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "memory/planning/packing.h"
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
using Places = std::span<const std::size_t>;

/// A sample of weight 1 needs 10 bytes, or 5 with all 4 blocks recomputed; twice the samples take 1.6 times as long.
CostModel costs() {
  CostModel model;
  model.points = {{1, 100}, {2, 160}, {4, 256}, {8, 410}};
  model.language_blocks = 4;
  model.language_recompute = 2000;
  return model;
}

std::int64_t bytes_of(const Plan& plan, std::int64_t weight) { return weight * (10 - 5 * plan.recompute_blocks / 4); }

std::vector<Candidate> candidates(std::int64_t heaviest) {
  PlanSpace space;
  space.share = 8;
  space.language = {0, 2, 4};
  const auto bytes = [&](const Plan& plan) { return bytes_of(plan, heaviest * plan.micro_batch); };
  const CandidateTable table = make_table(plans_of(space), costs(), 8, bytes);
  return {table.all().begin(), table.all().end()};
}

auto fits_within(const Weights& weights, std::int64_t bytes) {
  return [&weights, bytes](const Plan& way, Places places) {
    std::int64_t sum = 0;
    for (const std::size_t place : places) sum += weights.at(place);
    return bytes_of(way, sum) <= bytes;
  };
}

Plan way(const Weights& weights, const Plan& plan, std::span<const Candidate> ways, std::int64_t bytes) {
  return way_of_share(weights, plan, {ways, bytes}, fits_within(weights, bytes));
}

TEST(Ways, AreFastestFirstAndEachNeedsLess) {
  const auto ways = ways_of(candidates(3), costs(), 8);
  ASSERT_GE(ways.size(), 4U);
  EXPECT_EQ(ways.front().plan, (Plan{0, 8}));
  for (std::size_t i = 1; i < ways.size(); ++i) {
    EXPECT_LT(ways[i].bytes, ways[i - 1].bytes);
    EXPECT_GE(ways[i].microseconds, ways[i - 1].microseconds);
  }
  EXPECT_EQ(ways.back().plan, (Plan{0, 1, 4})) << "the leanest is never left out";
  EXPECT_EQ(ways.back().microseconds, share_microseconds(costs(), ways.back().plan, 8));
}

TEST(Ways, TakeWhatTheStepsOwnSamplesLeaveRoomFor) {
  const auto ways = ways_of(candidates(3), costs(), 8);
  const Weights light(8, 1), heavy{3, 3, 3, 3, 3, 3, 3, 3}, mixed{3, 1, 1, 1, 1, 1, 1, 1};
  const Plan plan{0, 1};
  EXPECT_EQ(way(light, plan, ways, 80), (Plan{0, 8}));
  EXPECT_EQ(way(light, plan, ways, 79).recompute_blocks > 0, true) << "the whole share, a little recomputed";
  EXPECT_EQ(way(light, plan, ways, 79).micro_batch, 8);
  EXPECT_EQ(way(mixed, plan, ways, 50).micro_batch, 8) << "ten weigh 50 with everything recomputed";
  EXPECT_EQ(way(heavy, plan, ways, 30).micro_batch, 2) << "two recomputed need what one does as it is, and are faster";
  EXPECT_EQ(way(heavy, plan, ways, 29), (Plan{0, 1, 2}));
  EXPECT_EQ(way(heavy, plan, ways, 14), plan) << "nothing fits: the plan";
  EXPECT_EQ(way(light, plan, {}, 80), plan) << "no ways";
  EXPECT_EQ(way({}, plan, ways, 80), plan) << "no samples";
  EXPECT_EQ(way(light, Plan{112, 1}, ways, 80), (Plan{112, 8})) << "pictures as the plan says";
}

TEST(Ways, OneMicroBatchRecomputesOnlyWhereItMust) {
  const auto ways = ways_of(candidates(3), costs(), 8);
  const auto yes = [](const Plan&) { return true; };
  const auto no = [](const Plan&) { return false; };
  EXPECT_EQ(way_of_micro_batch({0, 4, 4}, {ways, 1}, yes), (Plan{0, 4}));
  EXPECT_EQ(way_of_micro_batch({0, 4, 4}, {ways, 1}, no), (Plan{0, 4, 4}));
  EXPECT_EQ(way_of_micro_batch({0, 4, 4}, {}, yes), (Plan{0, 4, 4})) << "no ways";
  const std::vector<Candidate> recomputing{{Plan{0, 4, 4}, 20, 500}};
  EXPECT_EQ(way_of_micro_batch({0, 4, 4}, {recomputing, 1}, yes), (Plan{0, 4, 4})) << "none of them is plain";
}

TEST(Ways, ARunTakesTheMeanOfItsSteps) {
  const auto ways = ways_of(candidates(3), costs(), 8);
  const auto step_0_takes_all = [](std::size_t step, const Plan& plan) { return step == 0 || plan.micro_batch == 1; };
  EXPECT_EQ(mean_microseconds(fastest_microseconds(ways, 2, step_0_takes_all), 900), (410 + 880) / 2)
      << "one at a time comes half recomputed";
  EXPECT_EQ(mean_microseconds(fastest_microseconds(ways, 0, step_0_takes_all), 900), 900);
  EXPECT_EQ(mean_microseconds(fastest_microseconds(ways, 2, [](std::size_t, const Plan&) { return false; }), 900), 900);
  EXPECT_EQ(mean_microseconds(fastest_microseconds({}, 2, step_0_takes_all), 900), 900);
}

#if __has_include(<rapidcheck/gtest.h>)
RC_GTEST_PROP(Ways, EveryStepFitsAndNoFasterWayWould, ()) {
  const auto count = *rc::gen::inRange<std::size_t>(1, 9);
  const auto weights = *rc::gen::container<Weights>(count, rc::gen::inRange<std::int64_t>(0, 5));
  const auto bytes = *rc::gen::inRange<std::int64_t>(0, 400);
  const auto all = candidates(4);
  const auto ways = ways_of(all, costs(), 8);
  const Plan plan = all.at(*rc::gen::inRange<std::size_t>(0, all.size())).plan;
  const auto within = [&](const Plan& tried) {
    const auto size = std::min(count, static_cast<std::size_t>(tried.micro_batch));
    return bytes_of(tried, heaviest_micro_batch(weights, balanced_order(weights, size), size)) <= bytes;
  };
  const Plan chosen = way(weights, plan, ways, bytes);
  RC_ASSERT(chosen == plan || within(chosen));
  for (const Candidate& faster : ways) {
    if (faster.plan == chosen) break;
    RC_ASSERT(!within(faster.plan));
  }
}
#else
TEST(Ways, NeedRapidCheck) { without_rapidcheck(); }
#endif

}  // namespace
}  // namespace plimsoll::memory
