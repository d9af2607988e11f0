// What the transaction costs: clearing the reduction once, and staging, finite check and commit of every micro-batch,
// as a share of a step, on the tiny and the wide model. One rank; the ratio is taken within each iteration, so a busy
// machine troubles both sides alike.

#include <benchmark/benchmark.h>

#include <chrono>
#include <filesystem>

#include "model/init_model.h"
#include "train/session.h"
#include "train/source.h"

namespace {

using namespace plimsoll;
using Clock = std::chrono::steady_clock;

train::Config config_for(const std::string& size) {
  const auto dir = std::filesystem::temp_directory_path() / ("plimsoll-step-bench-" + size);
  std::filesystem::remove_all(dir);
  model::write_random_checkpoint(model::init_config(size), {dir.string(), 1, false});
  train::Config config;
  config.model = {dir.string(), "fp32", ""};
  config.run.dir = dir.string() + "-run";
  config.expert.width = 128;
  config.expert.depth = 4;
  config.expert.heads = 4;
  config.expert.chunk = 8;
  config.data.synthetic_samples = 64;
  config.sensor.window = 8;
  config.batch.effective = 8;
  config.memory.budget = "12GiB";
  config.memory.recompute = "none";
  config.memory.policy = "reactive";
  return config;
}

void transaction_share(benchmark::State& state, const std::string& size, int micro_batch) {
  memory::CpuAllocator::install();
  at::set_num_threads(2);
  const auto config = config_for(size);
  const auto source = train::make_source(config);
  const auto communicator = ddp::make_solo();
  train::Session session(config, *communicator, *source);
  session.plan.micro_batch = micro_batch;
  std::vector<std::shared_ptr<const Sample>> hold;
  const auto samples = session.load_share(1, hold);
  double step_seconds = 0, transaction_seconds = 0;
  std::int64_t updates = 0;
  for (auto _ : state) {
    train::StepInput input;
    input.samples = samples;
    input.plan = session.plan;
    input.updates = updates++;
    const auto start = Clock::now();
    const auto result = session.step->run(input);
    const auto middle = Clock::now();
    session.buffers->clear_reduction();
    for (int i = 0; i < result.guardian.micro_batches; ++i) {
      session.buffers->check_views();
      benchmark::DoNotOptimize(session.buffers->staging_finite());
      session.buffers->commit_staging();
    }
    step_seconds += std::chrono::duration<double>(middle - start).count();
    transaction_seconds += std::chrono::duration<double>(Clock::now() - middle).count();
  }
  state.counters["share_of_step"] = transaction_seconds / step_seconds;
}

}  // namespace

BENCHMARK_CAPTURE(transaction_share, tiny_micro_1, "tiny", 1)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(transaction_share, tiny_micro_8, "tiny", 8)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(transaction_share, wide_micro_1, "wide", 1)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(transaction_share, wide_micro_8, "wide", 8)->Unit(benchmark::kMillisecond);

BENCHMARK_MAIN();
