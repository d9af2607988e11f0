// Our predictive policy beside what other trainers do (bench/rival_policy.h), in real steps of the tiny model under
// the real budgets of bench/memory_scenarios.json. Run it from the repository's root
//   mpirun -n 2 build/rivals_bench [rounds, 3] [scenarios, all]
// One thread a rank, a share of 8 for each. In each round every trainer runs the scenario once, so that whatever else
// the machine does hits all alike; a ratio is the median over rounds. Counted are all seconds from the first step on:
// failed attempts, replays, trials, restarts (the model read anew), work done twice. What ours takes before the first
// step to time micro-batches and to make dry runs comes once a run and is no more than a small part of a long one;
// these runs are of seconds. The ratios "start counted" have among the seconds what making our session took beyond
// making the rival's, which holds the same model. "over all" are all seconds of the rival over all of ours, scenarios
// in which it gave up left out. Halving runs twice a round; what lies between the two is the machine's noise, and a
// scenario counts as won or lost only when its ratio is further from 1 than nine in ten of those. Prints a Markdown
// table and lines FIGURE name = value unit.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "bench/rival_policy.h"
#include "bench/tiny_session.h"
#include "core/error.h"
#include "core/file.h"
#include "memory/guardian.h"
#include "train/options.h"

namespace plimsoll::train {
namespace {

using bench::Rival;

constexpr std::int64_t kPhase = 24;  // steps under one budget
constexpr int kRanks = 2;
constexpr std::int64_t kBatch = 8 * kRanks;
constexpr const char* kScenarios = "bench/memory_scenarios.json";
constexpr std::int64_t kCheckpointEvery = 12;  // steps; writing one is free for all
constexpr double kFull = 0.99;                 // the target beside rivals that fill a card to its last byte
constexpr const char* kNoise = "noise";        // halving beside itself

struct Scenario {
  std::string name;
  std::vector<std::array<std::int64_t, kRanks>> budgets;  // bytes, phase by phase
  std::int64_t samples() const { return kBatch * kPhase * static_cast<std::int64_t>(budgets.size()); }
};

struct Run {
  double seconds = 0;
  double start_seconds = 0;  // making the session
  memory::Plan last;         // ours only
  int failures = 0, restarts = 0;
  std::int64_t lost = 0;
  bool kept = true, finished = true;
};

double seconds_of(const auto& action) { return time_ms(action) / 1000; }

/// One step of the program's own session, with its replays and what its policy makes of it. Returns the failures.
int our_step(Session& s, std::int64_t step, std::span<const model::StreamSample> samples) {
  int failures = 0;
  for (bool replay = true; replay;) {
    StepInput input;
    input.step = step;
    input.updates = step - 1;
    input.samples = samples;
    input.plan = s.plan;
    input.fill = s.fill(s.plan, step);
    const StepResult result = s.step->run(input);
    if (result.fatal) throw *result.fatal;
    failures += static_cast<int>(result.guardian.retries) + (result.guardian.failed ? 1 : 0);
    replay = result.verdict.action == ddp::Action::kReplay;
    if (const auto decision = s.controller->observe(step, result.reports, result.verdict, s.plan))
      s.plan = decision->plan;
  }
  return failures;
}

/// All ranks alike: what happened to any of them.
std::int64_t over_ranks(ddp::Communicator& communicator, std::int64_t mine) {
  const std::vector<std::int64_t> number = {mine};
  std::int64_t sum = 0;
  for (const auto& theirs : ddp::share_numbers(communicator, number)) sum += theirs.at(0);
  return sum;
}

Config config_of(const TinyRanks& ranks, const Scenario& scenario, const char* policy) {
  Config config = ranks.config;
  config.train.max_steps = scenario.samples() / kBatch;
  config.memory.policy = policy;
  std::vector<Setting> budgets;
  for (const std::int64_t budget : scenario.budgets.front()) budgets.emplace_back(budget);
  config.memory.budget = Setting(budgets);
  return config;
}

std::unique_ptr<Session> timed_session(const Config& config, TinyRanks& ranks, double& seconds) {
  std::unique_ptr<Session> session;
  ranks.communicator->barrier();
  seconds = seconds_of([&] {
    session = std::make_unique<Session>(config, *ranks.communicator, *ranks.source);
    ranks.communicator->barrier();
  });
  return session;
}

Run run_ours(TinyRanks& ranks, Drawn& drawn, const Scenario& scenario, double target) {
  Run run;
  Config config = config_of(ranks, scenario, "predictive");
  config.memory.target = target;
  config.memory.margin = std::min(config.memory.margin, 1.0 - target);
  ddp::Communicator& communicator = *ranks.communicator;
  const auto session = timed_session(config, ranks, run.start_seconds);
  session->controller->start(0, session->plan, session->budgets);
  run.seconds = seconds_of([&] {
    for (std::int64_t step = 1; step <= scenario.samples() / kBatch; ++step) {
      const auto& phase = scenario.budgets[static_cast<std::size_t>((step - 1) / kPhase)];
      session->meter.set_budget(phase.at(static_cast<std::size_t>(communicator.rank())));
      run.failures += our_step(*session, step, drawn.share_of((step - 1) * kBatch, kBatch));
    }
    communicator.barrier();
  });
  run.failures = static_cast<int>(over_ranks(communicator, run.failures));
  run.last = session->plan;
  return run;
}

/// A loop that knows nothing of memory, over the same model and samples, with the same kernels and optimiser.
class PlainTrainer : bench::RivalPolicy {
 public:
  PlainTrainer(Rival rival, Session& session, Drawn& drawn, const Scenario& scenario)
      : RivalPolicy(rival, kBatch, kRanks, session.model->language_blocks()),
        scenario_(scenario),
        drawn_(drawn),
        session_(session),
        rules_(session.model->packing_rules(static_cast<std::uint64_t>(session.config.run.seed), false)) {
    if (rival == Rival::kFixedTable) start_with(2);
    save();
  }

  Run go() {
    run_.seconds = seconds_of([&] {
      set_budget();
      if (rival_ == Rival::kBinarySearch) search();
      while (position_ < scenario_.samples() && finished_) step();
      session_.communicator.barrier();
    });
    run_.kept = effective_ == kBatch;
    run_.finished = finished_;
    return run_;
  }

 private:
  void set_budget() {
    furthest_ = std::max(furthest_, position_);
    const auto phase = static_cast<std::size_t>(furthest_ / (kBatch * kPhase));
    const auto& budgets = scenario_.budgets[std::min(phase, scenario_.budgets.size() - 1)];
    session_.meter.set_budget(budgets.at(static_cast<std::size_t>(session_.communicator.rank())));
  }

  void step() {
    set_budget();
    session_.buffers->start_step();
    if (!accumulate(drawn_.share_of(position_, effective_))) {
      run_.lost += effective_;
      ++run_.failures;
      return recover();
    }
    session_.communicator.all_reduce_sum(session_.buffers->gradients());
    apply_gradients(*session_.buffers, step_options(session_.config), 1.0, updates_++);
    position_ += effective_;
    if (++since_checkpoint_ == kCheckpointEvery) save();
  }

  /// False on all ranks when one of them ran out of memory.
  bool accumulate(const std::vector<model::StreamSample>& samples) {
    const std::span<const model::StreamSample> all(samples);
    const auto micro_batch = static_cast<std::size_t>(plan_.micro_batch);
    bool failed = false;
    try {
      for (std::size_t begin = 0; begin < all.size(); begin += micro_batch) {
        const auto piece = all.subspan(begin, std::min(micro_batch, all.size() - begin));
        forward_backward(*session_.model, model::pack(piece, rules_, at::kCPU), recompute_of(plan_), effective_);
        session_.buffers->commit_staging();
      }
    } catch (const std::exception&) {
      if (!memory::is_out_of_memory()) throw;
      failed = true;
    }
    if (failed) {
      memory::drain();
      session_.buffers->discard_staging();
    }
    return over_ranks(session_.communicator, failed ? 1 : 0) == 0;
  }

  /// Reads the model again, as a new process does, and goes on from the last checkpoint.
  void restart(Restart) override {
    ++run_.restarts;
    run_.lost += position_ - saved_position_;
    const std::int64_t budget = session_.meter.budget();
    session_.meter.set_budget(std::int64_t{1} << 40);
    { const model::VlaModel again(session_.options, at::Device(at::kCPU)); }
    session_.meter.set_budget(budget);
    std::ranges::copy(saved_weights_, session_.buffers->parameters().begin());
    position_ = saved_position_;
    since_checkpoint_ = 0;
  }

  void save() {
    const auto weights = session_.buffers->parameters();
    saved_weights_.assign(weights.begin(), weights.end());
    saved_position_ = position_;
    since_checkpoint_ = 0;
  }

  bool trial() override {
    session_.buffers->start_step();
    for (std::int64_t i = 0; i < 3; ++i) {
      const std::int64_t count = std::int64_t{plan_.micro_batch} * kRanks;
      if (!accumulate(drawn_.share_of(position_ + i * count, count))) return false;
    }
    return true;
  }

  const Scenario& scenario_;
  Drawn& drawn_;
  Session& session_;
  model::PackingRules rules_;
  std::int64_t position_ = 0, saved_position_ = 0, furthest_ = 0, since_checkpoint_ = 0, updates_ = 0;
  std::vector<float> saved_weights_;
  Run run_;
};

Run run_rival(Rival rival, TinyRanks& ranks, Drawn& drawn, const Scenario& scenario) {
  const Config config = config_of(ranks, scenario, "reactive");
  double start_seconds = 0;
  const auto session = timed_session(config, ranks, start_seconds);
  Run run = PlainTrainer(rival, *session, drawn, scenario).go();
  run.start_seconds = start_seconds;
  return run;
}

using Json = nlohmann::json;

/// Budgets of the file as bytes: multiples of what plans of a session's table need.
class Budgets {
 public:
  explicit Budgets(const Session& session)
      : table_(session.candidates), blocks_(session.model->language_blocks()), target_(session.config.memory.target) {}

  std::int64_t bytes(const Json& budget) const {
    if (budget.contains("least")) return whole(least() / target_ * budget.at("least").get<double>());
    if (budget.contains("times")) return budget.at("times").get<std::int64_t>() * needed(budget.at("needs"));
    return whole(static_cast<double>(needed(budget.at("fits"))) * 1.02 / target_ * budget.value("part", 1.0));
  }

 private:
  static std::int64_t whole(double bytes) { return static_cast<std::int64_t>(bytes); }
  double least() const {
    std::int64_t bytes = table_.all().front().bytes;
    for (const auto& candidate : table_.all()) bytes = std::min(bytes, candidate.bytes);
    return static_cast<double>(bytes);
  }
  /// Of a plan with nothing offloaded and no other tower recomputed.
  std::int64_t needed(const Json& plan) const {
    const int micro_batch = plan.at(0), recompute = plan.at(1).get<int>() == 0 ? 0 : blocks_;
    for (const auto& candidate : table_.all()) {
      const memory::Plan& own = candidate.plan;
      if (own.micro_batch == micro_batch && own.recompute_blocks == recompute && own.recompute_expert == 0 &&
          !own.offload)
        return candidate.bytes;
    }
    fail(ExitCode::kUsage, "{}: no candidate of micro-batch {} that recomputes {} blocks", kScenarios, micro_batch,
         recompute);
  }

  const memory::CandidateTable& table_;
  int blocks_;
  double target_;
};

std::vector<Scenario> scenarios(const Session& session) {
  const Budgets budgets(session);
  std::vector<Scenario> all;
  const Json file = Json::parse(read_file(kScenarios));
  for (const Json& read : file.at("scenarios")) {
    Scenario& scenario = all.emplace_back();
    scenario.name = read.at("name").get<std::string>();
    for (const Json& phase : read.at("budgets")) {
      auto& now = scenario.budgets.emplace_back(scenario.budgets.empty() ? std::array<std::int64_t, kRanks>{}
                                                                         : scenario.budgets.back());
      for (std::size_t rank = 0; rank < now.size(); ++rank)
        if (!phase.at(rank).is_null()) now.at(rank) = budgets.bytes(phase.at(rank));
    }
  }
  return all;
}

std::string cell(const Run& run, const Scenario& scenario) {
  std::string text =
      fmt::format("{:.1f}{}", static_cast<double>(scenario.samples()) / run.seconds, run.kept ? "" : "*");
  if (run.failures + run.restarts > 0) text += fmt::format(" ({}, {}, {})", run.failures, run.restarts, run.lost);
  return run.finished ? text : text + " ended";
}

/// Seconds of a rival and of ours; a rival that ended early has lost.
struct Pair {
  double theirs = 0, ours = 0;
  bool finished = true;
  double ratio() const { return finished ? theirs / ours : 1e9; }
};

/// One round of a scenario, at the default target and at one near what rivals fill.
using Pairs = std::map<std::string, Pair>;
Pairs round(TinyRanks& ranks, Drawn& drawn, const Scenario& scenario) {
  const Run ours = run_ours(ranks, drawn, scenario, ranks.config.memory.target);
  const Run fuller = run_ours(ranks, drawn, scenario, kFull);
  std::string row = fmt::format("| {} | {}, at last {} | {}, at last {} | {:.1f} s |", scenario.name,
                                cell(ours, scenario), memory::to_string(ours.last), cell(fuller, scenario),
                                memory::to_string(fuller.last), ours.start_seconds);
  Pairs pairs;
  double their_start = 0, halving = 0;
  for (const Rival rival : bench::kRivals) {
    const Run run = run_rival(rival, ranks, drawn, scenario);
    const std::string name = bench::name_of(rival);
    const auto beside = [&](const Run& own, bool start_counted) {
      const double extra = start_counted ? std::max(0.0, own.start_seconds - run.start_seconds) : 0;
      return Pair{run.seconds, own.seconds + extra, run.finished};
    };
    pairs[name] = beside(ours, false);
    pairs[name + ", start counted"] = beside(ours, true);
    pairs[name + ", target 0.99"] = beside(fuller, false);
    pairs[name + ", target 0.99, start counted"] = beside(fuller, true);
    row += fmt::format(" {} |", cell(run, scenario));
    their_start = run.start_seconds;
    if (rival == Rival::kHalving) halving = run.seconds;
  }
  pairs[kNoise] = {run_rival(Rival::kHalving, ranks, drawn, scenario).seconds, halving};
  if (ranks.first()) fmt::print("{} {:.1f} s |\n", row, their_start);
  std::fflush(stdout);
  return pairs;
}

/// Of all scenarios: by rival the median ratio of each scenario, and all seconds.
struct Results {
  std::map<std::string, std::vector<double>> ratios;
  std::map<std::string, Pair> sums;
};

void add(Results& results, const std::map<std::string, std::vector<Pair>>& rounds) {
  for (const auto& [name, pairs] : rounds) {
    std::vector<double> ratios;
    for (const Pair& pair : pairs) {
      ratios.push_back(pair.ratio());
      if (!pair.finished) continue;
      results.sums[name].theirs += pair.theirs;
      results.sums[name].ours += pair.ours;
    }
    results.ratios[name].push_back(median(ratios));
  }
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
}

void print_head() {
  fmt::print("| scenario | predictive | predictive, target 0.99 | its start |");
  for (const Rival rival : bench::kRivals) fmt::print(" {} |", bench::name_of(rival));
  fmt::print(" a rival's start |\n|---|---|---|---|---|---|---|---|---|\n");
}

void run(int rounds, std::size_t count) {
  TinyRanks ranks("rivals-bench");
  if (ranks.communicator->world() != kRanks)
    fail(ExitCode::kUsage, "{} ranks; run it as mpirun -n {} build/rivals_bench", ranks.communicator->world(), kRanks);
  ranks.config.memory.policy = "predictive";
  ranks.config.memory.adjustment_frequency = 4;
  ranks.config.train.max_steps = 5 * kPhase;
  Drawn drawn(ranks);
  std::vector<Scenario> all = scenarios(Session(ranks.config, *ranks.communicator, *ranks.source));
  all.resize(std::min(all.size(), count));
  run_ours(ranks, drawn, all.front(), ranks.config.memory.target);  // warms up
  if (ranks.first()) print_head();
  Results results;
  for (const Scenario& scenario : all) {
    std::map<std::string, std::vector<Pair>> seen;
    for (int i = 0; i < rounds; ++i) {
      for (const auto& [name, pair] : round(ranks, drawn, scenario)) seen[name].push_back(pair);
    }
    add(results, seen);
  }
  if (ranks.first()) print_figures(results);
}

}  // namespace
}  // namespace plimsoll::train

int main(int argc, char** argv) {
  return plimsoll::train::tiny_bench_program([&] {
    const int rounds = argc > 1 ? std::atoi(argv[1]) : 3, count = argc > 2 ? std::atoi(argv[2]) : 1000;
    if (rounds < 1 || count < 1)
      plimsoll::fail(plimsoll::ExitCode::kUsage, "usage: rivals_bench [rounds >= 1] [scenarios >= 1]");
    plimsoll::train::run(rounds, static_cast<std::size_t>(count));
  });
}
