#include "data/loader_policy.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

namespace plimsoll::data {
namespace {

using ::testing::AllOf;
using ::testing::EndsWith;
using ::testing::HasSubstr;

TEST(LoaderPolicy, FollowsItsRules) {
  const LoaderLimits limits{.most_workers = 8, .most_prefetch = 6};
  struct Case {
    const char* name;
    LoaderUse use;  // ms of a step: waiting, loading, processing; utilisation, memory, that of a step
    LoaderSetting now, then;
  };
  const Case cases[] = {
      {"nothing to be done", {0, 80, 100, 0.9, 0.3, 0.05}, {2, 2}, {2, 2}},
      {"the device is idle", {0, 80, 100, 0.84, 0.3, 0.05}, {2, 2}, {4, 2}},
      {"four threads grow by half", {0, 80, 100, 0.6, 0.3, 0.05}, {4, 2}, {6, 2}},
      {"not beyond the most", {0, 80, 100, 0.6, 0.3, 0.05}, {7, 2}, {8, 2}},
      {"loading slower", {10, 110, 100, 0.9, 0.3, 0.05}, {2, 2}, {2, 3}},
      {"loading slower, and the device is idle", {60, 160, 100, 0.6, 0.3, 0.05}, {1, 2}, {2, 3}},
      {"at the most threads, loading slower", {60, 160, 100, 0.6, 0.3, 0.05}, {8, 2}, {8, 3}},
      {"at the most of both", {60, 160, 100, 0.6, 0.3, 0.05}, {8, 6}, {8, 6}},
      {"waits, but loading is not slower", {10, 90, 100, 0.9, 0.3, 0.05}, {2, 2}, {2, 2}},
      {"very busy", {0, 80, 100, 0.96, 0.3, 0.05}, {2, 2}, {2, 3}},
      {"very busy, at the most ahead", {0, 80, 100, 0.96, 0.3, 0.05}, {2, 6}, {2, 6}},
      {"memory above its limit", {60, 160, 100, 0.6, 0.81, 0.05}, {4, 5}, {3, 2}},
      {"memory above, busy", {0, 80, 100, 0.96, 0.81, 0.05}, {4, 5}, {3, 2}},
      {"memory above, one step ahead", {60, 160, 100, 0.6, 0.81, 0.05}, {4, 1}, {3, 1}},
      {"memory above, nothing left", {60, 160, 100, 0.6, 0.81, 0.05}, {1, 1}, {1, 1}},
      {"memory nearly at its limit", {60, 160, 100, 0.6, 0.76, 0.01}, {4, 2}, {4, 2}},
      {"no room for one more step", {60, 160, 100, 0.6, 0.6, 0.25}, {2, 2}, {4, 2}},
  };
  for (const auto& [name, use, now, then] : cases) {
    const LoaderDecision decision = decide_loader(use, now, limits);
    EXPECT_EQ(decision.setting, then) << name << ": " << decision.reason;
    EXPECT_FALSE(decision.reason.empty());
  }
}

TEST(LoaderPolicy, NamesTheBottleneckAndTheReason) {
  const LoaderLimits limits{.most_workers = 8, .most_prefetch = 6};
  const LoaderDecision slow = decide_loader({60, 160, 100, 0.6, 0.3, 0.05}, {1, 2}, limits);
  EXPECT_EQ(slow.bottleneck, Bottleneck::kLoading);
  EXPECT_THAT(slow.reason, AllOf(HasSubstr("60 % busy, below 85 %"), HasSubstr("wait 38 %"), HasSubstr("more threads"),
                                 HasSubstr("takes 160 ms"), HasSubstr("further ahead")));
  const LoaderDecision idle = decide_loader({0, 80, 100, 0.6, 0.3, 0.05}, {1, 2}, limits);
  EXPECT_EQ(idle.bottleneck, Bottleneck::kNothing) << "no step waits for it";
  const LoaderDecision full = decide_loader({0, 80, 100, 0.6, 0.9, 0.05}, {2, 4}, limits);
  EXPECT_EQ(full.bottleneck, Bottleneck::kMemory);
  EXPECT_THAT(full.reason, HasSubstr("memory 90 % is above 80 %: less is loaded ahead, by one thread less"));
  EXPECT_THAT(decide_loader({0, 80, 100, 0.6, 0.9, 0.05}, {1, 4}, limits).reason, EndsWith("less is loaded ahead"));
  EXPECT_THAT(decide_loader({0, 80, 100, 0.6, 0.9, 0.05}, {1, 1}, limits).reason, HasSubstr("nothing is left"));
  EXPECT_THAT(decide_loader({0, 80, 100, 0.9, 0.3, 0.05}, {1, 1}, limits).reason, HasSubstr("memory 30 %"));
}

/// Loading a step takes `load` ms of one thread, computing `process`; threads share `cores` cores with it.
struct World {
  double load, process;
  std::int64_t cores;
  double wall(const LoaderSetting& setting) const {
    const auto threads = static_cast<double>(std::min(setting.workers, cores));
    return std::max(process, load / threads);
  }
  LoaderUse use(const LoaderSetting& setting) const {
    const double step = wall(setting), threads = static_cast<double>(std::min(setting.workers, cores));
    return {step - process, load / threads, process, process / step, 0.2, 0.01};
  }
};

TEST(LoaderPolicy, ComesNearTheBestFixedSettingInFiveAdjustments) {
  for (const std::int64_t cores : {2, 4, 8, 16}) {
    for (const double load : {50.0, 150.0, 400.0, 900.0}) {
      const World world{load, 100, cores};
      const LoaderLimits limits{.most_workers = cores};
      LoaderSetting setting{1, 2};
      for (int adjustment = 0; adjustment < 5; ++adjustment)
        setting = decide_loader(world.use(setting), setting, limits).setting;
      double best = world.wall({1, 2});
      for (std::int64_t workers = 1; workers <= cores; ++workers) best = std::min(best, world.wall({workers, 2}));
      EXPECT_LE(world.wall(setting), 1.05 * best) << cores << " cores, load " << load << ": " << setting.workers;
    }
  }
}

TEST(LoaderPolicy, SettlesAndDoesNotSwing) {
  for (const double of_a_step : {0.02, 0.1, 0.15, 0.2, 0.3}) {
    // Loading that is slower than processing, and one that is not, on a device that is idle, and on one that is busy.
    for (const auto& [load_ms, utilisation] : {std::pair(180.0, 0.55), std::pair(80.0, 0.55), std::pair(80.0, 0.97)}) {
      LoaderSetting setting{2, 4};
      const LoaderLimits limits{.most_workers = 8};
      std::vector<LoaderSetting> seen;
      for (int i = 0; i < 40; ++i) {
        const double memory = 0.3 + of_a_step * static_cast<double>(setting.prefetch);
        setting = decide_loader({0, load_ms, 100, utilisation, memory, of_a_step}, setting, limits).setting;
        seen.push_back(setting);
      }
      EXPECT_EQ(seen[20], seen[39]) << of_a_step << ", " << load_ms << " ms, " << utilisation;
      EXPECT_LE(0.3 + of_a_step * static_cast<double>(setting.prefetch), 0.8) << of_a_step;
    }
  }
}

}  // namespace
}  // namespace plimsoll::data
