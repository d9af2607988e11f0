// Samples a second out of a LeRobot dataset, every training frame once in the order of a run: decoded, resized, cut
// into patches, its text in tokens. bench/loader_peer.py runs it beside lerobot's own DataLoader.
//
//   loader_bench DATASET MODEL WORKERS BATCH [PASSES, 1]
//   loader_bench --profile DATASET MODEL SAMPLES
//
// One line of JSON. Of the first: samples, seconds and samples_per_second of all but the first step; resident_mib, the
// most within the first and within the last pass over the frames. Of the second, on one thread: samples, and `parts`,
// the seconds that each part of loading them took.

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/error.h"
#include "data/frame_cache.h"
#include "data/lerobot_dataset.h"
#include "data/lerobot_source.h"
#include "data/loader.h"
#include "data/pixel_buffers.h"
#include "data/sample_stream.h"

namespace plimsoll {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

double resident_mib() {
  std::ifstream status("/proc/self/statm");
  std::int64_t size = 0, resident = 0;
  status >> size >> resident;
  return static_cast<double>(resident * ::sysconf(_SC_PAGESIZE)) / (1 << 20);
}

data::LeRobotSourceOptions source_options(const std::string& dataset) {
  data::LeRobotSourceOptions options;
  options.paths = {dataset};
  options.chunk = 16;
  return options;
}

struct Run {
  int workers = 1;
  std::int64_t batch = 1, passes = 1;
};

void run(const std::string& dataset, const std::string& model, const Run& how) {
  const data::LeRobotSource source(source_options(dataset), std::make_shared<data::VlmProcessor>(model));
  data::LoaderOptions with;
  with.workers = how.workers;
  with.prefetch = 2;
  with.effective_batch = how.batch;
  data::Loader loader(source, with);
  const std::int64_t of_a_pass = std::ssize(source.training()) / how.batch, steps = of_a_pass * how.passes;
  if (steps < 2) fail(ExitCode::kUsage, "{}: too few frames for two steps of {}", dataset, how.batch);
  double first = 0, last = 0;
  std::size_t values = 0;
  Clock::time_point start;
  for (std::int64_t step = 1; step <= steps; ++step) {
    const auto [begin, end] = data::share_of_step(step, how.batch, 0, 1);
    for (auto position = begin; position < end; ++position) values += loader.get(position)->vlm.pixel_values.size();
    if (step == 1) start = Clock::now();
    if (step <= of_a_pass) first = std::max(first, resident_mib());
    if (step > steps - of_a_pass) last = std::max(last, resident_mib());
  }
  const double seconds = seconds_since(start);
  const std::int64_t samples = (steps - 1) * how.batch;
  fmt::print(
      "{{\"samples\": {}, \"seconds\": {:.4f}, \"samples_per_second\": {:.3f}, \"resident_mib\": [{:.1f}, {:.1f}], "
      "\"values\": {}}}\n",
      samples, seconds, static_cast<double>(samples) / seconds, first, last, values);
}

/// What loading takes, part by part: pictures are decoded and made into patches once by themselves, and once within a
/// whole sample, whose remainder is the rest.
class Profile {
 public:
  Profile(const std::string& dataset, const std::string& model)
      : dataset_(dataset),
        processor_(std::make_shared<data::VlmProcessor>(model)),
        source_(source_options(dataset), processor_) {
    data::decoded_frames().set_most_bytes(0);  // or the second time would be a look-up
  }

  void add(std::int64_t index) {
    double known = 0;
    std::vector<data::Image> images;
    for (const std::string& name : dataset_.info().cameras()) {
      const bool video = dataset_.info().find(name)->kind == data::FeatureKind::kVideo;
      known += timed(video ? "decoding of videos" : "decoding of image columns",
                     [&] { images.push_back(dataset_.image(dataset_.camera(name), index)); });
    }
    known += timed("patches and tokens", [&] { give_back(processor_->prepare(dataset_.task(index), images)); });
    const auto start = Clock::now();
    give_back(source_.load(index).vlm);
    parts_["numbers and the rest"] += std::max(0.0, seconds_since(start) - known);
  }
  const std::vector<std::int64_t>& training() const { return source_.training(); }
  const std::map<std::string, double>& parts() const { return parts_; }

 private:
  /// As the loader's samples do.
  static void give_back(VlmInput made) { data::spare_pixels().give(std::move(made.pixel_values)); }

  template <class Do>
  double timed(const char* part, Do&& action) {
    const auto start = Clock::now();
    action();
    const double took = seconds_since(start);
    parts_[part] += took;
    return took;
  }

  data::LeRobotDataset dataset_;
  std::shared_ptr<const data::VlmProcessor> processor_;
  data::LeRobotSource source_;
  std::map<std::string, double> parts_;
};

void profile(const std::string& dataset, const std::string& model, std::int64_t samples) {
  Profile all(dataset, model);
  data::SampleStream stream(all.training(), 0);
  const std::int64_t count = std::min(samples, stream.epoch_length());
  for (std::int64_t i = 0; i < count; ++i) all.add(stream.at(static_cast<std::uint64_t>(i)));
  std::vector<std::string> parts;
  for (const auto& [name, seconds] : all.parts()) parts.push_back(fmt::format("\"{}\": {:.4f}", name, seconds));
  fmt::print("{{\"samples\": {}, \"parts\": {{{}}}}}\n", count, fmt::join(parts, ", "));
}

}  // namespace
}  // namespace plimsoll

int main(int count, char** words) {
  const bool profile = count == 5 && std::string(words[1]) == "--profile";
  if (!profile && (count < 5 || count > 6)) {
    fmt::print(stderr,
               "usage: loader_bench DATASET MODEL WORKERS BATCH [PASSES]\n"
               "       loader_bench --profile DATASET MODEL SAMPLES\n");
    return 2;
  }
  try {
    if (profile) {
      plimsoll::profile(words[2], words[3], std::atol(words[4]));
    } else {
      plimsoll::run(words[1], words[2],
                    {std::atoi(words[3]), std::atol(words[4]), count == 6 ? std::atol(words[5]) : 1});
    }
    return 0;
  } catch (const plimsoll::Error& error) {
    fmt::print(stderr, "{}\n", error.what());
    return static_cast<int>(error.code());
  }
}
