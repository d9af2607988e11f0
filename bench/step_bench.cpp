// What the transaction costs: staging, finite check and commit of every micro-batch, as a share of a step, on the tiny
// and the wide model. Beside it what a trainer without transactions does with the same gradients, .grad += gradient,
// which is in the step anyhow: share_of_step is the difference, share_with_accumulation the whole. One rank; the ratios
// are taken within each iteration, so a busy machine troubles all sides alike.

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

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// As many gradients as there are parameters, made as backward makes them, and a place for their plain sums. Between two
// micro-batches a model's weights and activations go through the caches; here other memory does.
class Accumulations {
 public:
  explicit Accumulations(train::Session& session) : buffers_(*session.buffers) {
    const at::NoGradGuard no_grad;
    for (const auto& parameter : session.model->parameters()) {
      fresh_.push_back(at::rand_like(parameter.tensor));
      sums_.push_back(at::zeros_like(parameter.tensor));
    }
  }

  // Seconds of the transaction's part in a step of so many micro-batches.
  double transaction(int micro_batches) {
    const auto start = Clock::now();
    buffers_.start_step();
    double seconds = seconds_since(start);
    for (int i = 0; i < micro_batches; ++i) {
      seconds += cold([&] {
        for (std::size_t slot = 0; slot < fresh_.size(); ++slot) buffers_.stage(slot, fresh_[slot]);
        buffers_.check_sinks();
        benchmark::DoNotOptimize(buffers_.staging_finite());
        buffers_.commit_staging();
      });
    }
    return seconds;
  }

  // Seconds of .grad += gradient for all parameters, so many times.
  double plain(int micro_batches) {
    const at::NoGradGuard no_grad;
    double seconds = 0;
    for (int i = 0; i < micro_batches; ++i) {
      seconds += cold([&] {
        for (std::size_t slot = 0; slot < fresh_.size(); ++slot) sums_[slot].add_(fresh_[slot]);
      });
    }
    return seconds;
  }

 private:
  template <class Work>
  double cold(const Work& work) {
    for (auto& value : other_) value += 1.0F;
    benchmark::DoNotOptimize(other_.data());
    const auto start = Clock::now();
    work();
    return seconds_since(start);
  }

  train::FlatBuffers& buffers_;
  std::vector<at::Tensor> fresh_, sums_;
  std::vector<float> other_ = std::vector<float>(std::size_t{1} << 24);
};

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
  Accumulations accumulations(session);
  double step_seconds = 0, with = 0, plain = 0;
  std::int64_t updates = 0;
  for (auto _ : state) {
    train::StepInput input;
    input.samples = samples;
    input.plan = session.plan;
    input.updates = updates++;
    const auto start = Clock::now();
    const int micro_batches = session.step->run(input).guardian.micro_batches;
    step_seconds += seconds_since(start);
    with += accumulations.transaction(micro_batches);
    plain += accumulations.plain(micro_batches);
  }
  state.counters["share_of_step"] = (with - plain) / step_seconds;
  state.counters["share_with_accumulation"] = with / step_seconds;
}

}  // namespace

BENCHMARK_CAPTURE(transaction_share, tiny_micro_1, "tiny", 1)->Unit(benchmark::kMillisecond)->MinTime(4.0);
BENCHMARK_CAPTURE(transaction_share, tiny_micro_8, "tiny", 8)->Unit(benchmark::kMillisecond)->MinTime(4.0);
BENCHMARK_CAPTURE(transaction_share, wide_micro_1, "wide", 1)->Unit(benchmark::kMillisecond)->MinTime(4.0);
BENCHMARK_CAPTURE(transaction_share, wide_micro_8, "wide", 8)->Unit(benchmark::kMillisecond)->MinTime(4.0);

BENCHMARK_MAIN();
