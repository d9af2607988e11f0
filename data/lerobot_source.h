#pragma once
// Training samples out of LeRobot datasets: camera frames and instruction processed for the VLM, state, sensor window
// and action chunk normalised.

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "data/action_space.h"
#include "data/dataset_mapping.h"
#include "data/frame.h"
#include "data/normaliser.h"
#include "data/sample_source.h"
#include "data/vlm_input.h"

namespace plimsoll::data {

struct LeRobotSourceOptions {
  std::vector<std::string> paths;   ///< datasets, one after another; all need the features below, of equal width
  std::vector<double> weights;      ///< of `paths`, as DatasetMapping::weight; empty: by their numbers of samples
  std::vector<DatasetMapping> mix;  ///< or datasets of different layouts, each with its own mapping
  std::vector<std::string>
      cameras;  ///< picture features in this order; empty: all of the first dataset, sorted by name. With `mix` roles
  std::string state = "observation.state";  ///< empty: no state
  std::string action = "action";
  std::string sensor;              ///< feature of the sensor's channels; empty: no sensor
  std::int64_t sensor_window = 0;  ///< rows of the sensor window; 0: no sensor
  std::int64_t chunk = 1;          ///< actions of a sample
  std::int64_t resolution = 0;     ///< longer side of a picture in pixels; 0: as it is
  double eval_fraction = 0;  ///< of each dataset's episodes, the last ones, held out (rounded up to whole episodes)
  Normalisation normalisation = Normalisation::kMeanStd;
  bool joint_statistics = false;  ///< of all datasets together; else each by its own. Not for quantiles
  ActionKind action_space = ActionKind::kAbsolute;
  std::vector<std::int64_t> delta_dimensions;  ///< relative ones of an action after its mapping; empty: delta_space()
};

/// Samples are numbered through the datasets, frame by frame. A sample at frame t of an episode has
///   state    row t
///   sensor   rows t - window + 1 .. t; rows before the episode's start repeat its first
///   actions  rows t .. t + chunk - 1; rows past the episode's end repeat its last and are marked as padding; with
///            ActionKind::kDelta as differences to the state of row t (data/action_space.h)
/// Rows are taken as they were recorded: of a dataset with twice the frames a second, window and chunk are half as
/// long. Pictures come in the order of their roles (data/dataset_mapping.h). Tasks of the first dataset keep their
/// numbers; those of the others are the same task where the text is the same, and else come after them. load() and
/// shapes may be asked for from any thread.
///
/// One dataset of `paths` in absolute actions has the hashes that it has always had, so that checkpoints and features
/// of older runs are its own.
class LeRobotSource final : public SampleSource {
 public:
  /// Opens all datasets, logs what is read of them all the same and is seldom meant (data/dataset_notes.h), and works
  /// out every sample's shape. Prompts of more tokens than the model has positions are refused.
  /// `processor` is the model's. Throws Error(kData) naming file, column and row, and Error(kUsage) naming the key of
  /// an option that does not fit. Datasets that differ in the width of state, action or sensor after mapping, or in the
  /// relative dimensions of their actions, are refused.
  LeRobotSource(const LeRobotSourceOptions& options, std::shared_ptr<const VlmProcessor> processor);
  ~LeRobotSource() override;

  std::int64_t size() const override;
  SampleDims dims() const override;
  SampleShape shape_of(std::int64_t index) const override;
  Sample load(std::int64_t index) const override;
  const std::vector<std::int64_t>& training() const override;
  const std::vector<std::int64_t>& held_out() const override;
  std::uint64_t hash() const override;
  std::uint64_t pictures_hash() const override;

  /// The same with another resolution than the options'.
  SampleShape shape_at(std::int64_t index, std::int64_t resolution) const override;
  Sample load_at(std::int64_t index, std::int64_t resolution) const override;

  /// Decodes no picture.
  Sample load_without_pixels(std::int64_t index, std::int64_t resolution) const override;
  std::int64_t own_resolution() const override;

  std::vector<std::string> tasks() const override;
  std::int64_t task_of(std::int64_t index) const override;
  std::int64_t pictures_of(std::int64_t index) const override;
  std::vector<std::string> datasets() const override;
  std::int64_t dataset_of(std::int64_t index) const override;
  std::vector<double> dataset_weights() const override;
  std::int64_t episode_index_of(std::int64_t index) const override;
  SampleColumn column(const std::string& name) const override;

  /// The sample of what a robot meets now, made as load() makes one of a recorded row, with the mapping and the
  /// statistics of the first dataset. `frames`: its episode so far, oldest first; of the last one pictures, state and
  /// sensor are read, of those before it the sensor, as far back as the window goes. Actions are zeros, all marked as
  /// padding, and the index is -1. Throws Error(kData) naming a feature that a frame lacks or that has another width.
  Sample sample_of(std::span<const Frame> frames, const std::string& instruction) const;
  /// What that robot is to do where a model predicts these actions, whole rows, normalised, of its last frame `now`: in
  /// the dataset's units (executable_actions()).
  std::vector<float> executable(std::span<const float> predicted, const Frame& now) const;

  /// What a model's actions go through, and what its state comes through, in a closed loop on the robot of dataset
  /// number `dataset`, 0 .. datasets().size() - 1. With joint statistics the same for all.
  const Normaliser& action_normaliser(std::int64_t dataset = 0) const;
  const Normaliser* state_normaliser(std::int64_t dataset = 0) const;   ///< null without a state
  const Normaliser* sensor_normaliser(std::int64_t dataset = 0) const;  ///< null without a sensor
  /// For executable_actions().
  const ActionSpace& action_space(std::int64_t dataset = 0) const;

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace plimsoll::data
