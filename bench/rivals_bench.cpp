// Our predictive policy beside what other trainers do (bench/rival_policy.h), in real steps of the tiny model under
// real budgets. Run it
//   build/rivals_bench [rounds, 3]
// One rank, one thread, a share of 8. In each round every trainer runs the scenario once, so that whatever else the
// machine does hits all alike; a ratio is the median over rounds. Counted are all seconds from the first step on:
// failed attempts, replays, trials, restarts (the model read anew), work done twice. What ours takes before the first
// step to time micro-batches and to make dry runs is printed beside: once a run, and not once a step.
// Prints a Markdown table and lines FIGURE name = value unit.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "bench/rival_policy.h"
#include "bench/tiny_session.h"
#include "core/error.h"
#include "data/sample_stream.h"
#include "memory/guardian.h"
#include "model/init_model.h"
#include "train/options.h"
#include "train/source.h"

namespace plimsoll::train {
namespace {

using bench::Rival;

constexpr std::int64_t kPhase = 24;  // steps under one budget
constexpr std::int64_t kBatch = 8;
constexpr std::int64_t kCheckpointEvery = 12;  // steps; writing one is free for all
constexpr double kFull = 0.99;                 // the target beside rivals that fill a card to its last byte

struct Scenario {
  std::string name;
  std::vector<std::int64_t> budgets;  // bytes, phase by phase
  std::int64_t samples() const { return kBatch * kPhase * static_cast<std::int64_t>(budgets.size()); }
};

struct Run {
  double seconds = 0;
  double start_seconds = 0;  // ours only
  memory::Plan last;         // likewise
  int failures = 0, restarts = 0;
  std::int64_t lost = 0;
  bool kept = true, finished = true;
};

/// All samples of the source in memory, in the order in which a run draws them: nobody waits for a disk here.
class Drawn {
 public:
  Drawn(const data::SampleSource& source, const Config& config)
      : stream_(source.training(), static_cast<std::uint64_t>(config.run.seed)) {
    for (std::int64_t i = 0; i < source.size(); ++i) samples_.push_back(source.load(i));
  }
  std::vector<model::StreamSample> at(std::int64_t position, std::int64_t count) {
    std::vector<model::StreamSample> drawn;
    for (std::int64_t i = 0; i < count; ++i) {
      const auto place = static_cast<std::uint64_t>(position + i);
      drawn.push_back({&samples_[static_cast<std::size_t>(stream_.at(place))], place});
    }
    return drawn;
  }

 private:
  data::SampleStream stream_;
  std::vector<Sample> samples_;
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

Run run_ours(Config config, const data::SampleSource& source, Drawn& drawn, const Scenario& scenario, double target) {
  Run run;
  config.memory.policy = "predictive";
  config.memory.target = target;
  config.memory.margin = std::min(config.memory.margin, 1.0 - target);
  config.memory.budget = std::to_string(scenario.budgets.front());
  const auto communicator = ddp::make_solo();
  std::unique_ptr<Session> session;
  run.start_seconds = seconds_of([&] { session = std::make_unique<Session>(config, *communicator, source); });
  session->controller->start(0, session->plan, session->budgets);
  run.seconds = seconds_of([&] {
    for (std::int64_t step = 1; step <= scenario.samples() / kBatch; ++step) {
      session->meter.set_budget(scenario.budgets[static_cast<std::size_t>((step - 1) / kPhase)]);
      run.failures += our_step(*session, step, drawn.at((step - 1) * kBatch, kBatch));
    }
  });
  run.last = session->plan;
  return run;
}

/// A loop that knows nothing of memory, over the same model and samples, with the same kernels and optimiser.
class PlainTrainer : bench::RivalPolicy {
 public:
  PlainTrainer(Rival rival, Session& session, Drawn& drawn, const Scenario& scenario)
      : RivalPolicy(rival, kBatch, 1, session.model->language_blocks()),
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
    });
    run_.kept = effective_ == kBatch;
    run_.finished = finished_;
    return run_;
  }

 private:
  void set_budget() {
    furthest_ = std::max(furthest_, position_);
    const auto phase = static_cast<std::size_t>(furthest_ / (kBatch * kPhase));
    session_.meter.set_budget(scenario_.budgets[std::min(phase, scenario_.budgets.size() - 1)]);
  }

  void step() {
    set_budget();
    session_.buffers->start_step();
    if (!accumulate(drawn_.at(position_, effective_))) {
      run_.lost += effective_;
      ++run_.failures;
      return recover();
    }
    apply_gradients(*session_.buffers, step_options(session_.config), 1.0, updates_++);
    position_ += effective_;
    if (++since_checkpoint_ == kCheckpointEvery) save();
  }

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
    if (!failed) return true;
    memory::drain();
    session_.buffers->discard_staging();
    return false;
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
      if (!accumulate(drawn_.at(position_ + i * plan_.micro_batch, plan_.micro_batch))) return false;
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

Run run_rival(Rival rival, Config config, const data::SampleSource& source, Drawn& drawn, const Scenario& scenario) {
  config.memory.policy = "reactive";
  config.memory.budget = std::to_string(scenario.budgets.front());
  const auto communicator = ddp::make_solo();
  Session session(config, *communicator, source);
  return PlainTrainer(rival, session, drawn, scenario).go();
}

/// Bytes of a plan of the table with nothing offloaded and no other tower recomputed, over the target.
std::int64_t budget_for(const Session& session, int micro_batch, int recompute) {
  for (const auto& candidate : session.candidates.all()) {
    const memory::Plan& plan = candidate.plan;
    if (plan.micro_batch == micro_batch && plan.recompute_blocks == recompute && plan.recompute_expert == 0 &&
        !plan.offload)
      return static_cast<std::int64_t>(static_cast<double>(candidate.bytes) * 1.02 / session.config.memory.target);
  }
  fail(ExitCode::kUsage, "no candidate of micro-batch {} that recomputes {} blocks", micro_batch, recompute);
}

std::vector<Scenario> scenarios(const Session& session) {
  const int all = session.model->language_blocks();
  const auto fits = [&](int micro_batch, int recompute = 0) { return budget_for(session, micro_batch, recompute); };
  return {
      {"everything fits", {2 * fits(8)}},        {"half the share fits", {fits(4), fits(4)}},
      {"a sample fits", {fits(1), fits(1)}},     {"a sample fits recomputed", {fits(1, all), fits(1, all)}},
      {"a neighbour comes", {fits(8), fits(3)}}, {"a neighbour comes and goes", {fits(8), fits(2), fits(8)}},
      {"the card is freed", {fits(2), fits(8)}},
  };
}

std::string cell(const Run& run, const Scenario& scenario) {
  std::string text =
      fmt::format("{:.1f}{}", static_cast<double>(scenario.samples()) / run.seconds, run.kept ? "" : "*");
  if (run.failures + run.restarts > 0) text += fmt::format(" ({}, {}, {})", run.failures, run.restarts, run.lost);
  return run.finished ? text : text + " ended";
}

/// One round of a scenario: seconds of each rival over ours, at the default target and at one near what rivals fill; a
/// rival that ended early has lost.
using Ratios = std::map<std::string, double>;
Ratios round(const Config& config, const data::SampleSource& source, Drawn& drawn, const Scenario& scenario) {
  const Run ours = run_ours(config, source, drawn, scenario, config.memory.target);
  const Run fuller = run_ours(config, source, drawn, scenario, kFull);
  Ratios ratios;
  fmt::print("| {} | {}, at last {} | {}, at last {} | {:.1f} s |", scenario.name, cell(ours, scenario),
             memory::to_string(ours.last), cell(fuller, scenario), memory::to_string(fuller.last), ours.start_seconds);
  for (const Rival rival : bench::kRivals) {
    const Run run = run_rival(rival, config, source, drawn, scenario);
    const std::string name = bench::name_of(rival);
    ratios[name] = run.finished ? run.seconds / ours.seconds : 1e9;
    ratios[name + ", target 0.99"] = run.finished ? run.seconds / fuller.seconds : 1e9;
    fmt::print(" {} |", cell(run, scenario));
  }
  fmt::print("\n");
  std::fflush(stdout);
  return ratios;
}

using AllRatios = std::map<std::string, std::vector<double>>;
void print_figures(const AllRatios& over_all) {
  for (const auto& [name, ratios] : over_all) {
    fmt::print("FIGURE real.worst ratio to {} = {:.3f} x\n", name, *std::min_element(ratios.begin(), ratios.end()));
    fmt::print("FIGURE real.median ratio to {} = {:.3f} x\n", name, median(ratios));
  }
}

void run(const std::filesystem::path& folder, int rounds) {
  Config config = tiny_bench_config(folder);
  config.memory.calibration = "off";
  config.memory.adjustment_frequency = 4;
  config.train.max_steps = 3 * kPhase;
  model::write_random_checkpoint(model::init_config("tiny"), {config.model.path, 1, false});
  const auto source = make_source(config);
  Drawn drawn(*source, config);
  std::vector<Scenario> all;
  {
    const auto communicator = ddp::make_solo();
    config.memory.policy = "predictive";
    all = scenarios(Session(config, *communicator, *source));
    run_ours(config, *source, drawn, all.front(), config.memory.target);  // warms up
  }
  fmt::print("| scenario | predictive | predictive, target 0.99 | its start |");
  for (const Rival rival : bench::kRivals) fmt::print(" {} |", bench::name_of(rival));
  fmt::print("\n|---|---|---|---|---|---|---|---|\n");
  AllRatios over_all;
  for (const Scenario& scenario : all) {
    AllRatios seen;
    for (int i = 0; i < rounds; ++i) {
      for (const auto& [name, ratio] : round(config, *source, drawn, scenario)) seen[name].push_back(ratio);
    }
    for (const auto& [name, ratios] : seen) {
      over_all[name].push_back(median(ratios));
      fmt::print("FIGURE real.{}, samples/s over {} = {:.3f} x\n", scenario.name, name, median(ratios));
    }
  }
  print_figures(over_all);
}

}  // namespace
}  // namespace plimsoll::train

int main(int argc, char** argv) {
  return plimsoll::train::tiny_bench_program([&] {
    const int rounds = argc > 1 ? std::atoi(argv[1]) : 3;
    if (rounds < 1) plimsoll::fail(plimsoll::ExitCode::kUsage, "usage: rivals_bench [rounds >= 1]");
    const auto folder = std::filesystem::temp_directory_path() / fmt::format("plimsoll-rivals-bench-{}", ::getpid());
    plimsoll::train::run(folder, rounds);
    std::filesystem::remove_all(folder);
  });
}
