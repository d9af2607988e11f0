// Samples a second out of a LeRobot dataset, every training frame once in the order of a run: decoded, resized, cut
// into patches, its text in tokens. bench/loader_peer.py runs it beside lerobot's own DataLoader.
//
//   loader_bench DATASET MODEL WORKERS BATCH
//
// One line of JSON: samples, seconds and samples_per_second of all but the first step; resident_mib after the first
// tenth of the samples and at the end.

#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <fstream>
#include <memory>

#include "core/error.h"
#include "data/lerobot_source.h"
#include "data/loader.h"
#include "data/sample_stream.h"

namespace plimsoll {
namespace {

double resident_mib() {
  std::ifstream status("/proc/self/statm");
  std::int64_t size = 0, resident = 0;
  status >> size >> resident;
  return static_cast<double>(resident * ::sysconf(_SC_PAGESIZE)) / (1 << 20);
}

void run(const std::string& dataset, const std::string& model, int workers, std::int64_t batch) {
  data::LeRobotSourceOptions options;
  options.paths = {dataset};
  options.chunk = 16;
  const data::LeRobotSource source(options, std::make_shared<data::VlmProcessor>(model));
  data::LoaderOptions with;
  with.workers = workers;
  with.prefetch = 2;
  with.effective_batch = batch;
  data::Loader loader(source, with);
  const std::int64_t steps = std::ssize(source.training()) / batch;
  double early = 0;
  std::size_t values = 0;
  std::chrono::steady_clock::time_point start;
  for (std::int64_t step = 1; step <= steps; ++step) {
    const auto [begin, end] = data::share_of_step(step, batch, 0, 1);
    for (auto position = begin; position < end; ++position) values += loader.get(position)->vlm.pixel_values.size();
    if (step == 1) start = std::chrono::steady_clock::now();
    if (step == std::max<std::int64_t>(1, steps / 10)) early = resident_mib();
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const std::int64_t samples = (steps - 1) * batch;
  fmt::print(
      "{{\"samples\": {}, \"seconds\": {:.4f}, \"samples_per_second\": {:.3f}, \"resident_mib\": [{:.1f}, {:.1f}], "
      "\"values\": {}}}\n",
      samples, seconds, static_cast<double>(samples) / seconds, early, resident_mib(), values);
}

}  // namespace
}  // namespace plimsoll

int main(int count, char** words) {
  if (count != 5) {
    fmt::print(stderr, "usage: loader_bench DATASET MODEL WORKERS BATCH\n");
    return 2;
  }
  try {
    plimsoll::run(words[1], words[2], std::atoi(words[3]), std::atoi(words[4]));
    return 0;
  } catch (const plimsoll::Error& error) {
    fmt::print(stderr, "{}\n", error.what());
    return static_cast<int>(error.code());
  }
}
