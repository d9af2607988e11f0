#pragma once
// One LeRobot dataset, seen through its mapping: pictures in the order of the roles, and state, sensor window and
// action chunk cut down to the dimensions that are used, normalised. Private to data/lerobot_source.cpp.

#include <optional>
#include <string>
#include <vector>

#include "data/action_space.h"
#include "data/dataset_mapping.h"
#include "data/feature_statistics.h"
#include "data/frame.h"
#include "data/lerobot_dataset.h"
#include "data/normaliser.h"
#include "data/sample_source.h"

namespace plimsoll::data {

/// What is the same for all datasets of a source.
struct VectorOptions {
  std::int64_t chunk = 1;          ///< actions of a sample
  std::int64_t sensor_window = 0;  ///< rows
  Normalisation normalisation = Normalisation::kMeanStd;
  ActionKind action_space = ActionKind::kAbsolute;
  std::vector<std::int64_t> delta_dimensions;
};

/// What normalisation goes by. Absent features and, without relative dimensions, differences have none.
struct VectorStatistics {
  CountedStatistics state, sensor, action;
  CountedStatistics differences;  ///< of the actions' relative dimensions
};

/// The same of all rows of several datasets.
VectorStatistics pooled(std::span<const VectorStatistics> parts);

/// Immutable but for normalise_by(); const members may be called from any number of threads. Errors name the dataset.
class MappedDataset {
 public:
  /// Opens the dataset and normalises it by its own statistics. Throws Error(kData) as LeRobotDataset and Normaliser
  /// do, Error(kUsage) for dimensions that it does not have.
  MappedDataset(const ResolvedMapping& mapping, const VectorOptions& options);

  const LeRobotDataset& dataset() const { return dataset_; }
  const std::string& name() const { return mapping_.name; }
  /// "data.mix[1] (/data/robot)": for errors.
  const std::string& where() const { return where_; }
  const VectorOptions& options() const { return options_; }
  SampleDims dims() const;
  /// Numbers of its cameras, in the order of a sample's pictures.
  const std::vector<std::size_t>& cameras() const { return cameras_; }
  std::vector<ImageSize> image_sizes(std::int64_t frame) const;
  std::vector<Image> images(std::int64_t frame) const;

  /// Of a frame that was not recorded: what it has in the dataset's features, through the same mapping. Throw
  /// Error(kData) naming a feature that it lacks or that has another width.
  std::vector<Image> images(const Frame& frame) const;
  std::vector<float> state(const Frame& frame) const;  ///< in the dataset's units; empty without a state
  /// State and sensor of the sample of the last of these frames, which are an episode so far, oldest first.
  void fill_observation(std::span<const Frame> frames, Sample& sample) const;

  /// State, sensor, actions and their padding of the sample at `frame`.
  void fill_vectors(std::int64_t frame, Sample& sample) const;

  const VectorStatistics& statistics() const { return statistics_; }
  /// Replaces its own statistics.
  void normalise_by(const VectorStatistics& statistics);

  const ActionSpace& action_space() const { return action_space_; }
  const Normaliser& action_normaliser() const { return *action_.scale; }
  const Normaliser* state_normaliser() const { return state_.scale ? &*state_.scale : nullptr; }
  const Normaliser* sensor_normaliser() const { return sensor_.scale ? &*sensor_.scale : nullptr; }

  /// The mapping in words, all that decides what a sample holds and nothing else: for hashes.
  std::string layout() const;

 private:
  /// A feature of numbers.
  struct Vector {
    std::size_t number = 0;               // of LeRobotDataset::values()
    std::vector<std::size_t> dimensions;  // empty: all
    DimensionNames names;                 // of those; no width: no such feature
    std::optional<Normaliser> scale;
  };

  static LeRobotOptions wanted_features(const ResolvedMapping& mapping);
  Vector open(const FeatureChoice& choice, const char* role) const;
  CountedStatistics stored_statistics(const FeatureChoice& choice, const Vector& vector) const;
  VectorStatistics own_statistics() const;
  std::vector<float> all_rows(const Vector& vector) const;
  FeatureStatistics action_statistics(const VectorStatistics& statistics) const;
  std::string statistics_of(const FeatureChoice& choice) const;
  void append(const Vector& vector, std::int64_t frame, std::vector<float>& out) const;
  static void append(const Vector& vector, std::span<const float> row, std::vector<float>& out);
  std::vector<float> row_of(const Frame& frame, const FeatureChoice& choice) const;

  ResolvedMapping mapping_;
  VectorOptions options_;
  std::string where_;
  LeRobotDataset dataset_;
  std::vector<std::size_t> cameras_;
  Vector state_, sensor_, action_;
  ActionSpace action_space_;
  VectorStatistics statistics_;
};

}  // namespace plimsoll::data
