// What the transaction costs: staging, finite check and commit of every micro-batch, as a share of a step, on the tiny
// and the wide model. Beside it what a trainer without transactions does with the same gradients, .grad += gradient,
// which is in the step anyhow: share_of_step is the difference, share_with_accumulation the whole. One rank; the ratios
// are taken within each iteration, so a busy machine troubles all sides alike.
//
// In a run a model's weights and activations go through the caches between two micro-batches; here other memory does.
// Both sides are timed with that sweep behind them, since a line that was written costs its way back to memory then,
// if it has not gone there at once.

#include <benchmark/benchmark.h>

#include <chrono>
#include <filesystem>

#include "memory/cpu_allocator.h"
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

struct Seconds {
  double work = 0;    ///< alone
  double behind = 0;  ///< with the sweep behind it
};

// As many gradients as there are parameters, made as backward makes them, and a place for their plain sums.
class Accumulations {
 public:
  explicit Accumulations(train::Session& session) : buffers_(*session.buffers) {
    const at::NoGradGuard no_grad;
    for (const auto& parameter : session.model->parameters()) {
      fresh_.push_back(at::rand_like(parameter.tensor));
      sums_.push_back(at::zeros_like(parameter.tensor));
    }
  }

  // The transaction's part in a step of so many micro-batches.
  Seconds transaction(int micro_batches) {
    buffers_.start_step();
    return timed(micro_batches, [&] {
      for (std::size_t slot = 0; slot < fresh_.size(); ++slot) buffers_.stage(slot, fresh_[slot]);
      buffers_.check_sinks();
      benchmark::DoNotOptimize(buffers_.staging_finite());
      buffers_.commit_staging();
    });
  }

  // .grad += gradient for all parameters, so many times.
  Seconds plain(int micro_batches) {
    const at::NoGradGuard no_grad;
    return timed(micro_batches, [&] {
      for (std::size_t slot = 0; slot < fresh_.size(); ++slot) sums_[slot].add_(fresh_[slot]);
    });
  }

 private:
  template <class Work>
  Seconds timed(int times, const Work& work) {
    Seconds seconds;
    sweep();
    for (int i = 0; i < times; ++i) {
      const auto start = Clock::now();
      work();
      seconds.work += seconds_since(start);
      sweep();
      seconds.behind += seconds_since(start);
    }
    return seconds;
  }
  void sweep() {
    for (auto& value : other_) value += 1.0F;
    benchmark::DoNotOptimize(other_.data());
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
  double step_seconds = 0, beyond = 0, whole = 0, accumulation = 0;
  std::int64_t updates = 0;
  for (auto _ : state) {
    train::StepInput input;
    input.samples = samples;
    input.plan = session.plan;
    input.updates = updates++;
    const auto start = Clock::now();
    const int micro_batches = session.step->run(input).guardian.micro_batches;
    step_seconds += seconds_since(start);
    // Whichever comes first has the step's memory to drive out of the caches: they take turns.
    Seconds transaction, plain;
    if (updates % 2 == 0) plain = accumulations.plain(micro_batches);
    transaction = accumulations.transaction(micro_batches);
    if (updates % 2 != 0) plain = accumulations.plain(micro_batches);
    beyond += transaction.behind - plain.behind;
    whole += transaction.work;
    accumulation += plain.work;
  }
  state.counters["share_of_step"] = beyond / step_seconds;
  state.counters["share_with_accumulation"] = whole / step_seconds;
  state.counters["accumulation_alone"] = accumulation / step_seconds;
}

}  // namespace

BENCHMARK_CAPTURE(transaction_share, tiny_micro_1, "tiny", 1)->Unit(benchmark::kMillisecond)->MinTime(4.0);
BENCHMARK_CAPTURE(transaction_share, tiny_micro_8, "tiny", 8)->Unit(benchmark::kMillisecond)->MinTime(4.0);
BENCHMARK_CAPTURE(transaction_share, wide_micro_1, "wide", 1)->Unit(benchmark::kMillisecond)->MinTime(4.0);
BENCHMARK_CAPTURE(transaction_share, wide_micro_8, "wide", 8)->Unit(benchmark::kMillisecond)->MinTime(4.0);

BENCHMARK_MAIN();
