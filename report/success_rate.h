#pragma once
// How often a policy succeeds, and how sure one can be of that after so many episodes.

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace plimsoll::report {

struct Interval {
  double low = 0, high = 1;
};

/// The interval that holds the rate of success with 95 % confidence after `successes` of `trials` (Wilson, "Probable
/// Inference, the Law of Succession, and Statistical Inference", 1927): within [0, 1], and of a width that makes sense
/// at 0 and at all successes too. [0, 1] without trials.
Interval wilson_interval(std::int64_t successes, std::int64_t trials);

/// How one episode went.
struct EpisodeResult {
  std::string task;
  bool success = false;
  bool reached = false;  ///< it came to the goal, if only for a moment
  std::int64_t steps = 0;
};

/// Of some episodes.
struct SuccessRate {
  std::string task;  ///< empty: of all tasks
  std::int64_t episodes = 0, successes = 0, reached = 0;
  double mean_steps = 0;  ///< of all episodes, those that failed counting all their steps; 0: no episode
  std::optional<double> steps_to_success;  ///< mean over those that succeeded
  double rate() const { return episodes == 0 ? 0 : static_cast<double>(successes) / static_cast<double>(episodes); }
  Interval interval() const { return wilson_interval(successes, episodes); }
};

/// First that of all episodes, then one for each task, by name.
std::vector<SuccessRate> success_rates(std::span<const EpisodeResult> episodes);

}  // namespace plimsoll::report
