// `plimsoll simulate`: what the policies of a run decide on a recorded trace or in a made-up world, a line a decision.

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <utility>

#include "core/error.h"
#include "core/file.h"
#include "ddp/report.h"
#include "launcher/commands.h"
#include "launcher/options.h"
#include "launcher/simulate_run.h"
#include "memory/planning/scenarios.h"
#include "memory/planning/simulation.h"

namespace plimsoll {
namespace {

using memory::PolicyKind;

constexpr const char* kAbout =
    "Drive the policies of a training run without one: a line a decision, and how it went at the end.\n\n"
    "--trace F.jsonl: a line a step, either of a run's metrics.jsonl or\n"
    "  {\"peaks\": [0.65, 0.7], \"budgets\": [24000000000, 24000000000]}\n"
    "with a number a rank. Peaks up to 2 are fractions of the rank's budget, larger ones bytes. Without \"budgets\" "
    "those\n"
    "of the line before hold, and on the first line 10 GB. May be added: \"retries\" and \"predicted\" (a number a "
    "rank),\n"
    "\"step_ms\", \"step\", \"samples\", \"plan\". The peaks stay as they are whatever is decided. The predictive "
    "policy needs\n"
    "a first line {\"candidates\": [{\"micro_batch\": 4, \"bytes\": 9000000000, \"microseconds\": 800000}, ...]}.\n"
    "Beside a run's metrics.jsonl its config.toml, candidates.json and policy.json are read, and the decisions are the "
    "run's.\n\n"
    "--scenario NAME: a made-up world in which the plan decides what is needed. --list names all.\n";

constexpr int kMostRanks = 65536;
constexpr int kMiddleResolution = 160;  // of the classic bounds

int whole(const cxxopts::ParseResult& parsed, const char* name, int most) {
  const int value = parsed[name].as<int>();
  if (value < 1 || value > most) fail(ExitCode::kUsage, "--{} is {}, but must be from 1 to {}", name, value, most);
  return value;
}

void list(bool json) {
  for (const memory::Scenario& scenario : memory::scenarios()) {
    if (json) {
      fmt::print("{}\n", nlohmann::ordered_json{{"name", scenario.name}, {"summary", scenario.summary}}.dump());
    } else {
      fmt::print("{:<24} {}\n", scenario.name, scenario.summary);
    }
  }
}

class Printer {
 public:
  explicit Printer(bool json) : json_(json) {}
  memory::AroundDecision clock() {
    return [this](const std::function<void()>& decide) {
      const auto began = std::chrono::steady_clock::now();
      decide();
      times_.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - began).count());
    };
  }
  std::function<void(const memory::Decision&)> decisions() const {
    return [json = json_](const memory::Decision& decision) {
      fmt::print("{}\n", json ? memory::to_json(decision) : decision.reason);
    };
  }
  /// Whose policy decides; before all decisions, or in the summary where a program reads them.
  void whose(const std::string& said) {
    said_ = said;
    if (!json_ && !said.empty()) fmt::print("{}\n", said);
  }
  void summary(const memory::Outcome& outcome) const {
    const std::int64_t bytes = ddp::slot_count(static_cast<int>(outcome.ranks)) * std::int64_t{sizeof(float)};
    if (json_) {
      auto line = nlohmann::ordered_json::parse(memory::to_json(outcome));
      line["ranks"] = outcome.ranks;
      if (!times_.empty()) line["decision_ms"] = median_time();
      line["report_bytes"] = bytes;
      if (!said_.empty()) line["policy_of"] = said_;
      fmt::print("{}\n", line.dump());
      return;
    }
    fmt::print("{}\n", memory::to_string(outcome));
    if (times_.empty()) return;
    fmt::print("{} rank{}: a decision takes {:.3f} ms (median of {}); their reports add {} bytes to the reduction\n",
               outcome.ranks, outcome.ranks == 1 ? "" : "s", median_time(), times_.size(), bytes);
  }

 private:
  double median_time() const {
    std::vector<double> times = times_;
    std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2), times.end());
    return times[times.size() / 2];
  }

  bool json_;
  std::string said_;
  std::vector<double> times_;  ///< milliseconds
};

memory::Outcome follow(memory::Trace trace, memory::ReplayOptions options, const cxxopts::ParseResult& parsed) {
  if (parsed.count("micro") > 0) options.first.micro_batch = whole(parsed, "micro", 1 << 20);
  if (parsed.count("share") > 0) options.share = whole(parsed, "share", 1 << 20);
  if (parsed.count("steps") > 0) {
    const auto steps = static_cast<std::size_t>(whole(parsed, "steps", 1 << 30));
    if (steps < trace.steps.size()) trace.steps.resize(steps);
  }
  return memory::replay(trace, options);
}

memory::Outcome follow_file(const cxxopts::ParseResult& parsed, Printer& printer) {
  const auto file = parsed["trace"].as<std::string>();
  const int ranks = parsed.count("ranks") > 0 ? whole(parsed, "ranks", kMostRanks) : 0;
  memory::Trace trace = memory::read_trace(read_file(file), file, ranks);
  TracePolicy policy = policy_of_trace(parsed, file, trace);
  printer.whose(policy.said);
  memory::ReplayOptions options{std::move(policy.config), {}, 64, printer.decisions(), printer.clock(),
                                std::move(policy.state)};
  const memory::TraceStep& first = trace.steps.front();
  options.first.micro_batch = 4;
  if (!trace.candidates.empty()) options.first = trace.candidates.front().plan;
  if (first.plan) options.first = *first.plan;
  if (!first.failed.empty()) options.first = first.failed.front().plan;
  if (asked_classic(parsed, false) && options.first.resolution == 0) options.first.resolution = kMiddleResolution;
  const auto world = static_cast<std::int64_t>(first.ranks.size());
  if (first.samples > 0) options.share = (first.samples + world - 1) / world;
  return follow(std::move(trace), std::move(options), parsed);
}

memory::Outcome run_scenario(const cxxopts::ParseResult& parsed, Printer& printer) {
  const int ranks = parsed.count("ranks") > 0 ? whole(parsed, "ranks", kMostRanks) : 0;
  memory::Scenario scenario = memory::find_scenario(parsed["scenario"].as<std::string>(), ranks);
  const bool scripted = !scenario.script.empty(), classic = asked_classic(parsed, scenario.classic);
  const PolicyKind kind = asked_policy(parsed, scripted ? PolicyKind::kReactive : PolicyKind::kPredictive);
  if (scripted) {
    memory::ReplayOptions options{default_policy(kind, classic), scenario.first, 64, printer.decisions(),
                                  printer.clock()};
    return follow(memory::script_trace(scenario), std::move(options), parsed);
  }
  if (parsed.count("micro") > 0)
    fail(ExitCode::kUsage, "--micro goes with --trace; in scenario {} the policy chooses the first plan",
         scenario.name);
  if (parsed.count("share") > 0) scenario.effective = std::int64_t{scenario.ranks} * whole(parsed, "share", 1 << 20);
  if (parsed.count("steps") > 0) scenario.steps = whole(parsed, "steps", 1'000'000);
  if (classic && scenario.first.resolution == 0) scenario.first.resolution = kMiddleResolution;
  return memory::simulate(memory::SyntheticWorld(std::move(scenario)),
                          {default_policy(kind, classic), printer.decisions(), printer.clock()});
}

}  // namespace

int run_simulate(const std::vector<std::string>& args) {
  cxxopts::Options options("plimsoll simulate", kAbout);
  options.add_options()("trace", "Recorded peaks to follow", cxxopts::value<std::string>())(
      "scenario", "Made-up run", cxxopts::value<std::string>())("list", "Name all scenarios")(
      "ranks", "Ranks; a trace must have so many", cxxopts::value<int>())(
      "policy", "fixed, reactive or predictive (default: the run's; predictive where there are candidates)",
      cxxopts::value<std::string>())("profile", "default or classic (default: the scenario's, or the run's settings)",
                                     cxxopts::value<std::string>())(
      "steps", "Steps (default: the scenario's, or the whole trace)", cxxopts::value<int>())(
      "micro", "Trace: the first plan's micro-batch (default: the trace's, or 4)", cxxopts::value<int>())(
      "share", "Samples of a rank and step, which cap the micro-batch (default: the trace's, or 64; the scenario's)",
      cxxopts::value<int>())("json", "JSON lines: decisions, then a summary");
  const auto parsed = parse_options(options, args);
  if (!parsed) return 0;
  const bool json = parsed->count("json") > 0;
  if (parsed->count("trace") + parsed->count("scenario") + parsed->count("list") != 1)
    fail(ExitCode::kUsage, "plimsoll simulate: give one of --trace FILE, --scenario NAME, --list");
  if (parsed->count("list") > 0) return list(json), 0;
  Printer printer(json);
  printer.summary(parsed->count("trace") > 0 ? follow_file(*parsed, printer) : run_scenario(*parsed, printer));
  return 0;
}

}  // namespace plimsoll
