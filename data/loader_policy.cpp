#include "data/loader_policy.h"

#include <fmt/format.h>

#include <algorithm>

namespace plimsoll::data {
namespace {

constexpr double kWaiting = 0.05;  // of a step's time: less is noise
constexpr double kBusy = 0.95;
constexpr double kFree = 0.9;  // of the memory's limit
constexpr std::int64_t kDeepEnough = 4;

std::string percent(double fraction) { return fmt::format("{:.0f} %", 100 * fraction); }

LoaderDecision shrink(const LoaderUse& use, const LoaderSetting& now, const LoaderLimits& limits) {
  LoaderSetting less = now;
  if (less.prefetch > 1) {
    less.prefetch = now.prefetch / 2;
  } else {
    less.workers = std::max<std::int64_t>(1, now.workers - 1);
  }
  return {less, Bottleneck::kMemory,
          fmt::format("memory {} is above {}: {}", percent(use.memory), percent(limits.memory),
                      less == now ? "nothing is left to give back" : "less is loaded ahead")};
}

std::int64_t more_workers(const LoaderSetting& now, const LoaderLimits& limits) {
  const std::int64_t more = now.workers < 4 ? 2 * now.workers : now.workers + (now.workers + 1) / 2;
  return std::min(more, std::max(now.workers, limits.most_workers));
}

}  // namespace

LoaderDecision decide_loader(const LoaderUse& use, const LoaderSetting& now, const LoaderLimits& limits) {
  if (use.memory > limits.memory) return shrink(use, now, limits);
  const double step = use.load_ms + use.process_ms;
  const double waiting = step > 0 ? use.load_ms / step : 0.0;
  const bool memory_is_free = use.memory < kFree * limits.memory;
  const LoaderSetting deeper{now.workers, std::min(now.prefetch + 1, std::max(now.prefetch, limits.most_prefetch))};
  if (use.utilisation < limits.utilisation && waiting >= kWaiting && memory_is_free) {
    LoaderSetting more{more_workers(now, limits), now.prefetch};
    if (more.workers > now.workers)
      return {more, Bottleneck::kLoading,
              fmt::format("steps wait {} of their time for samples and the device is {} busy, below {}: more threads",
                          percent(waiting), percent(use.utilisation), percent(limits.utilisation))};
  }
  if (memory_is_free && deeper != now) {
    if (use.load_ms > use.process_ms)
      return {deeper, Bottleneck::kLoading,
              fmt::format("loading takes {:.0f} ms of a step and the rest {:.0f}: further ahead", use.load_ms,
                          use.process_ms)};
    if (use.utilisation > kBusy && now.prefetch < kDeepEnough)
      return {deeper, Bottleneck::kNothing,
              fmt::format("the device is {} busy: further ahead, so that it stays so", percent(use.utilisation))};
  }
  return {now, waiting >= kWaiting ? Bottleneck::kLoading : Bottleneck::kNothing,
          fmt::format("steps wait {} of their time, the device is {} busy, memory {}", percent(waiting),
                      percent(use.utilisation), percent(use.memory))};
}

}  // namespace plimsoll::data
