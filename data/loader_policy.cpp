#include "data/loader_policy.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

namespace plimsoll::data {
namespace {

constexpr double kWaiting = 0.05;  // of a step's time: less is noise
constexpr double kBusy = 0.95;
constexpr double kFree = 0.9;  // of the memory's limit

std::string percent(double fraction) { return fmt::format("{:.0f} %", 100 * fraction); }

/// The part of its time that a step waits.
double waiting(const LoaderUse& use) {
  const double step = use.wait_ms + use.process_ms;
  return step > 0 ? use.wait_ms / step : 0.0;
}

LoaderDecision fewer(const LoaderUse& use, const LoaderSetting& now, const LoaderLimits& limits) {
  const LoaderSetting less{std::max<std::int64_t>(1, now.workers - 1), std::max<std::int64_t>(1, now.prefetch / 2)};
  const char* what = less == now                   ? "nothing is left to give back"
                     : less.workers == now.workers ? "less is loaded ahead"
                                                   : "less is loaded ahead, by one thread less";
  return {less, Bottleneck::kMemory,
          fmt::format("memory {} is above {}: {}", percent(use.memory), percent(limits.memory), what)};
}

std::int64_t more_workers(const LoaderSetting& now, const LoaderLimits& limits) {
  const std::int64_t more = now.workers < 4 ? 2 * now.workers : now.workers + (now.workers + 1) / 2;
  return std::min(more, std::max(now.workers, limits.most_workers));
}

/// A sentence for what has changed.
std::string reason_for(const LoaderUse& use, const LoaderSetting& now, const LoaderSetting& next,
                       const LoaderLimits& limits) {
  std::vector<std::string> reasons;
  if (next.workers > now.workers)
    reasons.push_back(fmt::format("the device is {} busy, below {}, steps wait {} of their time: more threads",
                                  percent(use.utilisation), percent(limits.utilisation), percent(waiting(use))));
  if (next.prefetch > now.prefetch && use.load_ms > use.process_ms) {
    reasons.push_back(fmt::format("loading a step takes {:.0f} ms and processing it {:.0f}: further ahead", use.load_ms,
                                  use.process_ms));
  } else if (next.prefetch > now.prefetch) {
    reasons.push_back(
        fmt::format("the device is {} busy: further ahead, so that it stays so", percent(use.utilisation)));
  }
  if (reasons.empty())
    reasons.push_back(fmt::format("steps wait {} of their time, the device is {} busy, memory {}",
                                  percent(waiting(use)), percent(use.utilisation), percent(use.memory)));
  return fmt::format("{}", fmt::join(reasons, "; "));
}

}  // namespace

LoaderDecision decide_loader(const LoaderUse& use, const LoaderSetting& now, const LoaderLimits& limits) {
  if (use.memory > limits.memory) return fewer(use, now, limits);
  const bool memory_is_free = use.memory < kFree * limits.memory;
  const bool a_step_fits = memory_is_free && use.memory + use.step_memory <= limits.memory;
  LoaderSetting next = now;
  if (use.utilisation < limits.utilisation && memory_is_free) next.workers = more_workers(now, limits);
  if ((use.load_ms > use.process_ms || use.utilisation > kBusy) && a_step_fits)
    next.prefetch = std::min(now.prefetch + 1, std::max(now.prefetch, limits.most_prefetch));
  return {next, waiting(use) >= kWaiting ? Bottleneck::kLoading : Bottleneck::kNothing,
          reason_for(use, now, next, limits)};
}

}  // namespace plimsoll::data
