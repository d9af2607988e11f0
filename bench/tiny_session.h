#pragma once
// What benchmarks of a whole step on the tiny model share.

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <memory>
#include <vector>

#include "bench/program.h"
#include "train/session.h"

namespace plimsoll::train {

/// A run of the tiny model, to be written to `folder`/model, with a share of 8 for all ranks together; nothing in it
/// limits the memory.
inline Config tiny_bench_config(const std::filesystem::path& folder) {
  Config config;
  config.model = {(folder / "model").string(), "fp32", ""};
  config.run.dir = (folder / "run").string();
  config.expert = {"ddpm", 128, 4, 4, 4, 8, 100, 10};
  config.sensor.window = 8;
  config.data.synthetic_samples = 64;
  config.batch.effective = 8;
  config.memory.budget = "4GiB";
  return config;
}

inline double time_ms(const auto& action) {
  const auto began = std::chrono::steady_clock::now();
  action();
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - began).count();
}

/// Milliseconds of step `number` under `plan`, loading left out; all ranks begin together. Throws what ended the step.
inline double time_step_ms(Session& session, std::int64_t number, const memory::Plan& plan) {
  std::vector<std::shared_ptr<const Sample>> hold;
  const auto samples = session.load_share(number, hold);
  StepInput input;
  input.step = number;
  input.updates = number - 1;
  input.samples = samples;
  input.plan = plan;
  input.fill = session.fill(plan, number);
  session.communicator.barrier();
  StepResult result;
  const double spent = time_ms([&] { result = session.step->run(input); });
  if (result.fatal) throw *result.fatal;
  return spent;
}

/// main() of a benchmark of the tiny model on one thread: `program` in the budgeted allocator. Returns the exit code.
int tiny_bench_program(const auto& program) {
  return bench::exit_code_of([&] {
    memory::CpuAllocator::install();
    at::set_num_threads(1);
    program();
  });
}

inline double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

}  // namespace plimsoll::train
