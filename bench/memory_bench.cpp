// What knowing and losing memory costs: a dry run of a full-size Qwen2.5-VL-3B step, a failed micro-batch, and what it
// costs not to dry-run every plan.

#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

#include "core/bytes.h"
#include "memory/cpu_allocator.h"
#include "memory/planning/policy.h"
#include "model/init_model.h"
#include "train/device.h"
#include "train/dry_step.h"
#include "train/forecast.h"
#include "train/options.h"
#include "train/session.h"
#include "train/source.h"

namespace {

using namespace plimsoll;
using Clock = std::chrono::steady_clock;

std::string folder_of(const std::string& name) {
  const auto dir = std::filesystem::temp_directory_path() / ("plimsoll-memory-bench-" + name);
  std::filesystem::remove_all(dir);
  return dir.string();
}

/// Qwen2.5-VL-3B in bf16, stage 2, LoRA rank 8, with a sensor of force and torque as in configs/stage2.toml.
train::Config full_size_config(const std::string& name) {
  train::Config config;
  config.model.path = folder_of(name);
  std::filesystem::create_directories(config.model.path);
  std::ofstream(config.model.path + "/config.json")
      << model::qwen_config_json(model::init_config("3b"), "bfloat16").dump();
  config.sensor.window = 16;
  return config;
}

data::SampleDims dims_of(const train::Config& config) { return {7, 7, config.sensor.window, 6}; }

// One micro-batch of two samples, each with two pictures of 448 x 448 and 600 tokens.
void full_size_dry_run(benchmark::State& state) {
  const train::Config config = full_size_config("3b");
  const train::DryStep dry(train::vla_options(config, dims_of(config)), 0, 32, {}, 1);
  memory::Plan plan;
  plan.recompute_blocks = static_cast<int>(state.range(0));
  std::int64_t bytes = 0;
  for (auto _ : state) benchmark::DoNotOptimize(bytes = dry.activation_bytes({2, 1200, 4096}, plan));
  state.counters["peak_GB"] = static_cast<double>(bytes + dry.static_bytes()) / 1e9;
}
BENCHMARK(full_size_dry_run)->Arg(0)->Arg(36)->Unit(benchmark::kMillisecond);

double seconds_of(const auto& action) {
  const auto start = Clock::now();
  action();
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// A micro-batch of eight that fails at a tenth, a third, half, two thirds or nine tenths of its allocations, against a
// clean step: what it takes beyond the failed attempt itself and the replay in halves, as a share of the clean step.
// All four are timed in every iteration, and the median of the shares counts.
void failed_micro_batch(benchmark::State& state) {
  memory::CpuAllocator::install();
  at::set_num_threads(1);
  train::Config config;
  config.model = {folder_of("tiny"), "fp32", ""};
  model::write_random_checkpoint(model::init_config("tiny"), {config.model.path, 1, false});
  config.run.dir = config.model.path + "-run";
  config.expert.width = 128;
  config.expert.depth = 4;
  config.expert.heads = 4;
  config.data.synthetic_samples = 64;
  config.batch.effective = 8;
  config.memory.budget = "12GiB";
  config.memory.policy = "reactive";
  const auto source = train::make_source(config);
  const auto communicator = ddp::make_solo();
  train::Session session(config, *communicator, *source);
  std::vector<std::shared_ptr<const Sample>> hold;
  const auto samples = session.load_share(1, hold);
  const auto rules = session.model->packing_rules(0, false);
  train::StepInput input;
  input.samples = samples;
  const auto step = [&](int micro_batch) {
    input.plan.micro_batch = micro_batch;
    ++input.updates;
    return session.step->run(input);
  };
  step(8);
  const std::int64_t before = session.meter.allocations();
  step(8);
  const std::int64_t place = (session.meter.allocations() - before) * state.range(0) / 100;
  std::vector<double> shares;
  for (auto _ : state) {
    const double clean = seconds_of([&] { step(8); });
    const double halves = seconds_of([&] { step(4); });
    memory::CpuAllocator::install().fail_at(place);
    const double attempt = seconds_of([&] {
      try {
        train::forward_backward(*session.model, model::pack(samples, rules, at::kCPU), {}, 8);
      } catch (const c10::OutOfMemoryError&) {
        // As it was told to.
      }
    });
    memory::drain();
    session.buffers->discard_staging();
    memory::CpuAllocator::install().fail_at(place);
    const double failed = seconds_of([&] {
      if (step(8).guardian.retries != 1) state.SkipWithError("the step did not fail once");
    });
    shares.push_back((failed - attempt - halves) / clean);
  }
  const auto middle = shares.begin() + static_cast<std::ptrdiff_t>(shares.size() / 2);
  std::nth_element(shares.begin(), middle, shares.end());
  state.counters["share_of_step_lost"] = *middle;
}
BENCHMARK(failed_micro_batch)
    ->Arg(10)
    ->Arg(33)
    ->Arg(50)
    ->Arg(67)
    ->Arg(90)
    ->Unit(benchmark::kMillisecond)
    ->Iterations(25);

/// The fastest plan under some budget.
struct Fastest {
  memory::Plan plan;
  std::int64_t microseconds = 0;
};

std::optional<Fastest> fastest_candidate(train::Forecast& forecast, std::int64_t allowed) {
  for (const auto& candidate : forecast.candidates().all())  // fastest first
    if (candidate.bytes <= allowed) return Fastest{candidate.plan, candidate.microseconds};
  return std::nullopt;
}

/// Every number of language blocks, each with expert and offload as they may be, beside what the table has.
std::vector<memory::Plan> every_way(const model::VlaModel& model) {
  memory::PlanSpace space;  // of one micro-batch
  space.language.clear();
  for (int k = 0; k <= model.language_blocks(); ++k) space.language.push_back(k);
  space.expert = {0, model.expert_blocks()};
  space.offload = true;
  return memory::plans_of(space);
}

/// The fastest of all these ways and micro-batches, from the table's best on. Memory is monotone in the micro-batch, so
/// that of a way only those are dry-run that would be faster, up to the first that does not fit.
Fastest fastest_of_all(train::Forecast& forecast, const Fastest& of_table, std::int64_t allowed) {
  const memory::CostModel costs = train::analytic_costs(forecast.dry().model());
  const auto sizes = memory::useful_micro_batches(forecast.share(), 1, 64);
  Fastest best = of_table;
  for (memory::Plan plan : every_way(forecast.dry().model())) {
    for (const int samples : sizes) {
      plan.micro_batch = samples;
      const std::int64_t time = memory::share_microseconds(costs, plan, forecast.share());
      if (time >= best.microseconds) continue;
      if (forecast.live(plan) > allowed) break;
      best = {plan, time};
    }
  }
  return best;
}

constexpr double kLossBound = 0.02;

void print_loss(train::Forecast& forecast, std::int64_t card, bool bounded) {
  const train::Config defaults;
  const std::int64_t allowed = (card - 1_GiB) / 10000 * train::target_of(defaults.memory);
  const auto of_table = fastest_candidate(forecast, allowed);
  if (!of_table) return;
  const Fastest best = fastest_of_all(forecast, *of_table, allowed);
  const double lost = 1.0 - static_cast<double>(best.microseconds) / static_cast<double>(of_table->microseconds);
  fmt::print("{}: by quarters {}; by every number of blocks {}\n", format_bytes(card),
             memory::to_string(of_table->plan), memory::to_string(best.plan));
  const std::string verdict = bounded
                                  ? fmt::format("(bound {}: {})", kLossBound, lost <= kLossBound ? "met" : "NOT met")
                                  : "(where no sample fits unless recomputed)";
  fmt::print("FIGURE predicted throughput that quarters of recomputed blocks lose, 3b, {} = {:.4f} {}\n",
             format_bytes(card), lost, verdict);
}

// The planner's table has the language blocks recomputed in quarters (train/candidates.h). What does that lose, by the
// analytic costs of `plimsoll plan` and on its cards? Samples as above. Comes last: from here on dry runs stand for a
// GPU.
void quarters_of_blocks(benchmark::State& state) {
  train::let_dry_runs_stand_for_a_gpu();
  const train::Config config = full_size_config("quarters");
  for (auto _ : state) {
    train::Forecast forecast(config, {dims_of(config), {{600, 2048}}}, 1);
    for (const std::int64_t card : {24_GiB, 40_GiB, 80_GiB}) print_loss(forecast, card, true);
    print_loss(forecast, 11_GiB, false);
    std::fflush(stdout);
    state.counters["dry_runs"] = static_cast<double>(forecast.dry_runs());
  }
}
BENCHMARK(quarters_of_blocks)->Unit(benchmark::kMillisecond)->Iterations(1);

}  // namespace

BENCHMARK_MAIN();
