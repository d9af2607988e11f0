#include "data/lerobot_source.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <mutex>
#include <optional>

#include "core/error.h"
#include "core/hash.h"

namespace plimsoll::data {
namespace {

/// One dataset of the source, with what is needed of it found once.
struct Part {
  LeRobotDataset dataset;
  std::int64_t begin = 0;       // its first sample in the source
  std::int64_t first_task = 0;  // its task 0 in the source
  std::vector<std::size_t> cameras;
  std::size_t action = 0;
  std::optional<std::size_t> state, sensor;
  std::optional<Normaliser> action_scale, state_scale, sensor_scale;
};

LeRobotOptions wanted_features(const LeRobotSourceOptions& options, const std::vector<std::string>& cameras) {
  LeRobotOptions wanted;
  wanted.features = cameras;
  for (const std::string& name : {options.action, options.state, options.sensor}) {
    if (!name.empty()) wanted.features->push_back(name);
  }
  return wanted;
}

}  // namespace

struct LeRobotSource::Parts {
  Parts(const LeRobotSourceOptions& chosen, std::shared_ptr<const VlmProcessor> shared)
      : options(chosen), processor(std::move(shared)) {
    check_options();
    if (options.cameras.empty()) options.cameras = read_lerobot_info(options.paths[0]).cameras();
    for (const std::string& path : options.paths) open(path);
    shapes.reserve(static_cast<std::size_t>(size));
    for (std::int64_t i = 0; i < size; ++i) shapes.push_back(compute_shape(i, options.resolution));
    if (training.empty())
      fail(ExitCode::kData, "{}: no episode is left to train on with data.eval_fraction {}", options.paths[0],
           options.eval_fraction);
  }

  void check_options() {
    if (options.paths.empty()) fail(ExitCode::kUsage, "data.path names no dataset");
    if (options.action.empty()) fail(ExitCode::kUsage, "data.action is empty; it must name the feature of the actions");
    if (options.chunk < 1) fail(ExitCode::kUsage, "expert.chunk is {}, but must be at least 1", options.chunk);
    if (options.sensor_window == 0 || options.sensor.empty()) options.sensor_window = 0, options.sensor.clear();
  }

  void open(const std::string& path) {
    const std::int64_t tasks_before = static_cast<std::int64_t>(tasks.size());
    parts.push_back({LeRobotDataset(path, wanted_features(options, options.cameras)),
                     size,
                     tasks_before,
                     {},
                     0,
                     {},
                     {},
                     {},
                     {},
                     {}});
    Part& part = parts.back();
    for (const std::string& camera : options.cameras) part.cameras.push_back(part.dataset.camera(camera));
    part.action = part.dataset.numbers(options.action);
    part.action_scale = normaliser(part, options.action);
    if (!options.state.empty())
      part.state = part.dataset.numbers(options.state), part.state_scale = normaliser(part, options.state);
    if (!options.sensor.empty())
      part.sensor = part.dataset.numbers(options.sensor), part.sensor_scale = normaliser(part, options.sensor);
    check_widths(part);
    split_episodes(part);
    size += part.dataset.size();
    const auto& texts = part.dataset.info().tasks;
    tasks.insert(tasks.end(), texts.begin(), texts.end());
  }

  Normaliser normaliser(const Part& part, const std::string& feature) const {
    const LeRobotInfo& info = part.dataset.info();
    return Normaliser(options.normalisation, info.statistics_of(*info.find(feature)),
                      fmt::format("{}/meta: statistics of \"{}\"", info.root, feature));
  }

  void check_widths(const Part& part) const {
    const Part& first = parts.front();
    const auto check = [&](const std::string& name, const std::optional<Normaliser>& a,
                           const std::optional<Normaliser>& b) {
      if (a && a->width() != b->width())
        fail(ExitCode::kData, "{}: \"{}\" has {} values, but {} in {}; datasets trained together must agree",
             part.dataset.info().root, name, b->width(), a->width(), first.dataset.info().root);
    };
    check(options.action, first.action_scale, part.action_scale);
    check(options.state, first.state_scale, part.state_scale);
    check(options.sensor, first.sensor_scale, part.sensor_scale);
  }

  void split_episodes(const Part& part) {
    const auto& episodes = part.dataset.info().episodes;
    const auto kept_out =
        static_cast<std::size_t>(std::ceil(static_cast<double>(episodes.size()) * options.eval_fraction));
    for (std::size_t e = 0; e < episodes.size(); ++e) {
      auto& samples = e + kept_out < episodes.size() ? training : held_out;
      for (std::int64_t i = episodes[e].begin; i < episodes[e].end; ++i) samples.push_back(part.begin + i);
    }
  }

  const Part& part_of(std::int64_t index) const {
    if (index < 0 || index >= size)
      fail(ExitCode::kUsage, "sample {} was asked for, but the dataset has {}", index, size);
    return *std::prev(std::upper_bound(parts.begin(), parts.end(), index,
                                       [](std::int64_t i, const Part& part) { return i < part.begin; }));
  }

  std::int64_t task_of(std::int64_t index) const {
    const Part& part = part_of(index);
    return part.first_task + part.dataset.row(index - part.begin).task_index;
  }

  static std::vector<ImageSize> sizes_of(const Part& part, std::int64_t frame) {
    std::vector<ImageSize> sizes;
    for (const std::size_t camera : part.cameras) sizes.push_back(part.dataset.image_size(camera, frame));
    return sizes;
  }

  /// Shapes repeat: one tokenisation per task and picture sizes.
  SampleShape compute_shape(std::int64_t index, std::int64_t resolution) const {
    const Part& part = part_of(index);
    const std::int64_t frame = index - part.begin;
    const std::vector<ImageSize> sizes = sizes_of(part, frame);
    std::vector<std::int64_t> key{resolution, task_of(index)};
    for (const ImageSize& image : sizes) key.push_back(image.height << 32 | image.width);
    const std::lock_guard lock(memo_mutex);
    const auto [item, added] = memo.try_emplace(std::move(key));
    if (added) item->second = processor->shape(part.dataset.task(frame), sizes, resolution);
    return item->second;
  }

  static void append_normalised(std::span<const float> row, const Normaliser& scale, std::vector<float>& out) {
    out.insert(out.end(), row.begin(), row.end());
    scale.normalise(std::span(out).last(row.size()));
  }

  /// `state()` and `sensor(back)` give a row of now, and one so many rows before it, in the dataset's units.
  template <class State, class Sensor>
  void fill_observation(const Part& part, const State& state, const Sensor& sensor, Sample& sample) const {
    if (part.state) append_normalised(state(), *part.state_scale, sample.state);
    for (std::int64_t back = options.sensor_window - 1; back >= 0; --back)
      append_normalised(sensor(back), *part.sensor_scale, sample.sensor);
  }

  void fill_vectors(const Part& part, std::int64_t frame, Sample& sample) const {
    const LeRobotEpisode& episode = part.dataset.episode_of(frame);
    fill_observation(
        part, [&] { return part.dataset.values(*part.state, frame); },
        [&](std::int64_t back) { return part.dataset.values(*part.sensor, std::max(episode.begin, frame - back)); },
        sample);
    for (std::int64_t ahead = 0; ahead < options.chunk; ++ahead) {
      append_normalised(part.dataset.values(part.action, std::min(episode.end - 1, frame + ahead)), *part.action_scale,
                        sample.actions);
      sample.action_is_pad.push_back(frame + ahead >= episode.end ? 1 : 0);
    }
  }

  /// A feature of a frame that was not recorded, in the dataset's precision.
  static std::vector<float> row_of(const Frame& frame, const std::string& feature, const Normaliser& scale) {
    const auto found = frame.numbers.find(feature);
    if (found == frame.numbers.end() || found->second.size() != scale.width())
      fail(ExitCode::kData, "the robot gives {} values of \"{}\", of which the dataset has {}",
           found == frame.numbers.end() ? 0 : found->second.size(), feature, scale.width());
    return {found->second.begin(), found->second.end()};
  }

  std::vector<Image> pictures_of(const Frame& frame) const {
    std::vector<Image> images;
    for (const std::string& camera : options.cameras) {
      const auto found = frame.images.find(camera);
      if (found == frame.images.end())
        fail(ExitCode::kData, "the robot has no camera \"{}\", which the dataset has", camera);
      images.push_back(found->second);
    }
    return images;
  }

  Sample sample_of(std::span<const Frame> frames, const std::string& instruction) const {
    if (frames.empty()) fail(ExitCode::kUsage, "a sample of no frame was asked for");
    const Part& part = parts.front();
    Sample sample;
    sample.index = -1;
    sample.instruction = instruction;
    const auto now = static_cast<std::int64_t>(frames.size()) - 1;
    fill_observation(
        part, [&] { return row_of(frames.back(), options.state, *part.state_scale); },
        [&](std::int64_t back) {
          const auto row = static_cast<std::size_t>(std::max<std::int64_t>(0, now - back));
          return row_of(frames[row], options.sensor, *part.sensor_scale);
        },
        sample);
    sample.actions.assign(static_cast<std::size_t>(options.chunk) * part.action_scale->width(), 0.0F);
    sample.action_is_pad.assign(static_cast<std::size_t>(options.chunk), 1);
    sample.vlm = processor->prepare(instruction, pictures_of(frames.back()), options.resolution);
    return sample;
  }

  VlmInput vlm_input(const Part& part, std::int64_t frame, std::int64_t resolution, bool pixels) const {
    const std::string& text = part.dataset.task(frame);
    std::vector<Image> images;
    if (pixels)
      for (const std::size_t camera : part.cameras) images.push_back(part.dataset.image(camera, frame));
    try {
      return pixels ? processor->prepare(text, images, resolution)
                    : processor->prepare_sizes(text, sizes_of(part, frame), resolution);
    } catch (const Error& error) {
      throw Error(error.code(), fmt::format("{}: index {}: {}", part.dataset.info().root, frame, error.what()));
    }
  }

  Sample load(std::int64_t index, std::int64_t resolution, bool pixels) const {
    const Part& part = part_of(index);
    const std::int64_t frame = index - part.begin;
    Sample sample;
    sample.index = index;
    sample.task_index = task_of(index);
    sample.instruction = part.dataset.task(frame);
    fill_vectors(part, frame, sample);
    sample.vlm = vlm_input(part, frame, resolution, pixels);
    return sample;
  }

  LeRobotSourceOptions options;
  std::shared_ptr<const VlmProcessor> processor;
  std::vector<Part> parts;
  std::int64_t size = 0;
  std::vector<std::string> tasks;
  std::vector<SampleShape> shapes;
  std::vector<std::int64_t> training, held_out;
  mutable std::mutex memo_mutex;
  mutable std::map<std::vector<std::int64_t>, SampleShape> memo;
};

LeRobotSource::LeRobotSource(const LeRobotSourceOptions& options, std::shared_ptr<const VlmProcessor> processor)
    : parts_(std::make_unique<Parts>(options, std::move(processor))) {}
LeRobotSource::~LeRobotSource() = default;

std::int64_t LeRobotSource::size() const { return parts_->size; }

SampleDims LeRobotSource::dims() const {
  const Part& part = parts_->parts.front();
  const auto width = [](const std::optional<Normaliser>& scale) {
    return scale ? static_cast<std::int64_t>(scale->width()) : 0;
  };
  return {width(part.state_scale), width(part.action_scale), parts_->options.sensor_window, width(part.sensor_scale)};
}

SampleShape LeRobotSource::shape_of(std::int64_t index) const {
  parts_->part_of(index);
  return parts_->shapes[static_cast<std::size_t>(index)];
}
SampleShape LeRobotSource::shape_at(std::int64_t index, std::int64_t resolution) const {
  return parts_->compute_shape(index, resolution);
}
Sample LeRobotSource::load(std::int64_t index) const { return parts_->load(index, parts_->options.resolution, true); }
Sample LeRobotSource::load_at(std::int64_t index, std::int64_t resolution) const {
  return parts_->load(index, resolution, true);
}
Sample LeRobotSource::load_without_pixels(std::int64_t index, std::int64_t resolution) const {
  return parts_->load(index, resolution, false);
}
Sample LeRobotSource::sample_of(std::span<const Frame> frames, const std::string& instruction) const {
  return parts_->sample_of(frames, instruction);
}
std::int64_t LeRobotSource::own_resolution() const { return parts_->options.resolution; }

const std::vector<std::int64_t>& LeRobotSource::training() const { return parts_->training; }
const std::vector<std::int64_t>& LeRobotSource::held_out() const { return parts_->held_out; }

std::uint64_t LeRobotSource::hash() const {
  std::vector<std::uint64_t> words;
  for (const Part& part : parts_->parts) words.push_back(part.dataset.hash());
  const LeRobotSourceOptions& options = parts_->options;
  for (const std::int64_t value :
       {options.sensor_window, options.chunk, options.resolution, static_cast<std::int64_t>(options.normalisation),
        static_cast<std::int64_t>(parts_->training.size())})
    words.push_back(static_cast<std::uint64_t>(value));
  for (const SampleShape& shape : parts_->shapes)
    words.push_back(static_cast<std::uint64_t>(shape.tokens * 1000003 + shape.patches));
  return xxh3_64(std::as_bytes(std::span(words)));
}

std::uint64_t LeRobotSource::pictures_hash() const {
  std::vector<std::uint64_t> words;
  for (const Part& part : parts_->parts) {
    words.push_back(part.dataset.pictures_hash());
    words.insert(words.end(), part.cameras.begin(), part.cameras.end());  // in the order of the samples' pictures
  }
  return xxh3_64(std::as_bytes(std::span(words)));
}

std::vector<std::string> LeRobotSource::tasks() const { return parts_->tasks; }
std::int64_t LeRobotSource::task_of(std::int64_t index) const { return parts_->task_of(index); }
const Normaliser& LeRobotSource::action_normaliser() const { return *parts_->parts.front().action_scale; }
const Normaliser* LeRobotSource::state_normaliser() const {
  const auto& scale = parts_->parts.front().state_scale;
  return scale ? &*scale : nullptr;
}
const Normaliser* LeRobotSource::sensor_normaliser() const {
  const auto& scale = parts_->parts.front().sensor_scale;
  return scale ? &*scale : nullptr;
}

}  // namespace plimsoll::data
