#include "train/contenders.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "memory/planning/wide.h"
#include "train/stopwatch.h"

namespace plimsoll::train {
namespace {

constexpr std::int64_t kGapOne = 10000;

// The fastest of the candidates that fit and show the largest pictures, one of each that are alike, as places in the
// table.
std::vector<std::size_t> contenders(const memory::CandidateTable& table, const memory::ChoiceLimits& limits,
                                    const memory::PolicyState& known) {
  std::vector<std::size_t> places;
  const auto all = table.all();
  for (std::size_t i = 0; i < all.size() && places.size() < kContenders; ++i) {
    if (memory::choose(memory::CandidateTable({all[i]}), limits, known) == nullptr) continue;
    if (!places.empty()) {
      const memory::Candidate& fastest = all[places.front()];
      if (all[i].plan.resolution != fastest.plan.resolution) break;
      if (all[i].microseconds - fastest.microseconds > memory::scaled(fastest.microseconds, kContenderGap, kGapOne))
        break;
    }
    if (std::none_of(places.begin(), places.end(),
                     [&](std::size_t place) { return memory::alike(all[place], all[i]); }))
      places.push_back(i);
  }
  return places;
}

// The faster half of those that still run, two at least; what does not fit is out.
void keep_faster_half(std::vector<std::size_t>& running, std::span<const Stopwatch::Shares> best) {
  std::erase_if(running, [&](std::size_t i) { return best[i].microseconds == 0; });
  std::sort(running.begin(), running.end(), [&](std::size_t a, std::size_t b) {
    return std::pair(best[a].microseconds, a) < std::pair(best[b].microseconds, b);
  });
  running.resize(std::min(running.size(), std::max<std::size_t>(2, running.size() / 2)));
}

// The first steps' shares under each plan. In a round all that are still in the race take their turns, so that what
// else the machine does for a while slows all of them; the better of two rounds counts. Then half as many run shares of
// twice as many steps. No time for what does not fit; none at all where the allowance ends before all were timed twice.
std::vector<Stopwatch::Shares> time_in_turns(Session& session, std::span<const memory::Plan> plans,
                                             const memory::PolicyState& known, std::int64_t allowance) {
  std::vector<Stopwatch::Shares> best(plans.size());
  if (plans.empty()) return best;
  Stopwatch stopwatch(session, plans.front().resolution, allowance);
  std::vector<std::size_t> running(plans.size());
  std::iota(running.begin(), running.end(), std::size_t{0});
  std::int64_t steps = kFirstSteps;
  for (int round = 0; round < kRounds; ++round) {
    const bool second = round % 2 == 1;
    for (const std::size_t i : running) {
      if (stopwatch.time_is_up()) return round < 2 ? std::vector<Stopwatch::Shares>(plans.size()) : best;
      const auto took = stopwatch.time_shares(plans[i], std::min(steps, session.steps), known);
      // The very first only warms up.
      if (round < 2 || !second || took.microseconds == 0 || took.microseconds < best[i].microseconds) best[i] = took;
    }
    if (second) keep_faster_half(running, best);
    if (second) steps *= 2;
  }
  return best;
}

}  // namespace

memory::CandidateTable time_contenders(Session& session, const memory::CandidateTable& table,
                                       const memory::ChoiceLimits& limits, const memory::PolicyState& known) {
  const auto before = table.all();
  const auto places = contenders(table, limits, known);
  std::vector<memory::Plan> plans;
  for (const std::size_t place : places) plans.push_back(before[place].plan);
  const std::int64_t step = places.empty() ? 0 : before[places.front()].microseconds;
  const auto times = time_in_turns(session, plans, known, timing_allowance(session, step));
  std::int64_t modelled = 0, measured = 0;
  std::vector<std::int64_t> known_times(before.size(), 0);
  for (std::size_t i = 0; i < places.size(); ++i) {
    const auto& [sum, sizes] = times[i];
    if (sum == 0) continue;
    const memory::Candidate& one = before[places[i]];
    std::int64_t steps = 0;
    for (const auto& [size, count] : sizes) steps += count;
    const std::int64_t took = std::max<std::int64_t>(1, sum / steps);
    // The first steps were timed. How much longer or shorter the run's others are, the model says.
    const std::int64_t model = memory::filled_microseconds(session.costs, one.plan, session.share, sizes);
    modelled += model;
    measured += took;
    for (std::size_t k = 0; k < before.size(); ++k)
      if (memory::alike(before[k], one)) known_times[k] = memory::scaled(took, one.microseconds, model);
  }
  if (measured == 0) return table;
  std::vector<memory::Candidate> all(before.begin(), before.end());
  for (std::size_t k = 0; k < all.size(); ++k) {
    const std::int64_t guess = memory::scaled(all[k].microseconds, measured, modelled);
    all[k].microseconds = std::max<std::int64_t>(1, known_times[k] > 0 ? known_times[k] : guess);
  }
  return memory::CandidateTable(std::move(all));
}

}  // namespace plimsoll::train
