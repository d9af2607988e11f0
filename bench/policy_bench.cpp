// Our policies against what other trainers do (bench/rivals.h), in simulated time, and what a decision costs. Run it
//   build/policy_bench
// It prints a Markdown table, a row a scenario: samples/s with everything counted, in brackets what it cost (retries,
// restarts, samples lost), a * where the effective batch was not kept, "ended" where the run did not reach its end.
// Then lines FIGURE name = value unit. An overall ratio is the geometric mean of the scenarios'. No clock but that of
// the worlds is in it, so that it is the same on every machine: the program exits with 1 where a rival is ahead, over
// all, of the predictive policy.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "bench/program.h"
#include "bench/rivals.h"
#include "core/bytes.h"
#include "core/error.h"
#include "ddp/report.h"
#include "memory/planning/predictive.h"
#include "memory/planning/scenarios.h"

namespace plimsoll::bench {
namespace {

using memory::Outcome;
using memory::PolicyConfig;
using memory::PolicyKind;
using memory::SyntheticWorld;

std::string cell(const Outcome& outcome) {
  const std::int64_t rate = outcome.rate();
  std::string text = fmt::format("{}.{:03}{}", rate / 1000, rate % 1000, outcome.effective_batch_kept ? "" : "*");
  if (outcome.retries + outcome.restarts + outcome.lost_samples > 0)
    text += fmt::format(" ({}, {}, {})", outcome.retries, outcome.restarts, outcome.lost_samples);
  return outcome.finished ? text : text + " ended";
}

Outcome run_policy(PolicyKind kind, const SyntheticWorld& world) {
  return memory::simulate(world, {memory::default_policy(kind), {}});
}

constexpr double kTie = 0.0005;  // what is nearer to 1 is a tie

/// Samples/s of the predictive policy over another's; a run that did not reach its end counts by what it did.
using Ratios = std::map<std::string, std::vector<std::pair<double, std::string>>>;

void compare(Ratios& ratios, const Outcome& ours, const Outcome& other, const std::string& scenario) {
  const auto rate = static_cast<double>(std::max<std::int64_t>(1, other.rate()));
  ratios[other.policy].emplace_back(static_cast<double>(ours.rate()) / rate, scenario);
}

Ratios table() {
  Ratios ratios;
  fmt::print("| scenario | predictive | reactive |");
  for (Rival rival : kRivals) fmt::print(" {} |", name_of(rival));
  fmt::print("\n|---|---|---|---|---|---|---|\n");
  for (const memory::Scenario& scenario : memory::scenarios()) {
    if (!scenario.script.empty()) continue;
    const SyntheticWorld world(scenario);
    const Outcome ours = run_policy(PolicyKind::kPredictive, world);
    std::vector<Outcome> others{run_policy(PolicyKind::kReactive, world)};
    for (Rival rival : kRivals) others.push_back(run_rival(rival, world));
    fmt::print("| {} | {} |", scenario.name, cell(ours));
    for (const Outcome& other : others) {
      fmt::print(" {} |", cell(other));
      compare(ratios, ours, other, scenario.name);
    }
    fmt::print("\n");
  }
  return ratios;
}

double over_all(const Ratios& ratios, const std::string& name) {
  const auto& values = ratios.at(name);
  double sum = 0;
  for (const auto& value : values) sum += std::log(value.first);
  return std::exp(sum / static_cast<double>(values.size()));
}

bool ahead(double over_all_ratio) { return over_all_ratio >= 1.0 - kTie; }

void print_ratios(const Ratios& ratios) {
  for (auto [name, values] : ratios) {
    std::sort(values.begin(), values.end());
    const auto below =
        std::count_if(values.begin(), values.end(), [](const auto& value) { return value.first < 1.0 - kTie; });
    const auto above =
        std::count_if(values.begin(), values.end(), [](const auto& value) { return value.first > 1.0 + kTie; });
    fmt::print("FIGURE policy.worst_ratio_to_{} = {:.3f} x ({})\n", name, values.front().first, values.front().second);
    fmt::print("FIGURE policy.median_ratio_to_{} = {:.3f} x\n", name, values[values.size() / 2].first);
    fmt::print("FIGURE policy.scenarios_won_tied_lost_against_{} = {}/{}/{} scenarios\n", name, above,
               static_cast<std::ptrdiff_t>(values.size()) - above - below, below);
  }
}

/// False when a rival is ahead over all.
bool print_verdicts(const Ratios& ratios) {
  bool ahead_of_all = true;
  for (const Rival rival : kRivals) {
    const double ratio = over_all(ratios, name_of(rival));
    fmt::print("FIGURE policy.overall_ratio_to_{} = {:.3f} x (bound 1: {})\n", name_of(rival), ratio,
               ahead(ratio) ? "met" : "NOT met");
    ahead_of_all = ahead_of_all && ahead(ratio);
  }
  return ahead_of_all;
}

/// Milliseconds of one predictive decision over `world` ranks: a full window's reports, and the largest table we make.
double decision_ms(int world) {
  memory::Scenario scenario = memory::find_scenario("calm", world);
  scenario.effective = std::int64_t{16} * world;
  scenario.steps = 2;
  const SyntheticWorld made(scenario);
  const PolicyConfig config = memory::default_policy(PolicyKind::kPredictive);
  const memory::CandidateTable candidates = made.table(0, config);
  const memory::Plan plan = candidates.all().back().plan;
  memory::WindowSummary window{1, 25, 25, {}};
  for (int rank = 0; rank < world; ++rank) {
    memory::RankUsage usage;
    usage.budget_bytes = 24_GiB;
    usage.peak_bytes = 12_GiB + rank;
    usage.predicted_peak_bytes = 12_GiB;
    window.ranks.push_back(usage);
  }
  std::vector<double> times;
  memory::PolicyState state;
  for (int i = 0; i < 41; ++i) {
    // The state stays, as in a run: after the first decisions the calibration knows every rank.
    const auto began = std::chrono::steady_clock::now();
    memory::decide_predictive(config, window, plan, candidates, state);
    times.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - began).count());
    state.cooldown = 0;
  }
  std::nth_element(times.begin(), times.begin() + 20, times.end());
  return times[20];
}

/// Gathering one step's reports and looking whether something must be done at once: what every step pays.
double step_ms(int world) {
  memory::WindowAccumulator window(25, world);
  std::vector<memory::RankUsage> reports(static_cast<std::size_t>(world));
  for (memory::RankUsage& usage : reports) {
    usage.budget_bytes = 24_GiB;
    usage.peak_bytes = usage.predicted_peak_bytes = 12_GiB;
  }
  memory::Scenario scenario = memory::find_scenario("calm", 2);
  scenario.steps = 2;
  const PolicyConfig config = memory::default_policy(PolicyKind::kPredictive);
  const memory::CandidateTable candidates = SyntheticWorld(scenario).table(0, config);
  memory::PolicyState state;
  std::vector<double> times;
  for (int i = 0; i < 41; ++i) {
    const auto began = std::chrono::steady_clock::now();
    window.add(i + 1, reports);
    memory::respond(config, i + 1, reports, candidates.all().back().plan, candidates, state);
    times.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - began).count());
  }
  std::nth_element(times.begin(), times.begin() + 20, times.end());
  return times[20];
}

/// False when a bound that no clock has a part in is not met.
bool run() {
  const Ratios ratios = table();
  print_ratios(ratios);
  const bool met = print_verdicts(ratios);
  constexpr int kWorld = 4096;
  fmt::print("FIGURE policy.decision_4096_ranks = {:.3f} ms\n", decision_ms(kWorld));
  fmt::print("FIGURE policy.between_windows_4096_ranks = {:.3f} ms\n", step_ms(kWorld));
  fmt::print("FIGURE policy.report_bytes_4096_ranks = {} B\n", ddp::slot_count(kWorld) * std::int64_t{sizeof(float)});
  return met;
}

}  // namespace
}  // namespace plimsoll::bench

int main() {
  bool met = true;
  const int code = plimsoll::bench::exit_code_of([&] { met = plimsoll::bench::run(); });
  if (!met) fmt::print(stderr, "policy_bench: a rival is ahead over all; see the overall ratios\n");
  return code != 0 || met ? code : 1;
}
