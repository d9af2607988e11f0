// What knowing and losing memory costs: a dry run of a full-size Qwen2.5-VL-3B step, and a failed micro-batch.

#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <vector>

#include "memory/cpu_allocator.h"
#include "model/init_model.h"
#include "train/dry_step.h"
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

// One stage 2 micro-batch of two samples, each with two pictures of 448 x 448 and 600 tokens; bf16, LoRA rank 8.
void full_size_dry_run(benchmark::State& state) {
  train::Config config;
  config.model.path = folder_of("3b");
  std::filesystem::create_directories(config.model.path);
  std::ofstream(config.model.path + "/config.json")
      << model::qwen_config_json(model::init_config("3b"), "bfloat16").dump();
  data::SampleDims dims;
  dims.state = dims.action = 7;
  const train::DryStep dry(train::vla_options(config, dims), 0, 32, {}, 1);
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

}  // namespace

BENCHMARK_MAIN();
