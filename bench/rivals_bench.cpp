// Our predictive policy beside what other trainers do (bench/rival_policy.h), in real steps of the tiny model under
// the real budgets of bench/memory_scenarios.json. Run it from the repository's root
//   build/rivals_bench [rounds, 1] [scenarios, all]
// It starts each trainer as two ranks of its own under mpirun, one thread a rank, a share of 8 for each. They take
// turns: of each trainer a step, then of the next one, so that whatever else the machine does hits all alike. Counted
// are all seconds of a trainer's own turns: failed attempts, replays, trials, restarts (the model read anew), work done
// twice. What ours takes before the first step to time micro-batches and to make dry runs comes once a run and is no
// more than a small part of a long one; these runs are of seconds. The ratios "start counted" have among the seconds
// what making our session took beyond making the rival's model and buffers; the last figures say how long a run must be
// for that not to matter. A ratio of a scenario is that of
// its seconds in all rounds, "over all" that of all seconds, scenarios in which the rival gave up left out. Halving
// runs twice; what lies between the two is the noise, and a scenario counts as won or lost only when its ratio is
// further from 1 than nine in ten of those. Prints a Markdown table and lines FIGURE name = value unit.
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
#include <map>
#include <nlohmann/json.hpp>
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

/// In the order of their turns. Halving comes right after ours and its double far from it.
std::vector<std::string> trainer_names() {
  std::vector<std::string> names = {kOurs, kOursFull};
  for (const bench::Rival rival : bench::kRivals) names.emplace_back(bench::name_of(rival));
  names.emplace_back(kAgain);
  return names;
}

struct Asked {
  int rounds = 1;
  std::size_t scenarios = 1000;
};

fs::path turns_file(const fs::path& folder) { return folder / "turns"; }
fs::path results_file(const fs::path& folder, std::size_t trainer) {
  return folder / fmt::format("trainer-{}.jsonl", trainer);
}

/// One rank of the trainer of this number, in every scenario: a line of results for each, every round.
void take_part(const fs::path& folder, std::size_t number, const Asked& asked) {
  const auto names = trainer_names();
  TinyRanks ranks("rivals-bench");
  if (ranks.communicator->world() != kRanks) fail(ExitCode::kUsage, "a trainer has {} ranks", kRanks);
  ranks.config.memory.policy = "predictive";
  ranks.config.memory.adjustment_frequency = 4;
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
  for (std::size_t scenario = 0; scenario < all.size(); ++scenario) {
    for (int round = 0; round < asked.rounds; ++round) {
      auto trainer = make_trainer(names[number], ranks, drawn, all[scenario]);
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
      if (!ranks.first()) continue;
      const Json line = {{"scenario", all[scenario].name},
                         {"samples", all[scenario].samples()},
                         {"seconds", run.seconds},
                         {"start_seconds", run.start_seconds},
                         {"last", run.last},
                         {"failures", run.failures},
                         {"restarts", run.restarts},
                         {"lost", run.lost},
                         {"kept", run.kept},
                         {"finished", run.finished}};
      results << line.dump() << std::endl;
    }
  }
}

/// This program again, as a trainer.
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
  const auto names = trainer_names();
  for (std::size_t i = 0; i < names.size(); ++i) {
    std::ifstream file(results_file(folder, i));
    for (std::string line; std::getline(file, line);) {
      const Json run = Json::parse(line);
      const auto found = std::ranges::find(all, run.at("scenario").get<std::string>(), &ScenarioRuns::name);
      ScenarioRuns& of = found != all.end() ? *found : all.emplace_back(ScenarioRuns{run.at("scenario"), {}});
      of.runs[names[i]].push_back(run);
    }
  }
  return all;
}

double sum_of(const std::vector<Json>& runs, const char* what) {
  double sum = 0;
  for (const Json& run : runs) sum += run.at(what).get<double>();
  return sum;
}

/// "210.3 (1, 0, 16), at last micro-batch 4": samples/s of all rounds, the first one's troubles.
std::string cell(const std::vector<Json>& runs, bool with_plan) {
  const Json& first = runs.front();
  std::string text = fmt::format("{:.1f}{}", sum_of(runs, "samples") / sum_of(runs, "seconds"),
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
    for (const std::string& name : trainer_names())
      fmt::print(" {} |", cell(one.runs.at(name), name == kOurs || name == kOursFull));
    const auto start = [&](const char* name) {
      const auto& runs = one.runs.at(name);
      return sum_of(runs, "start_seconds") / static_cast<double>(runs.size());
    };
    fmt::print(" {:.1f} s | {:.1f} s |\n", start(kOurs), start(kAgain));
  }
}

/// Seconds of a rival and of ours; a rival that ended early has lost.
struct Pair {
  double theirs = 0, ours = 0;
  bool finished = true;
  double ratio() const { return finished ? theirs / ours : 1e9; }
};

/// What making ours took beyond making the rival's, over all rounds.
double later_start(const ScenarioRuns& scenario, const std::string& ours, const std::string& theirs) {
  const double extra =
      sum_of(scenario.runs.at(ours), "start_seconds") - sum_of(scenario.runs.at(theirs), "start_seconds");
  return std::max(0.0, extra);
}

Pair beside(const ScenarioRuns& scenario, const std::string& ours, const std::string& theirs, bool start_counted) {
  const auto& own = scenario.runs.at(ours);
  const auto& other = scenario.runs.at(theirs);
  Pair pair{sum_of(other, "seconds"), sum_of(own, "seconds")};
  if (start_counted) pair.ours += later_start(scenario, ours, theirs);
  pair.finished = std::ranges::all_of(other, [](const Json& run) { return run.at("finished").get<bool>(); });
  return pair;
}

/// Of all scenarios: by what is compared the ratio of each scenario, and all seconds.
struct Results {
  std::map<std::string, std::vector<double>> ratios;
  std::map<std::string, Pair> sums;
  std::map<std::string, double> later;  ///< seconds by which ours starts later, in the mean of all runs

  void add(const std::string& name, const Pair& pair) {
    ratios[name].push_back(pair.ratio());
    if (!pair.finished) return;
    sums[name].theirs += pair.theirs;
    sums[name].ours += pair.ours;
  }
};

constexpr const char* kNoise = "noise";  // halving beside itself

Results compare(const std::vector<ScenarioRuns>& all) {
  Results results;
  for (const ScenarioRuns& scenario : all) {
    results.add(kNoise, beside(scenario, bench::name_of(bench::Rival::kHalving), kAgain, false));
    for (const bench::Rival rival : bench::kRivals) {
      const std::string name = bench::name_of(rival);
      for (const bool start_counted : {false, true}) {
        const std::string suffix = start_counted ? ", start counted" : "";
        results.add(name + suffix, beside(scenario, kOurs, name, start_counted));
        results.add(name + ", target 0.99" + suffix, beside(scenario, kOursFull, name, start_counted));
      }
      results.later[name + ", target 0.99"] +=
          later_start(scenario, kOursFull, name) / static_cast<double>(all.size() * scenario.runs.at(name).size());
    }
  }
  return results;
}

// What nine in ten ratios of halving to itself stay within, as a distance from 1.
double noise_of(std::vector<double> ratios) {
  for (double& ratio : ratios) ratio = std::abs(ratio - 1.0);
  std::sort(ratios.begin(), ratios.end());
  return ratios[(ratios.size() * 9 - 1) / 10];
}

void print_figures(const Results& results) {
  const double noise = noise_of(results.ratios.at(kNoise));
  fmt::print("FIGURE real.noise, halving beside itself = {:.3f} (nine in ten scenarios)\n", noise);
  fmt::print("FIGURE real.halving beside itself over all = {:.3f} x\n", results.sums.at(kNoise).ratio());
  for (const auto& [name, ratios] : results.ratios) {
    if (name == kNoise) continue;
    fmt::print("FIGURE real.worst ratio to {} = {:.3f} x\n", name, *std::min_element(ratios.begin(), ratios.end()));
    fmt::print("FIGURE real.median ratio to {} = {:.3f} x\n", name, median(ratios));
    fmt::print("FIGURE real.ratio over all to {} = {:.3f} x\n", name, results.sums.at(name).ratio());
    const auto won = std::ranges::count_if(ratios, [&](double ratio) { return ratio > 1.0 + noise; });
    const auto lost = std::ranges::count_if(ratios, [&](double ratio) { return ratio < 1.0 - noise; });
    fmt::print("FIGURE real.scenarios won, within noise, lost against {} = {}/{}/{} of {}\n", name, won,
               std::ssize(ratios) - won - lost, lost, ratios.size());
  }
  // A run of that length takes both as long, the start counted.
  for (const auto& [name, later] : results.later) {
    const double ratio = results.sums.at(name).ratio();
    if (ratio > 1.0)
      fmt::print("FIGURE real.training from which on ours is ahead of {}, start counted = {:.0f} s\n", name,
                 later / (1.0 - 1.0 / ratio));
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
  print_figures(compare(all));
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
