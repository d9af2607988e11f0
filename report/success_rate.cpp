#include "report/success_rate.h"

#include <algorithm>
#include <cmath>
#include <map>

namespace plimsoll::report {
namespace {

constexpr double kNormalQuantile = 1.959963984540054;  // at 0.975

struct StepSums {
  SuccessRate rate;
  std::int64_t steps = 0, steps_of_successes = 0;

  void add(const EpisodeResult& episode) {
    ++rate.episodes;
    rate.successes += episode.success ? 1 : 0;
    rate.reached += episode.reached ? 1 : 0;
    steps += episode.steps;
    steps_of_successes += episode.success ? episode.steps : 0;
  }
  SuccessRate done(const std::string& task) const {
    SuccessRate result = rate;
    result.task = task;
    if (rate.episodes > 0) result.mean_steps = static_cast<double>(steps) / static_cast<double>(rate.episodes);
    if (rate.successes > 0)
      result.steps_to_success = static_cast<double>(steps_of_successes) / static_cast<double>(rate.successes);
    return result;
  }
};

}  // namespace

Interval wilson_interval(std::int64_t successes, std::int64_t trials) {
  if (trials <= 0) return {0, 1};
  const auto n = static_cast<double>(trials);
  const double p = static_cast<double>(successes) / n, z2 = kNormalQuantile * kNormalQuantile;
  const double middle = p + z2 / (2 * n);
  const double half = kNormalQuantile * std::sqrt(p * (1 - p) / n + z2 / (4 * n * n));
  const double scale = 1 + z2 / n;
  // The ends are exact where rounding would leave 1e-17 of them.
  return {successes == 0 ? 0 : std::max(0.0, (middle - half) / scale),
          successes == trials ? 1 : std::min(1.0, (middle + half) / scale)};
}

std::vector<SuccessRate> success_rates(std::span<const EpisodeResult> episodes) {
  StepSums all;
  std::map<std::string, StepSums> tasks;
  for (const EpisodeResult& episode : episodes) {
    all.add(episode);
    tasks[episode.task].add(episode);
  }
  std::vector<SuccessRate> rates{all.done("")};
  for (const auto& [task, sums] : tasks) rates.push_back(sums.done(task));
  return rates;
}

}  // namespace plimsoll::report
