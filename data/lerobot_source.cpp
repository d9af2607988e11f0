#include "data/lerobot_source.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <mutex>

#include "core/error.h"
#include "core/hash.h"
#include "data/dataset_notes.h"
#include "data/lerobot_column.h"
#include "data/mapped_dataset.h"

namespace plimsoll::data {
namespace {

/// One dataset of the source.
struct Part {
  MappedDataset mapped;
  std::int64_t begin = 0;           // its first sample in the source
  std::vector<std::int64_t> tasks;  // of the source, by its own task index

  const LeRobotDataset& dataset() const { return mapped.dataset(); }
};

std::vector<DatasetMapping> mappings_of_paths(const LeRobotSourceOptions& options) {
  const std::vector<double>& weights = options.weights;
  if (!weights.empty() && weights.size() != options.paths.size())
    fail(ExitCode::kUsage, "data.weights has {} numbers and data.path {} datasets: {}; give each its weight, in order",
         weights.size(), options.paths.size(), fmt::join(options.paths, ", "));
  std::vector<DatasetMapping> plain(options.paths.size());
  for (std::size_t i = 0; i < plain.size(); ++i) {
    plain[i].path = options.paths[i];
    if (!weights.empty()) plain[i].weight = weights[i];
  }
  return plain;
}

std::vector<ResolvedMapping> mappings_of(const LeRobotSourceOptions& options) {
  const MappingDefaults defaults{options.cameras, options.state, options.action, options.sensor};
  std::vector<ResolvedMapping> mappings;
  if (options.mix.empty()) {
    mappings = resolve_mappings(mappings_of_paths(options), defaults, "data.path");
  } else {
    mappings = resolve_mappings(options.mix, defaults, "data.mix");
  }
  if (options.sensor_window == 0) {
    for (ResolvedMapping& mapping : mappings) mapping.sensor = {};
  }
  return mappings;
}

}  // namespace

struct LeRobotSource::Parts {
  Parts(const LeRobotSourceOptions& chosen, std::shared_ptr<const VlmProcessor> shared)
      : options(chosen), processor(std::move(shared)) {
    check_options();
    for (const ResolvedMapping& mapping : mappings_of(options)) open(mapping);
    if (options.joint_statistics) normalise_jointly();
    shapes.reserve(static_cast<std::size_t>(size));
    for (std::int64_t i = 0; i < size; ++i) {
      shapes.push_back(compute_shape(i, options.resolution));
      const Part& part = part_of(i);
      check_prompt_length(part.dataset(), i - part.begin, shapes.back().tokens, *processor);
    }
  }

  void check_options() const {
    if (options.paths.empty() && options.mix.empty())
      fail(ExitCode::kUsage, "data.path names no dataset, and data.mix has none");
    if (!options.paths.empty() && !options.mix.empty())
      fail(ExitCode::kUsage, "data.path is {}, and data.mix names datasets too; give one of them",
           fmt::join(options.paths, ", "));
    if (!options.weights.empty() && !options.mix.empty())
      fail(ExitCode::kUsage, "data.weights is [{}] and belongs to data.path; give each table of data.mix a `weight`",
           fmt::join(options.weights, ", "));
    if (options.action.empty()) fail(ExitCode::kUsage, "data.action is empty; it must name the feature of the actions");
    if (options.chunk < 1) fail(ExitCode::kUsage, "expert.chunk is {}, but must be at least 1", options.chunk);
    if (options.joint_statistics && options.normalisation == Normalisation::kQuantiles)
      fail(ExitCode::kUsage,
           "data.statistics is \"joint\" and data.normalisation \"quantiles\": quantiles of several datasets do not "
           "follow from those of each; choose mean_std or min_max");
  }

  VectorOptions vector_options() const {
    return {options.chunk, options.sensor_window, options.normalisation, options.action_space,
            options.delta_dimensions};
  }

  void open(const ResolvedMapping& mapping) {
    parts.push_back({MappedDataset(mapping, vector_options()), size, {}});
    Part& part = parts.back();
    for (const std::string& note : dataset_notes(part.mapped, mapping, !options.joint_statistics))
      spdlog::warn("{}", note);
    check_alike(part.mapped);
    split_episodes(part);
    if (mapping.weight) weights.push_back(*mapping.weight);
    size += part.dataset().size();
    number_tasks(part);
  }

  void check_alike(const MappedDataset& mapped) const {
    const MappedDataset& first = parts.front().mapped;
    const SampleDims own = mapped.dims(), due = first.dims();
    const auto check = [&](const char* role, std::int64_t width, std::int64_t expected) {
      if (width != expected)
        fail(ExitCode::kData,
             "{}: its {} has {} values, but {} in {}; datasets trained together must agree: choose features and "
             "dimensions in data.mix",
             mapped.where(), role, width, expected, first.where());
    };
    check("action", own.action, due.action);
    check("state", own.state, due.state);
    check("sensor", own.sensor_channels, due.sensor_channels);
    const auto relative = mapped.action_space().relative_dimensions();
    const auto expected = first.action_space().relative_dimensions();
    if (relative != expected)
      fail(ExitCode::kUsage,
           "{}: dimensions {} of its actions are relative to its state, but {} in {}; name those that are to be "
           "relative in data.delta_dimensions",
           mapped.where(), fmt::join(relative, ", "), fmt::join(expected, ", "), first.where());
  }

  /// The last episodes of each dataset are held out, and each must have others: one that nothing is learned from is a
  /// mistake.
  void split_episodes(const Part& part) {
    const auto& episodes = part.dataset().info().episodes;
    const auto kept_out =
        static_cast<std::size_t>(std::ceil(static_cast<double>(episodes.size()) * options.eval_fraction));
    if (kept_out >= episodes.size())
      fail(ExitCode::kData, "{}: no episode is left to train on with data.eval_fraction {}", part.mapped.where(),
           options.eval_fraction);
    for (std::size_t e = 0; e < episodes.size(); ++e) {
      auto& samples = e + kept_out < episodes.size() ? training : held_out;
      for (std::int64_t i = episodes[e].begin; i < episodes[e].end; ++i) samples.push_back(part.begin + i);
    }
  }

  /// The first dataset's tasks keep their numbers, whatever their texts.
  void number_tasks(Part& part) {
    const bool first = parts.size() == 1;
    for (const std::string& text : part.dataset().info().tasks) {
      const auto next = static_cast<std::int64_t>(tasks.size());
      const auto [item, added] = task_numbers.try_emplace(text, next);
      if (added || first) tasks.push_back(text);
      part.tasks.push_back(first ? next : item->second);
    }
  }

  void normalise_jointly() {
    std::vector<VectorStatistics> those;
    for (const Part& part : parts) those.push_back(part.mapped.statistics());
    const VectorStatistics joint = pooled(those);
    for (Part& part : parts) part.mapped.normalise_by(joint);
  }

  const Part& part_of(std::int64_t index) const {
    if (index < 0 || index >= size)
      fail(ExitCode::kUsage, "sample {} was asked for, but the dataset has {}", index, size);
    return *std::prev(std::upper_bound(parts.begin(), parts.end(), index,
                                       [](std::int64_t i, const Part& part) { return i < part.begin; }));
  }

  const MappedDataset& mapped(std::int64_t dataset) const {
    if (dataset < 0 || dataset >= std::ssize(parts))
      fail(ExitCode::kUsage, "dataset {} was asked for, but there are {}", dataset, parts.size());
    return parts[static_cast<std::size_t>(dataset)].mapped;
  }

  std::int64_t task_of(std::int64_t index) const {
    const Part& part = part_of(index);
    return part.tasks[static_cast<std::size_t>(part.dataset().row(index - part.begin).task_index)];
  }

  /// Shapes repeat: one tokenisation per task and picture sizes.
  SampleShape compute_shape(std::int64_t index, std::int64_t resolution) const {
    const Part& part = part_of(index);
    const std::int64_t frame = index - part.begin;
    const std::vector<ImageSize> sizes = part.mapped.image_sizes(frame);
    std::vector<std::int64_t> key{resolution, task_of(index)};
    for (const ImageSize& image : sizes) key.push_back(image.height << 32 | image.width);
    const std::lock_guard lock(memo_mutex);
    const auto [item, added] = memo.try_emplace(std::move(key));
    if (added) item->second = processor->shape(part.dataset().task(frame), sizes, resolution);
    return item->second;
  }

  Sample sample_of(std::span<const Frame> frames, const std::string& instruction) const {
    if (frames.empty()) fail(ExitCode::kUsage, "a sample of no frame was asked for");
    const MappedDataset& first = parts.front().mapped;
    Sample sample;
    sample.index = -1;
    sample.instruction = instruction;
    first.fill_observation(frames, sample);
    sample.actions.assign(static_cast<std::size_t>(options.chunk) * first.action_normaliser().width(), 0.0F);
    sample.action_is_pad.assign(static_cast<std::size_t>(options.chunk), 1);
    sample.vlm = processor->prepare(instruction, first.images(frames.back()), options.resolution);
    return sample;
  }

  VlmInput vlm_input(const Part& part, std::int64_t frame, std::int64_t resolution, bool pixels) const {
    const std::string& text = part.dataset().task(frame);
    const std::vector<Image> images = pixels ? part.mapped.images(frame) : std::vector<Image>();
    try {
      return pixels ? processor->prepare(text, images, resolution)
                    : processor->prepare_sizes(text, part.mapped.image_sizes(frame), resolution);
    } catch (const Error& error) {
      throw Error(error.code(), fmt::format("{}: index {}: {}", part.dataset().info().root, frame, error.what()));
    }
  }

  Sample load(std::int64_t index, std::int64_t resolution, bool pixels) const {
    const Part& part = part_of(index);
    const std::int64_t frame = index - part.begin;
    Sample sample;
    sample.index = index;
    sample.task_index = task_of(index);
    sample.instruction = part.dataset().task(frame);
    part.mapped.fill_vectors(frame, sample);
    sample.vlm = vlm_input(part, frame, resolution, pixels);
    return sample;
  }

  /// Whether datasets are read otherwise than they were before there were mappings.
  bool is_mapped() const {
    return !options.mix.empty() || options.joint_statistics || options.action_space != ActionKind::kAbsolute;
  }

  /// Of what a mapping adds. Which features are state and action is not in a dataset's own hash.
  std::uint64_t layout_hash() const {
    std::string words = options.joint_statistics ? "joint statistics" : "own statistics";
    for (const Part& part : parts) words += "\n" + part.mapped.layout();
    return xxh3_64(std::as_bytes(std::span(words)));
  }

  LeRobotSourceOptions options;
  std::shared_ptr<const VlmProcessor> processor;
  std::vector<Part> parts;
  std::vector<double> weights;  // of the datasets; empty: they have none
  std::int64_t size = 0;
  std::vector<std::string> tasks;
  std::map<std::string, std::int64_t> task_numbers;  // by text, of the first that has it
  std::vector<SampleShape> shapes;
  std::vector<std::int64_t> training, held_out;
  mutable std::mutex memo_mutex;
  mutable std::map<std::vector<std::int64_t>, SampleShape> memo;
};

LeRobotSource::LeRobotSource(const LeRobotSourceOptions& options, std::shared_ptr<const VlmProcessor> processor)
    : parts_(std::make_unique<Parts>(options, std::move(processor))) {}
LeRobotSource::~LeRobotSource() = default;

std::int64_t LeRobotSource::size() const { return parts_->size; }

SampleDims LeRobotSource::dims() const { return parts_->parts.front().mapped.dims(); }

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
  for (const Part& part : parts_->parts) words.push_back(part.dataset().hash());
  const LeRobotSourceOptions& options = parts_->options;
  for (const std::int64_t value :
       {dims().sensor_window, options.chunk, options.resolution, static_cast<std::int64_t>(options.normalisation),
        static_cast<std::int64_t>(parts_->training.size())})
    words.push_back(static_cast<std::uint64_t>(value));
  for (const SampleShape& shape : parts_->shapes)
    words.push_back(static_cast<std::uint64_t>(shape.tokens * 1000003 + shape.patches));
  if (parts_->is_mapped()) words.push_back(parts_->layout_hash());
  return xxh3_64(std::as_bytes(std::span(words)));
}

std::uint64_t LeRobotSource::pictures_hash() const {
  std::vector<std::uint64_t> words;
  for (const Part& part : parts_->parts) {
    words.push_back(part.dataset().pictures_hash());
    const auto& cameras = part.mapped.cameras();
    words.insert(words.end(), cameras.begin(), cameras.end());  // in the order of the samples' pictures
  }
  return xxh3_64(std::as_bytes(std::span(words)));
}

std::vector<std::string> LeRobotSource::tasks() const { return parts_->tasks; }
std::int64_t LeRobotSource::task_of(std::int64_t index) const { return parts_->task_of(index); }
std::int64_t LeRobotSource::pictures_of(std::int64_t index) const {
  return std::ssize(parts_->part_of(index).mapped.cameras());
}
std::vector<std::string> LeRobotSource::datasets() const {
  std::vector<std::string> names;
  for (const Part& part : parts_->parts) names.push_back(part.mapped.name());
  return names;
}
std::int64_t LeRobotSource::dataset_of(std::int64_t index) const {
  return &parts_->part_of(index) - parts_->parts.data();
}
std::vector<double> LeRobotSource::dataset_weights() const { return parts_->weights; }
std::int64_t LeRobotSource::episode_index_of(std::int64_t index) const {
  const Part& part = parts_->part_of(index);
  return part.dataset().row(index - part.begin).episode_index;
}
SampleColumn LeRobotSource::column(const std::string& name) const {
  ColumnReader reader(name);
  for (const Part& part : parts_->parts) reader.read(part.dataset().info());
  return reader.take();
}

const Normaliser& LeRobotSource::action_normaliser(std::int64_t dataset) const {
  return parts_->mapped(dataset).action_normaliser();
}
const Normaliser* LeRobotSource::state_normaliser(std::int64_t dataset) const {
  return parts_->mapped(dataset).state_normaliser();
}
const Normaliser* LeRobotSource::sensor_normaliser(std::int64_t dataset) const {
  return parts_->mapped(dataset).sensor_normaliser();
}
const ActionSpace& LeRobotSource::action_space(std::int64_t dataset) const {
  return parts_->mapped(dataset).action_space();
}

std::vector<float> LeRobotSource::executable(std::span<const float> predicted, const Frame& now) const {
  const MappedDataset& first = parts_->mapped(0);
  return executable_actions(predicted, first.action_normaliser(), first.action_space(), first.state(now));
}

}  // namespace plimsoll::data
