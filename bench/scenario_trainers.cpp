#include "bench/scenario_trainers.h"

#include <algorithm>
#include <utility>

#include "core/error.h"
#include "memory/guardian.h"
#include "train/options.h"

namespace plimsoll::train {
namespace {

using bench::Rival;

constexpr std::int64_t kCheckpointEvery = kPhase / 2;  // steps; writing one is free for all

double seconds_of(const auto& action) { return time_ms(action) / 1000; }

/// All ranks alike: what happened to any of them.
std::int64_t over_ranks(ddp::Communicator& communicator, std::int64_t mine) {
  const std::vector<std::int64_t> number = {mine};
  std::int64_t sum = 0;
  for (const auto& theirs : ddp::share_numbers(communicator, number)) sum += theirs.at(0);
  return sum;
}

Config config_of(const TinyRanks& ranks, const Scenario& scenario, const char* policy) {
  Config config = ranks.config;
  config.train.max_steps = samples_of(scenario) / kBatch;
  config.memory.policy = policy;
  std::vector<Setting> budgets;
  for (const std::int64_t budget : scenario.budgets.front()) budgets.emplace_back(budget);
  config.memory.budget = Setting(budgets);
  return config;
}

/// The program's own step, with its replays and what its policy makes of it.
class OurTrainer final : public Trainer {
 public:
  OurTrainer(TinyRanks& ranks, Drawn& drawn, const Scenario& scenario)
      : Trainer(ranks, scenario, "predictive"), drawn_(drawn) {}

  Run result() const override {
    Run run = run_;
    run.last = memory::to_string(session_->plan);
    return run;
  }

 private:
  void begin() override {
    session_->controller->start(0, session_->plan, session_->budgets);
    last_ = samples_of(scenario_) / kBatch;
  }

  bool step() override {
    const auto& phase = scenario_.budgets[static_cast<std::size_t>((step_ - 1) / kPhase)];
    session_->meter.set_budget(phase.at(static_cast<std::size_t>(session_->communicator.rank())));
    failures_ += replayed(drawn_.share_of((step_ - 1) * kBatch, kBatch));
    if (step_ == last_) run_.failures = static_cast<int>(over_ranks(session_->communicator, failures_));
    return ++step_ <= last_;
  }

  std::int64_t position() const override { return (step_ - 1) * kBatch; }
  memory::Plan plan_now() const override { return session_->plan; }

  /// Returns this rank's failures.
  int replayed(std::span<const model::StreamSample> samples) {
    Session& s = *session_;
    int failures = 0;
    for (bool replay = true; replay;) {
      StepInput input;
      input.step = step_;
      input.updates = step_ - 1;
      input.samples = samples;
      input.plan = s.plan;
      input.fill = s.fill(s.plan, step_);
      const StepResult result = s.step->run(input);
      s.learn(result.timed);
      if (result.fatal) throw *result.fatal;
      failures += static_cast<int>(result.guardian.retries) + (result.guardian.failed ? 1 : 0);
      replay = result.verdict.action == ddp::Action::kReplay;
      if (const auto decision = s.controller->observe(step_, result.reports, result.verdict, s.plan))
        s.plan = decision->plan;
    }
    return failures;
  }

  Drawn& drawn_;
  std::int64_t step_ = 1, last_ = 0;
  int failures_ = 0;  ///< of this rank
};

/// A loop that knows nothing of memory, over the same model and samples, with the same kernels and optimiser.
class PlainTrainer final : public Trainer, bench::RivalPolicy {
 public:
  PlainTrainer(TinyRanks& ranks, Drawn& drawn, const Scenario& scenario, Rival rival, int language_blocks)
      : Trainer(ranks, scenario, "reactive"), RivalPolicy(rival, kBatch, kRanks, language_blocks), drawn_(drawn) {}

  Run result() const override {
    Run run = run_;
    run.last = memory::to_string(plan_);
    run.kept = effective_ == kBatch;
    run.finished = finished_;
    return run;
  }

 private:
  void begin() override {
    // What a trainer without a plan does before its first step, and no more.
    session_->meter.set_budget(std::int64_t{1} << 40);
    run_.start_seconds = seconds_of([&] {
      const model::VlaModel model(session_->options, at::Device(at::kCPU));
      const FlatBuffers buffers(model.parameters(), session_->buffers->extra().size());
      session_->communicator.barrier();
    });
    rules_ = session_->model->packing_rules(static_cast<std::uint64_t>(config_.run.seed), false);
    // The first micro-batch of a process is slow. Ours has run some before its first turn, to time them.
    session_->buffers->start_step();
    accumulate(drawn_.share_of(0, kRanks));
    if (rival_ == Rival::kFixedTable) start_with(2);
    save();
    searching_ = rival_ == Rival::kBinarySearch;
  }

  bool step() override {
    set_budget();
    if (std::exchange(searching_, false)) {
      search();
    } else {
      train();
    }
    return position_ < samples_of(scenario_) && finished_;
  }

  std::int64_t position() const override { return position_; }
  memory::Plan plan_now() const override { return plan_; }

  void set_budget() {
    furthest_ = std::max(furthest_, position_);
    const auto phase = static_cast<std::size_t>(furthest_ / (kBatch * kPhase));
    const auto& budgets = scenario_.budgets[std::min(phase, scenario_.budgets.size() - 1)];
    session_->meter.set_budget(budgets.at(static_cast<std::size_t>(session_->communicator.rank())));
  }

  void train() {
    session_->buffers->start_step();
    if (!reduce(accumulate(drawn_.share_of(position_, effective_)))) {
      run_.lost += effective_;
      ++run_.failures;
      return recover();
    }
    apply_gradients(*session_->buffers, step_options(config_), {1.0, updates_});
    ++updates_;
    position_ += effective_;
    to_save_ = ++since_checkpoint_ == kCheckpointEvery;
  }

  void between_turns() override {
    if (std::exchange(to_save_, false)) save();
  }

  /// The gradients' reduction, with one value more: whether a rank ran out of memory. False on all ranks then.
  bool reduce(bool went_well) {
    session_->buffers->extra()[0] = went_well ? 0.0F : 1.0F;
    session_->buffers->reduce([&](std::span<float> all) { session_->communicator.all_reduce_sum(all); });
    return session_->buffers->extra()[0] == 0.0F;
  }

  /// False when this rank ran out of memory.
  bool accumulate(const std::vector<model::StreamSample>& samples) {
    const std::span<const model::StreamSample> all(samples);
    const auto micro_batch = static_cast<std::size_t>(plan_.micro_batch);
    bool failed = false;
    try {
      for (std::size_t begin = 0; begin < all.size(); begin += micro_batch) {
        const auto piece = all.subspan(begin, std::min(micro_batch, all.size() - begin));
        forward_backward(*session_->model, model::pack(piece, rules_, at::kCPU), recompute_of(plan_), effective_);
        session_->buffers->commit_staging();
      }
    } catch (const std::exception&) {
      if (!memory::is_out_of_memory()) throw;
      failed = true;
    }
    if (failed) {
      memory::drain();
      session_->buffers->discard_staging();
    }
    return !failed;
  }

  /// Reads the model again, as a new process does, and goes on from the last checkpoint.
  void restart(Restart) override {
    ++run_.restarts;
    run_.lost += position_ - saved_position_;
    const std::int64_t budget = session_->meter.budget();
    session_->meter.set_budget(std::int64_t{1} << 40);
    { const model::VlaModel again(session_->options, at::Device(at::kCPU)); }
    session_->meter.set_budget(budget);
    std::ranges::copy(saved_weights_, session_->buffers->parameters().begin());
    position_ = saved_position_;
    since_checkpoint_ = 0;
  }

  void save() {
    const auto weights = session_->buffers->parameters();
    saved_weights_.assign(weights.begin(), weights.end());
    saved_position_ = position_;
    since_checkpoint_ = 0;
  }

  bool trial() override {
    session_->buffers->start_step();
    for (std::int64_t i = 0; i < 3; ++i) {
      const std::int64_t count = std::int64_t{plan_.micro_batch} * kRanks;
      const bool went_well = accumulate(drawn_.share_of(position_ + i * count, count));
      if (over_ranks(session_->communicator, went_well ? 0 : 1) > 0) return false;
    }
    return true;
  }

  Drawn& drawn_;
  model::PackingRules rules_;
  std::int64_t position_ = 0, saved_position_ = 0, furthest_ = 0, since_checkpoint_ = 0, updates_ = 0;
  std::vector<float> saved_weights_;
  bool searching_ = false, to_save_ = false;
};

}  // namespace

Trainer::Trainer(TinyRanks& ranks, const Scenario& scenario, const char* policy)
    : ranks_(ranks), scenario_(scenario), config_(config_of(ranks, scenario, policy)) {}

void Trainer::start() {
  ranks_.communicator->barrier();
  run_.start_seconds = seconds_of([&] {
    session_ = std::make_unique<Session>(config_, *ranks_.communicator, *ranks_.source);
    ranks_.communicator->barrier();
  });
  begin();
}

bool Trainer::turn() {
  bool more = false;
  const std::int64_t before = position();
  if (const std::string plan = memory::to_string(plan_now()); plan != noted_) {
    run_.plans += fmt::format("{}: {}; ", before, plan);
    noted_ = plan;
  }
  ++run_.turns;
  ranks_.communicator->barrier();
  const double took = seconds_of([&] {
    more = step();
    ranks_.communicator->barrier();
  });
  run_.seconds += took;
  if (position() > before && before % (kBatch * kPhase) >= kBatch * kPhase / 2) {
    run_.settled_seconds += took;
    run_.settled_samples += position() - before;
  }
  between_turns();
  return more;
}

std::unique_ptr<Trainer> make_trainer(const std::string& name, TinyRanks& ranks, Drawn& drawn,
                                      const Scenario& scenario) {
  if (name == kOurs) return std::make_unique<OurTrainer>(ranks, drawn, scenario);
  for (const Rival rival : bench::kRivals) {
    if (name == bench::name_of(rival) || (name == kAgain && rival == Rival::kHalving))
      return std::make_unique<PlainTrainer>(ranks, drawn, scenario, rival, model::init_config("tiny").text.layers);
  }
  fail(ExitCode::kUsage, "no trainer is called {}", name);
}

}  // namespace plimsoll::train
