#include "data/mapped_dataset.h"

#include <algorithm>

#include "core/error.h"

namespace plimsoll::data {
namespace {

std::vector<std::size_t> checked_dimensions(const FeatureChoice& choice, std::int64_t width, const std::string& where,
                                            const char* role) {
  std::vector<std::size_t> dimensions;
  for (const std::int64_t dimension : choice.dimensions) {
    if (dimension < 0 || dimension >= width)
      fail(ExitCode::kUsage, "{}: {}_dimensions has {}, but \"{}\" has the dimensions 0 to {}", where, role, dimension,
           choice.feature, width - 1);
    dimensions.push_back(static_cast<std::size_t>(dimension));
  }
  return dimensions;
}

DimensionNames names_of(const LeRobotFeature& feature, const std::vector<std::size_t>& dimensions) {
  if (dimensions.empty()) return {static_cast<std::size_t>(feature.width()), feature.names};
  DimensionNames chosen{dimensions.size(), {}};
  if (feature.names.empty()) return chosen;
  for (const std::size_t dimension : dimensions) chosen.names.push_back(feature.names[dimension]);
  return chosen;
}

CountedStatistics pooled_of(std::span<const VectorStatistics> parts, CountedStatistics VectorStatistics::*member) {
  std::vector<CountedStatistics> those;
  for (const VectorStatistics& part : parts) those.push_back(part.*member);
  return pooled(those);
}

}  // namespace

VectorStatistics pooled(std::span<const VectorStatistics> parts) {
  return {pooled_of(parts, &VectorStatistics::state), pooled_of(parts, &VectorStatistics::sensor),
          pooled_of(parts, &VectorStatistics::action), pooled_of(parts, &VectorStatistics::differences)};
}

MappedDataset::MappedDataset(const ResolvedMapping& mapping, const VectorOptions& options)
    : mapping_(mapping),
      options_(options),
      where_(fmt::format("{} ({})", mapping.key, mapping.path)),
      dataset_(mapping.path, wanted_features(mapping)) {
  for (const std::string& camera : mapping.cameras) cameras_.push_back(dataset_.camera(camera));
  action_ = open(mapping.action, "action");
  state_ = open(mapping.state, "state");
  sensor_ = open(mapping.sensor, "sensor");
  if (options.action_space == ActionKind::kDelta) {
    if (mapping.state.feature.empty())
      fail(ExitCode::kUsage, "{}: data.action_space is \"delta\", which needs a state; set data.state", where_);
    action_space_ = delta_space(action_.names, state_.names, options.delta_dimensions, where_);
  }
  statistics_ = own_statistics();
  normalise_by(statistics_);
}

LeRobotOptions MappedDataset::wanted_features(const ResolvedMapping& mapping) {
  LeRobotOptions wanted;
  wanted.features = mapping.cameras;
  for (const std::string& name : {mapping.action.feature, mapping.state.feature, mapping.sensor.feature}) {
    if (!name.empty()) wanted.features->push_back(name);
  }
  return wanted;
}

MappedDataset::Vector MappedDataset::open(const FeatureChoice& choice, const char* role) const {
  Vector vector;
  if (choice.feature.empty()) return vector;
  vector.number = dataset_.numbers(choice.feature);
  const LeRobotFeature& feature = *dataset_.info().find(choice.feature);
  vector.dimensions = checked_dimensions(choice, feature.width(), where_, role);
  vector.names = names_of(feature, vector.dimensions);
  return vector;
}

CountedStatistics MappedDataset::stored_statistics(const FeatureChoice& choice, const Vector& vector) const {
  if (choice.feature.empty()) return {};
  const LeRobotInfo& info = dataset_.info();
  const FeatureStatistics& all = info.statistics_of(*info.find(choice.feature));
  return {static_cast<double>(info.frames),
          vector.dimensions.empty() ? all : select_dimensions(all, vector.dimensions)};
}

VectorStatistics MappedDataset::own_statistics() const {
  VectorStatistics own;
  const std::size_t relative = action_space_.relative_dimensions().size();
  // Where all dimensions are differences, the dataset need not have statistics of its actions.
  if (relative < action_.names.width) own.action = stored_statistics(mapping_.action, action_);
  own.state = stored_statistics(mapping_.state, state_);
  own.sensor = stored_statistics(mapping_.sensor, sensor_);
  if (relative > 0) {
    const std::vector<float> actions = all_rows(action_), states = all_rows(state_);
    own.differences =
        delta_statistics(action_space_, {actions, action_.names.width}, {states, state_.names.width},
                         dataset_.info().episodes, options_.chunk, options_.normalisation == Normalisation::kQuantiles);
  }
  return own;
}

std::vector<float> MappedDataset::all_rows(const Vector& vector) const {
  std::vector<float> rows;
  rows.reserve(static_cast<std::size_t>(dataset_.size()) * vector.names.width);
  for (std::int64_t frame = 0; frame < dataset_.size(); ++frame) append(vector, frame, rows);
  return rows;
}

FeatureStatistics MappedDataset::action_statistics(const VectorStatistics& statistics) const {
  const auto relative = action_space_.relative_dimensions();
  if (relative.size() == action_.names.width) return statistics.differences.values;
  FeatureStatistics merged = statistics.action.values;
  for (const std::size_t dimension : relative) replace_dimension(merged, statistics.differences.values, dimension);
  return merged;
}

std::string MappedDataset::statistics_of(const FeatureChoice& choice) const {
  return fmt::format("{}/meta: statistics of \"{}\"", dataset_.info().root, choice.feature);
}

void MappedDataset::normalise_by(const VectorStatistics& statistics) {
  action_.scale.emplace(options_.normalisation, action_statistics(statistics), statistics_of(mapping_.action));
  if (!mapping_.state.feature.empty())
    state_.scale.emplace(options_.normalisation, statistics.state.values, statistics_of(mapping_.state));
  if (!mapping_.sensor.feature.empty())
    sensor_.scale.emplace(options_.normalisation, statistics.sensor.values, statistics_of(mapping_.sensor));
}

SampleDims MappedDataset::dims() const {
  return {static_cast<std::int64_t>(state_.names.width), static_cast<std::int64_t>(action_.names.width),
          sensor_.scale ? options_.sensor_window : 0, static_cast<std::int64_t>(sensor_.names.width)};
}

std::vector<ImageSize> MappedDataset::image_sizes(std::int64_t frame) const {
  std::vector<ImageSize> sizes;
  for (const std::size_t camera : cameras_) sizes.push_back(dataset_.image_size(camera, frame));
  return sizes;
}

std::vector<Image> MappedDataset::images(std::int64_t frame) const {
  std::vector<Image> images;
  for (const std::size_t camera : cameras_) images.push_back(dataset_.image(camera, frame));
  return images;
}

void MappedDataset::append(const Vector& vector, std::int64_t frame, std::vector<float>& out) const {
  append(vector, dataset_.values(vector.number, frame), out);
}

void MappedDataset::append(const Vector& vector, std::span<const float> row, std::vector<float>& out) {
  if (vector.dimensions.empty()) {
    out.insert(out.end(), row.begin(), row.end());
  } else {
    for (const std::size_t dimension : vector.dimensions) out.push_back(row[dimension]);
  }
}

void MappedDataset::fill_vectors(std::int64_t frame, Sample& sample) const {
  const LeRobotEpisode& episode = dataset_.episode_of(frame);
  if (state_.scale) append(state_, frame, sample.state);
  if (sensor_.scale) {
    for (std::int64_t back = options_.sensor_window - 1; back >= 0; --back)
      append(sensor_, std::max(episode.begin, frame - back), sample.sensor);
    sensor_.scale->normalise(sample.sensor);
  }
  for (std::int64_t ahead = 0; ahead < options_.chunk; ++ahead) {
    append(action_, std::min(episode.end - 1, frame + ahead), sample.actions);
    sample.action_is_pad.push_back(frame + ahead >= episode.end ? 1 : 0);
  }
  action_space_.make_relative(sample.actions, sample.state);  // the state as the dataset has it
  action_.scale->normalise(sample.actions);
  if (state_.scale) state_.scale->normalise(sample.state);
}

// In the dataset's precision.
std::vector<float> MappedDataset::row_of(const Frame& frame, const FeatureChoice& choice) const {
  const auto found = frame.numbers.find(choice.feature);
  const auto width = static_cast<std::size_t>(dataset_.info().find(choice.feature)->width());
  if (found == frame.numbers.end() || found->second.size() != width)
    fail(ExitCode::kData, "the robot gives {} values of \"{}\", of which the dataset has {}",
         found == frame.numbers.end() ? 0 : found->second.size(), choice.feature, width);
  return {found->second.begin(), found->second.end()};
}

std::vector<Image> MappedDataset::images(const Frame& frame) const {
  std::vector<Image> images;
  for (const std::string& camera : mapping_.cameras) {
    const auto found = frame.images.find(camera);
    if (found == frame.images.end())
      fail(ExitCode::kData, "the robot has no camera \"{}\", which the dataset has", camera);
    images.push_back(found->second);
  }
  return images;
}

std::vector<float> MappedDataset::state(const Frame& frame) const {
  std::vector<float> values;
  if (state_.scale) append(state_, row_of(frame, mapping_.state), values);
  return values;
}

void MappedDataset::fill_observation(std::span<const Frame> frames, Sample& sample) const {
  sample.state = state(frames.back());
  if (state_.scale) state_.scale->normalise(sample.state);
  if (!sensor_.scale) return;
  const auto now = static_cast<std::int64_t>(frames.size()) - 1;
  for (std::int64_t back = options_.sensor_window - 1; back >= 0; --back) {
    const auto row = static_cast<std::size_t>(std::max<std::int64_t>(0, now - back));
    append(sensor_, row_of(frames[row], mapping_.sensor), sample.sensor);
  }
  sensor_.scale->normalise(sample.sensor);
}

std::string MappedDataset::layout() const {
  const auto words = [](const FeatureChoice& choice) {
    return fmt::format("{}[{}]", choice.feature, fmt::join(choice.dimensions, ","));
  };
  std::vector<std::string> relative;
  for (const std::size_t dimension : action_space_.relative_dimensions())
    relative.push_back(fmt::format("{}-{}", dimension, *action_space_.state_dimension_of(dimension)));
  return fmt::format("cameras {}; state {}; sensor {}; action {}; relative {}", fmt::join(mapping_.cameras, ","),
                     words(mapping_.state), words(mapping_.sensor), words(mapping_.action), fmt::join(relative, ","));
}

}  // namespace plimsoll::data
