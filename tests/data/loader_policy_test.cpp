#include "data/loader_policy.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <tuple>

namespace plimsoll::data {
namespace {

using ::testing::HasSubstr;

TEST(LoaderPolicy, FollowsItsRules) {
  const LoaderLimits limits{.most_workers = 8, .most_prefetch = 6};
  struct Case {
    const char* name;
    LoaderUse use;  // load ms, process ms, utilisation, memory
    LoaderSetting now, then;
  };
  const Case cases[] = {
      {"nothing waits", {0, 100, 0.9, 0.3}, {2, 2}, {2, 2}},
      {"waits, and the device is idle", {60, 100, 0.6, 0.3}, {1, 2}, {2, 2}},
      {"four threads grow by half", {60, 100, 0.6, 0.3}, {4, 2}, {6, 2}},
      {"not beyond the most", {60, 100, 0.6, 0.3}, {7, 2}, {8, 2}},
      {"at the most threads, loading slower", {160, 100, 0.4, 0.3}, {8, 2}, {8, 3}},
      {"at the most of both", {160, 100, 0.4, 0.3}, {8, 6}, {8, 6}},
      {"a twentieth is noise", {4, 100, 0.6, 0.3}, {1, 2}, {1, 2}},
      {"idle for other reasons", {0, 100, 0.3, 0.3}, {2, 2}, {2, 2}},
      {"very busy", {0, 100, 0.97, 0.3}, {2, 2}, {2, 3}},
      {"very busy, far enough ahead", {0, 100, 0.97, 0.3}, {2, 4}, {2, 4}},
      {"memory above its limit", {160, 100, 0.4, 0.85}, {4, 5}, {4, 2}},
      {"memory above, one step ahead", {160, 100, 0.4, 0.85}, {4, 1}, {3, 1}},
      {"memory above, nothing left", {160, 100, 0.4, 0.85}, {1, 1}, {1, 1}},
      {"memory nearly at its limit", {160, 100, 0.4, 0.76}, {4, 2}, {4, 2}},
  };
  for (const auto& [name, use, now, then] : cases) {
    const LoaderDecision decision = decide_loader(use, now, limits);
    EXPECT_EQ(decision.setting, then) << name << ": " << decision.reason;
    EXPECT_FALSE(decision.reason.empty());
  }
  EXPECT_EQ(decide_loader({60, 100, 0.6, 0.3}, {1, 2}, limits).bottleneck, Bottleneck::kLoading);
  EXPECT_EQ(decide_loader({0, 100, 0.6, 0.9}, {1, 2}, limits).bottleneck, Bottleneck::kMemory);
  EXPECT_THAT(decide_loader({60, 100, 0.6, 0.3}, {1, 2}, limits).reason, HasSubstr("38 %"));
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
    const double step = wall(setting);
    return {step - process, process, process / step, 0.2};
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
  for (const double memory_of_a_step : {0.02, 0.1, 0.3}) {
    LoaderSetting setting{2, 4};
    const LoaderLimits limits{.most_workers = 8};
    std::vector<LoaderSetting> seen;
    for (int i = 0; i < 40; ++i) {
      const double memory = 0.3 + memory_of_a_step * static_cast<double>(setting.prefetch);
      setting = decide_loader({80, 100, 0.55, memory}, setting, limits).setting;
      seen.push_back(setting);
    }
    EXPECT_EQ(seen[20], seen[39]) << memory_of_a_step;
    EXPECT_LE(0.3 + memory_of_a_step * static_cast<double>(setting.prefetch), 0.8) << memory_of_a_step;
  }
}

}  // namespace
}  // namespace plimsoll::data
