// Our predictive policy beside what other trainers do (bench/rival_policy.h), in real steps of the tiny model under
// the real budgets of bench/memory_scenarios.json. Run it from the repository's root
//   build/rivals_bench [rounds, 1] [scenarios, all]
// It starts each trainer as two ranks of its own under mpirun, one thread a rank, a share of 8 for each. They take
// turns: of each trainer a step, then of the next one, so that whatever else the machine does hits all alike; in every
// round of a scenario they change processes and order. Counted are all seconds of a trainer's own turns: failed
// attempts, replays, trials, restarts (the model read anew), work done twice. The ratios "settled" have only the steps
// of a phase's second half that did not fail. What ours takes before the first step to time micro-batches and to make
// dry runs comes once a run and is a small part of one of hours; these runs are of six to thirty seconds. The ratios
// "start counted" have it among the seconds all the same, and what a rival takes to make model and buffers among its
// own; the last figures say from how many seconds of settled steps on ours is ahead then.
//
// A ratio is that of our samples/s to theirs: of a scenario the median of its rounds, "over all" the geometric mean of
// the scenarios, those left out in which the rival gave up. Noise is the largest difference between rivals that ran
// identical plans (halving runs twice), and a scenario counts as won or lost only when it is further from 1. Prints a
// Markdown table and lines FIGURE name = value unit.
#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <vector>

#include "bench/scenario_trainers.h"
#include "bench/turns.h"
#include "core/error.h"
#include "core/file.h"

namespace plimsoll::train {
namespace {

using Json = nlohmann::json;
namespace fs = std::filesystem;

/// As the table has them.
std::vector<std::string> trainer_names() {
  std::vector<std::string> names = {kOurs};
  for (const bench::Rival rival : bench::kRivals) names.emplace_back(bench::name_of(rival));
  names.emplace_back(kAgain);
  return names;
}

/// Which of `count` trainers a process is in a round of a scenario. From one to the next all change places, and nearly
/// always neighbours: none has always the same one before it.
std::size_t trainer_of(std::size_t process, std::size_t round_of_all, std::size_t count) {
  std::vector<std::size_t> strides;
  for (std::size_t stride = 1; stride < count; ++stride)
    if (std::gcd(stride, count) == 1) strides.push_back(stride);
  return (round_of_all + process * strides[round_of_all % strides.size()]) % count;
}

constexpr int kRounds = 1;

struct Asked {
  int rounds = kRounds;
  std::size_t scenarios = 1000;
};

fs::path turns_file(const fs::path& folder) { return folder / "turns"; }
fs::path results_file(const fs::path& folder, std::size_t process) {
  return folder / fmt::format("process-{}.jsonl", process);
}

Json line_of(const std::string& trainer, const Scenario& scenario, int round, const Run& run) {
  return {{"trainer", trainer},
          {"scenario", scenario.name},
          {"round", round},
          {"samples", samples_of(scenario)},
          {"seconds", run.seconds},
          {"start_seconds", run.start_seconds},
          {"settled_seconds", run.settled_seconds},
          {"settled_samples", run.settled_samples},
          {"turns", run.turns},
          {"plans", run.plans},
          {"last", run.last},
          {"failures", run.failures},
          {"restarts", run.restarts},
          {"lost", run.lost},
          {"kept", run.kept},
          {"finished", run.finished}};
}

/// One rank of the process of this number, in every scenario: a line of results for each, every round.
void take_part(const fs::path& folder, std::size_t number, const Asked& asked) {
  const auto names = trainer_names();
  TinyRanks ranks("rivals-bench");
  if (ranks.communicator->world() != kRanks) fail(ExitCode::kUsage, "a trainer has {} ranks", kRanks);
  ranks.config.memory.policy = "predictive";
  ranks.config.memory.adjustment_frequency = kWindow;
  ranks.config.train.max_steps = 5 * kPhase;
  bench::Turns turns(turns_file(folder), names.size(), number, ranks.communicator->rank());
  std::ofstream results;
  if (ranks.first()) results.open(results_file(folder, number));
  Drawn drawn(ranks);
  std::vector<Scenario> all;
  turns.race([&] {
    all = scenarios(Session(ranks.config, *ranks.communicator, *ranks.source));
    return false;
  });
  all.resize(std::min(all.size(), asked.scenarios));
  std::size_t round_of_all = 0;
  for (const Scenario& scenario : all) {
    for (int round = 0; round < asked.rounds; ++round) {
      const std::string& name = names[trainer_of(number, round_of_all++, names.size())];
      auto trainer = make_trainer(name, ranks, drawn, scenario);
      turns.race([&] {
        trainer->start();
        return false;
      });
      turns.race([&] { return trainer->turn(); });
      const Run run = trainer->result();
      turns.race([&] {
        trainer.reset();
        return false;
      });
      if (ranks.first()) results << line_of(name, scenario, round, run).dump() << std::endl;
    }
  }
}

/// This program again, as a process of trainers.
pid_t start_trainer(const fs::path& folder, std::size_t number, const Asked& asked) {
  const std::string self = fs::read_symlink("/proc/self/exe");
  std::vector<std::string> words = {"mpirun",
                                    "--oversubscribe",
                                    "-n",
                                    std::to_string(kRanks),
                                    self,
                                    "--trainer",
                                    folder,
                                    std::to_string(number),
                                    std::to_string(asked.rounds),
                                    std::to_string(asked.scenarios)};
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  const pid_t child = fork();
  if (child != 0) return child;
  if (geteuid() == 0) {  // which OpenMPI asks to be told
    setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 1);
    setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 1);
  }
  execvp(arguments.front(), arguments.data());
  _exit(127);
}

/// Starts all and waits. When one fails, all are ended.
void run_trainers(const fs::path& folder, const Asked& asked) {
  std::vector<pid_t> running;
  for (std::size_t i = 0; i < trainer_names().size(); ++i) running.push_back(start_trainer(folder, i, asked));
  while (!running.empty()) {
    int status = 0;
    const pid_t ended = waitpid(-1, &status, 0);
    std::erase(running, ended);
    if (status == 0) continue;
    for (const pid_t other : running) kill(other, SIGTERM);
    for (const pid_t other : running) waitpid(other, nullptr, 0);
    fs::remove_all(folder);
    fail(ExitCode::kPeer, "a trainer ended with status {:#x}; see its message", status);
  }
}

/// Lines of results by scenario, in its order, then by trainer, then by round.
struct ScenarioRuns {
  std::string name;
  std::map<std::string, std::vector<Json>> runs;
};

std::vector<ScenarioRuns> read_results(const fs::path& folder) {
  std::vector<ScenarioRuns> all;
  for (std::size_t i = 0; i < trainer_names().size(); ++i) {
    std::ifstream file(results_file(folder, i));
    for (std::string line; std::getline(file, line);) {
      const Json run = Json::parse(line);
      const auto found = std::ranges::find(all, run.at("scenario").get<std::string>(), &ScenarioRuns::name);
      ScenarioRuns& of = found != all.end() ? *found : all.emplace_back(ScenarioRuns{run.at("scenario"), {}});
      of.runs[run.at("trainer").get<std::string>()].push_back(run);
    }
  }
  const auto round = [](const Json& run) { return run.at("round").get<int>(); };
  for (ScenarioRuns& scenario : all)
    for (auto& [trainer, runs] : scenario.runs) std::ranges::sort(runs, {}, round);
  return all;
}

double median_of(const std::vector<Json>& runs, const char* what) {
  std::vector<double> values;
  for (const Json& run : runs) values.push_back(run.at(what).get<double>());
  return median(std::move(values));
}

/// "210.3 (1, 0, 16), at last micro-batch 4": samples/s by the median of the rounds, the first one's troubles.
std::string cell(const std::vector<Json>& runs, bool with_plan) {
  const Json& first = runs.front();
  std::string text = fmt::format("{:.1f}{}", first.at("samples").get<double>() / median_of(runs, "seconds"),
                                 first.at("kept").get<bool>() ? "" : "*");
  const int failures = first.at("failures"), restarts = first.at("restarts");
  if (failures + restarts > 0)
    text += fmt::format(" ({}, {}, {})", failures, restarts, first.at("lost").get<std::int64_t>());
  if (!first.at("finished").get<bool>()) text += " ended";
  return with_plan ? text + ", at last " + first.at("last").get<std::string>() : text;
}

void print_table(const std::vector<ScenarioRuns>& all) {
  fmt::print("| scenario |");
  for (const std::string& name : trainer_names()) fmt::print(" {} |", name);
  fmt::print(" start, ours | a rival's |\n|---|");
  for (std::size_t i = 0; i < trainer_names().size(); ++i) fmt::print("---|");
  fmt::print("---|---|\n");
  for (const ScenarioRuns& one : all) {
    fmt::print("| {} |", one.name);
    for (const std::string& name : trainer_names()) fmt::print(" {} |", cell(one.runs.at(name), name == kOurs));
    fmt::print(" {:.1f} s | {:.1f} s |\n", median_of(one.runs.at(kOurs), "start_seconds"),
               median_of(one.runs.at(kAgain), "start_seconds"));
  }
}

/// What of a run is compared.
enum class Counted { kAll, kStartToo, kSettled };

double seconds_a_sample(const Json& run, Counted counted) {
  if (counted == Counted::kSettled)
    return run.at("settled_seconds").get<double>() / std::max(1.0, run.at("settled_samples").get<double>());
  const double start = counted == Counted::kStartToo ? run.at("start_seconds").get<double>() : 0.0;
  return (run.at("seconds").get<double>() + start) / run.at("samples").get<double>();
}

/// Samples/s of one trainer over another's in a scenario: the median of the rounds.
double ratio_of(const std::vector<Json>& ours, const std::vector<Json>& theirs, Counted counted) {
  std::vector<double> ratios;
  for (std::size_t round = 0; round < ours.size(); ++round) {
    const double own = seconds_a_sample(ours[round], counted), other = seconds_a_sample(theirs[round], counted);
    if (own > 0 && other > 0) ratios.push_back(other / own);  // 0: it never came as far as a settled step
  }
  return ratios.empty() ? 1.0 : median(std::move(ratios));
}

double geometric_mean(const std::vector<double>& ratios) {
  double sum = 0;
  for (const double ratio : ratios) sum += std::log(ratio);
  return std::exp(sum / static_cast<double>(std::max<std::size_t>(1, ratios.size())));
}

bool finished(const std::vector<Json>& runs) {
  return std::ranges::all_of(runs, [](const Json& run) { return run.at("finished").get<bool>(); });
}

/// One of ours beside a rival, in all scenarios.
struct Comparison {
  std::vector<double> ratios;  ///< of the scenarios that the rival got through
  std::ptrdiff_t given_up = 0;
  double worst = std::numeric_limits<double>::infinity();
  std::string worst_scenario = "none";
};

Comparison compare(const std::vector<ScenarioRuns>& all, const std::string& ours, const std::string& theirs,
                   Counted counted) {
  Comparison result;
  for (const ScenarioRuns& scenario : all) {
    const auto& other = scenario.runs.at(theirs);
    if (!finished(other)) {
      ++result.given_up;
      continue;
    }
    result.ratios.push_back(ratio_of(scenario.runs.at(ours), other, counted));
    if (result.ratios.back() >= result.worst) continue;
    result.worst = result.ratios.back();
    result.worst_scenario = scenario.name;
  }
  return result;
}

/// Whether two rivals did the same in all rounds: rivals are the same program but for their plans.
bool ran_alike(const std::vector<Json>& a, const std::vector<Json>& b) {
  for (std::size_t round = 0; round < a.size(); ++round)
    for (const char* what : {"plans", "turns", "failures", "restarts", "lost"})
      if (a[round].at(what) != b[round].at(what)) return false;
  return true;
}

/// How far from 1 the ratio is of each two rivals that ran alike in a scenario.
std::vector<double> noise_of(const std::vector<ScenarioRuns>& all) {
  std::vector<std::string> rivals = {kAgain};
  for (const bench::Rival rival : bench::kRivals) rivals.emplace_back(bench::name_of(rival));
  std::vector<double> distances;
  for (const ScenarioRuns& scenario : all) {
    for (std::size_t i = 0; i < rivals.size(); ++i) {
      for (std::size_t k = i + 1; k < rivals.size(); ++k) {
        const auto& one = scenario.runs.at(rivals[i]);
        const auto& other = scenario.runs.at(rivals[k]);
        if (!ran_alike(one, other)) continue;
        const double ratio = ratio_of(one, other, Counted::kAll);
        distances.push_back(std::max(ratio, 1.0 / ratio) - 1.0);
      }
    }
  }
  return distances;
}

double print_noise(const std::vector<ScenarioRuns>& all) {
  const std::vector<double> distances = noise_of(all);
  const double noise = distances.empty() ? 0.0 : *std::max_element(distances.begin(), distances.end());
  fmt::print("FIGURE real.noise, rivals beside each other under identical plans = {:.3f} (largest of {} pairs)\n",
             noise, distances.size());
  const Comparison beside_itself = compare(all, kAgain, bench::name_of(bench::Rival::kHalving), Counted::kAll);
  fmt::print("FIGURE real.over all, halving beside itself = {:.3f} x\n", geometric_mean(beside_itself.ratios));
  return noise;
}

/// `pair`: "halving, target 0.85".
void print_comparison(const std::string& pair, const Comparison& of, double noise) {
  const double over_all = geometric_mean(of.ratios);
  const auto won = of.given_up + std::ranges::count_if(of.ratios, [&](double ratio) { return ratio > 1.0 + noise; });
  const auto lost = std::ranges::count_if(of.ratios, [&](double ratio) { return ratio < 1.0 / (1.0 + noise); });
  const auto count = of.given_up + std::ssize(of.ratios);
  fmt::print("FIGURE real.over all to {} = {:.3f} x (bound 1: {}), won {}, within noise {}, lost {} of {}\n", pair,
             over_all, over_all >= 1.0 ? "met" : "NOT met", won, count - won - lost, lost, count);
  fmt::print("FIGURE real.worst to {} = {:.3f} x ({})\n", pair, of.worst, of.worst_scenario);
}

/// Seconds by which ours starts later, in the mean of all runs.
double later_start(const std::vector<ScenarioRuns>& all, const std::string& ours, const std::string& theirs) {
  double sum = 0, runs = 0;
  for (const ScenarioRuns& scenario : all) {
    for (const Json& run : scenario.runs.at(ours)) sum += run.at("start_seconds").get<double>();
    for (const Json& run : scenario.runs.at(theirs)) sum -= run.at("start_seconds").get<double>();
    runs += static_cast<double>(scenario.runs.at(ours).size());
  }
  return std::max(0.0, sum / runs);
}

// A run of that length takes both as long, the start counted.
void print_break_even(const std::string& pair, double settled, double later) {
  const std::string seconds = settled > 1.0 ? fmt::format("{:.0f} s", later / (1.0 - 1.0 / settled)) : "never";
  fmt::print("FIGURE real.training from which on ours is ahead of {}, start counted = {}\n", pair, seconds);
}

void print_figures(const std::vector<ScenarioRuns>& all) {
  const double noise = print_noise(all);
  for (const bench::Rival rival : bench::kRivals) {
    const std::string theirs = bench::name_of(rival);
    print_comparison(theirs, compare(all, kOurs, theirs, Counted::kAll), noise);
    const double with_start = geometric_mean(compare(all, kOurs, theirs, Counted::kStartToo).ratios);
    fmt::print("FIGURE real.start counted, over all to {} = {:.3f} x (bound 1: {})\n", theirs, with_start,
               with_start >= 1.0 ? "met" : "NOT met");
    const double settled = geometric_mean(compare(all, kOurs, theirs, Counted::kSettled).ratios);
    fmt::print("FIGURE real.settled, over all to {} = {:.3f} x\n", theirs, settled);
    print_break_even(theirs, settled, later_start(all, kOurs, theirs));
  }
}

void run(const Asked& asked) {
  const fs::path folder = fs::temp_directory_path() / fmt::format("plimsoll-rivals-{}", ::getpid());
  fs::create_directories(folder);
  bench::Turns::create(turns_file(folder));
  run_trainers(folder, asked);
  const auto all = read_results(folder);
  fs::remove_all(folder);
  print_table(all);
  print_figures(all);
}

[[noreturn]] void explain() { fail(ExitCode::kUsage, "usage: rivals_bench [rounds >= 1] [scenarios >= 1]"); }

Asked asked_for(const char* rounds, const char* count) {
  Asked asked;
  if (rounds != nullptr) asked.rounds = std::atoi(rounds);
  const int scenarios = count != nullptr ? std::atoi(count) : 1000;
  if (asked.rounds < 1 || scenarios < 1) explain();
  asked.scenarios = static_cast<std::size_t>(scenarios);
  return asked;
}

}  // namespace
}  // namespace plimsoll::train

int main(int argc, char** argv) {
  using namespace plimsoll::train;
  if (argc == 6 && std::string(argv[1]) == "--trainer") {
    return tiny_bench_program(
        [&] { take_part(argv[2], static_cast<std::size_t>(std::atoi(argv[3])), asked_for(argv[4], argv[5])); });
  }
  return plimsoll::bench::exit_code_of([&] {
    if (argc > 3) explain();
    run(asked_for(argc > 1 ? argv[1] : nullptr, argc > 2 ? argv[2] : nullptr));
  });
}
