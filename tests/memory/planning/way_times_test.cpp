#include "memory/planning/way_times.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>
#include <random>

namespace plimsoll::memory {
namespace {

constexpr std::int64_t kShare = 8, kMiddling = 100;

/// What timings before the run said: a sample takes 100, twice as many 1.9 times as long.
CostModel costs(std::int64_t recompute) {
  CostModel model;
  model.points = {{1, 100}, {2, 190}, {4, 361}, {8, 686}};
  model.language_blocks = 4;
  model.language_recompute = recompute;
  return model;
}

/// All of 1, 2, 4, 8 samples, plain or recomputed, which needs half.
std::vector<Candidate> candidates() {
  PlanSpace space;
  space.share = kShare;
  space.language = {0, 4};
  const auto bytes = [](const Plan& plan) { return plan.micro_batch * (plan.recompute_blocks == 0 ? 100 : 50); };
  const CandidateTable table = make_table(plans_of(space), costs(3000), kShare, bytes);
  return {table.all().begin(), table.all().end()};
}

const Plan kPlain4{0, 4}, kRecomputed8{0, 8, 4};

/// Runs steps as a rank does, of shares that weigh 0.7 to 1.3 times the middling, where ways of up to 400 bytes fit.
/// `truth(way)`: microseconds of a middling share. Returns how often each way was run in the last `counted` steps.
std::map<int, int> run(WayTimes& times, int steps, int counted, const std::function<double(const Plan&)>& truth) {
  std::mt19937 random(7);
  std::uniform_real_distribution<double> weight(0.7, 1.3), noise(0.9, 1.1);
  std::map<int, int> runs;
  for (int step = 0; step < steps; ++step) {
    const auto ways = times.ways(candidates(), kShare);
    const auto way = std::ranges::find_if(ways, [](const Candidate& one) { return one.bytes <= 400; });
    if (way == ways.end()) {
      ADD_FAILURE() << "nothing fits";
      return runs;
    }
    const double x = weight(random);
    const auto took = static_cast<std::int64_t>(truth(way->plan) * (0.3 + 0.7 * x) * noise(random));
    times.took({way->plan, kShare, static_cast<std::int64_t>(x * kShare * kMiddling), took});
    if (step >= steps - counted) ++runs[way->plan.micro_batch];
  }
  return runs;
}

double modelled(const Plan& way, std::int64_t recompute) {
  return static_cast<double>(share_microseconds(costs(recompute), way, kShare));
}

TEST(WayTimes, BeginWithTheCostModel) {
  const WayTimes times(costs(3000), kMiddling);
  EXPECT_EQ(times.ways(candidates(), kShare), ways_of(candidates(), costs(3000), kShare));
  EXPECT_EQ(times.factor(kPlain4), 1.0);
}

TEST(WayTimes, StayWithTheFastestWhateverTheMachinesSpeed) {
  for (const double speed : {0.3, 1.0, 4.0, 1000.0}) {
    WayTimes times(costs(3000), kMiddling);
    auto runs = run(times, 200, 100, [&](const Plan& way) { return speed * modelled(way, 3000); });
    EXPECT_GE(runs[4], 85) << "speed " << speed;
  }
}

TEST(WayTimes, AWayThatWasThoughtTooFastLosesItsPlace) {
  // Recomputing was timed as nearly free, and takes 30 %.
  WayTimes times(costs(50), kMiddling);
  EXPECT_EQ(times.ways(candidates(), kShare).at(1).plan, kRecomputed8);
  auto runs = run(times, 100, 40, [](const Plan& way) { return modelled(way, 3000); });
  EXPECT_GE(runs[4], 34);
  EXPECT_GT(times.factor(kRecomputed8), times.factor(kPlain4));
}

TEST(WayTimes, AWayThatWasThoughtTooSlowComesBack) {
  // Recomputing was timed at 10 % and takes 2 %; a second micro-batch was timed at 5 % and takes 25 %.
  WayTimes times(costs(1000), kMiddling);
  auto runs =
      run(times, 400, 100, [](const Plan& way) { return modelled(way, 200) * (way.micro_batch < 8 ? 1.2 : 1); });
  EXPECT_GE(runs[8], 90);
}

TEST(WayTimes, SomeStepsTryWhatWasNotRunForLongest) {
  WayTimes times(costs(2000), kMiddling);
  std::vector<int> tried;
  for (int step = 1; step <= 256; ++step) {
    const auto ways = times.ways(candidates(), kShare);
    if (times.learns_next()) {
      EXPECT_EQ(step % (step <= 128 ? 32 : 64), 0) << step;
      EXPECT_EQ(ways.front().plan.recompute_blocks, 0);
      tried.push_back(ways.front().plan.micro_batch);
      EXPECT_LE(ways.front().microseconds, 686 * 1.15) << "what is thought to take longer is not tried";
    } else {
      EXPECT_EQ(ways.front().plan, (Plan{0, 8})) << step;
    }
    times.took({ways.front().plan, kShare, kShare * kMiddling, share_microseconds(costs(2000), ways.front().plan, 8)});
  }
  EXPECT_EQ(tried, (std::vector<int>{4, 3, 2, 4, 3, 2})) << "of what was never run the fastest first";
}

TEST(WayTimes, OneStepThatTookForeverIsSomethingElsesDoing) {
  WayTimes forever(costs(3000), kMiddling), twice(costs(3000), kMiddling);
  forever.took({kPlain4, kShare, kShare * kMiddling, 1'000'000'000});
  twice.took({kPlain4, kShare, kShare * kMiddling, 2 * share_microseconds(costs(3000), kPlain4, kShare)});
  EXPECT_NEAR(forever.factor(kPlain4), twice.factor(kPlain4), 1e-9);
  EXPECT_LT(forever.factor(kPlain4), 1.4);
}

TEST(WayTimes, AMachineThatBecomesSlowIsNotTheWaysDoing) {
  // The second micro-batch costs next to nothing: a way that was blamed would lose its place at once.
  CostModel model = costs(3000);
  model.points = {{1, 100}, {8, 794}};
  WayTimes times(model, kMiddling);
  int others = 0;
  const auto step = [&](double speed) {
    const auto ways = times.ways(candidates(), kShare);
    const Plan& way = ways.front().plan;
    others += way == (Plan{0, 8}) ? 0 : 1;
    const auto took = static_cast<double>(share_microseconds(model, way, kShare)) * speed;
    times.took({way, kShare, kShare * kMiddling, static_cast<std::int64_t>(took)});
  };
  for (int i = 0; i < 20; ++i) step(10);
  for (int i = 0; i < 10; ++i) step(15);
  EXPECT_EQ(others, 0) << "nothing was tried yet";
  for (int i = 0; i < 300; ++i) step(i % 3 == 0 ? 14 : 10);
  EXPECT_LE(others, 25) << "seven steps learn, and what was lucky then is tried a few times more";
  EXPECT_NEAR(times.factor({0, 8}), 1, 0.03);
}

TEST(WayTimes, LightSharesDoNotMakeTheirWayLookSlow) {
  // Light shares are run whole, heavy ones in halves; a third of the time is the samples', whatever they weigh.
  WayTimes times(costs(3000), kMiddling);
  const Plan whole{0, 8};
  std::mt19937 random(3);
  std::uniform_real_distribution<double> weight(0.5, 1.5);
  for (int step = 0; step < 400; ++step) {
    const double x = weight(random);
    const Plan& way = x < 1.0 ? whole : kPlain4;
    times.took({way, kShare, static_cast<std::int64_t>(x * kShare * kMiddling),
                static_cast<std::int64_t>(1000 * modelled(way, 3000) * (0.33 + 0.67 * x))});
  }
  EXPECT_NEAR(times.factor(whole), times.factor(kPlain4), 0.03);
}

TEST(WayTimes, AStepThatSaysNothingChangesNothing) {
  WayTimes times(costs(3000), kMiddling);
  times.took({});
  times.took({kPlain4, 0, 100, 100});
  times.took({kPlain4, 8, 0, 100});
  times.took({kPlain4, 8, 100, 0});
  EXPECT_EQ(times.factor(kPlain4), 1.0);
  EXPECT_TRUE(WayTimes().ways({}, kShare).empty());
}

}  // namespace
}  // namespace plimsoll::memory
