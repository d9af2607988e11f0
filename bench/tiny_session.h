#pragma once
// What benchmarks of a whole step on the tiny model share.

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "bench/program.h"
#include "data/sample_stream.h"
#include "ddp/handshake.h"
#include "memory/cpu_allocator.h"
#include "model/init_model.h"
#include "train/session.h"
#include "train/source.h"

namespace plimsoll::train {

/// A run of the tiny model, to be written to `folder`/model, with 8 samples a step; nothing in it limits the memory.
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

/// What all ranks of a benchmark share, as many as mpirun has started (without it one): a folder, the tiny model in it,
/// a configuration with a share of 8 for each, and the samples. Collective.
struct TinyRanks {
  explicit TinyRanks(const std::string& name)
      // The ranks' common parent names a folder that is theirs alone.
      : folder(std::filesystem::temp_directory_path() / fmt::format("plimsoll-{}-{}", name, ::getppid())),
        communicator(ddp::make_communicator((folder / "progress").string(), 600.0)),
        config(tiny_bench_config(folder)) {
    config.batch.effective = 8 * std::int64_t{communicator->world()};
    config.memory.calibration = config.memory.table = "off";
    if (first()) model::write_random_checkpoint(model::init_config("tiny"), {config.model.path, 1, false});
    communicator->barrier();
    source = make_source(config);
  }
  ~TinyRanks() {
    std::error_code ignored;
    if (first()) std::filesystem::remove_all(folder, ignored);
  }
  TinyRanks(const TinyRanks&) = delete;
  TinyRanks& operator=(const TinyRanks&) = delete;

  bool first() const { return communicator->rank() == 0; }
  /// Of the slowest rank, the same on all. Collective.
  double slowest(double milliseconds) const {
    const std::vector<std::int64_t> mine = {static_cast<std::int64_t>(milliseconds * 1000)};
    std::int64_t most = 0;
    for (const auto& theirs : ddp::share_numbers(*communicator, mine)) most = std::max(most, theirs.at(0));
    return static_cast<double>(most) / 1000;
  }

  std::filesystem::path folder;
  std::unique_ptr<ddp::Communicator> communicator;
  Config config;
  std::unique_ptr<data::SampleSource> source;
};

/// All samples of the source in memory, in the order in which a run draws them: nobody waits for a disk here.
class Drawn {
 public:
  explicit Drawn(const TinyRanks& ranks)
      : communicator_(*ranks.communicator),
        stream_(ranks.source->training(), static_cast<std::uint64_t>(ranks.config.run.seed)) {
    for (std::int64_t i = 0; i < ranks.source->size(); ++i) samples_.push_back(ranks.source->load(i));
  }
  /// This rank's part of `count` samples from `position` on.
  std::vector<model::StreamSample> share_of(std::int64_t position, std::int64_t count) {
    const std::int64_t rank = communicator_.rank(), world = communicator_.world();
    const std::int64_t begin = count * rank / world, end = count * (rank + 1) / world;
    std::vector<model::StreamSample> drawn;
    for (std::int64_t i = position + begin; i < position + end; ++i) {
      const auto place = static_cast<std::uint64_t>(i);
      drawn.push_back({&samples_[static_cast<std::size_t>(stream_.at(place))], place});
    }
    return drawn;
  }

 private:
  ddp::Communicator& communicator_;
  data::SampleStream stream_;
  std::vector<Sample> samples_;
};

inline double time_ms(const auto& action) {
  const auto began = std::chrono::steady_clock::now();
  action();
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - began).count();
}

/// A step of these samples under `plan`, filled as `fill` says; all ranks begin together. Returns its milliseconds and
/// result; throws what ended it.
inline std::pair<double, StepResult> timed_step(Session& session, std::int64_t number,
                                                std::span<const model::StreamSample> samples, const memory::Plan& plan,
                                                const memory::Fill& fill) {
  StepInput input;
  input.step = number;
  input.updates = number - 1;
  input.samples = samples;
  input.plan = plan;
  input.fill = fill;
  session.communicator.barrier();
  StepResult result;
  const double spent = time_ms([&] { result = session.step->run(input); });
  if (result.fatal) throw *result.fatal;
  return {spent, std::move(result)};
}

inline double time_step_ms(Session& session, std::int64_t number, std::span<const model::StreamSample> samples,
                           const memory::Plan& plan, const memory::Fill& fill) {
  return timed_step(session, number, samples, plan, fill).first;
}

/// main() of a benchmark of the tiny model on one thread: `program` in the budgeted allocator. Returns the exit code.
int tiny_bench_program(const auto& program) {
  return bench::exit_code_of([&] {
    memory::CpuAllocator::install();
    at::set_num_threads(1);
    program();
  });
}

/// Between the two in the middle where the count is even: the upper alone would take the better of two rounds.
inline double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  if (values.size() % 2 == 1) return *middle;
  return (*std::max_element(values.begin(), middle) + *middle) / 2;
}

/// Standard error of the median, from the middle half of the values: for a normal distribution 1.253 x 0.741 x that
/// width over the root of their number.
inline double error_of_median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const double width = values[values.size() * 3 / 4] - values[values.size() / 4];
  return 0.93 * width / std::sqrt(static_cast<double>(values.size()));
}

}  // namespace plimsoll::train
