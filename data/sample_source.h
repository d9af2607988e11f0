#pragma once
// Where samples come from: a LeRobot dataset, or made-up ones to try memory and speed.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/sample.h"

namespace plimsoll::data {

/// Widths of the vectors in every Sample of a source.
struct SampleDims {
  std::int64_t state = 0, action = 0;
  std::int64_t sensor_window = 0, sensor_channels = 0;
};

/// What a column of the data says of the samples, as text.
struct SampleColumn {
  std::vector<std::string> texts;        ///< those that differ, in the order of their first samples
  std::vector<std::uint32_t> of_sample;  ///< number of each sample's text, by number of the source
};

/// Samples by number, 0 .. size() - 1. const members may be called from several threads at once.
class SampleSource {
 public:
  virtual ~SampleSource() = default;
  virtual std::int64_t size() const = 0;
  virtual SampleDims dims() const = 0;
  /// What load(index) will weigh, from metadata alone.
  virtual SampleShape shape_of(std::int64_t index) const = 0;
  /// Decodes and processes one sample. Throws Error(kData) naming file, column and row.
  virtual Sample load(std::int64_t index) const = 0;
  /// The same with the longer side of pictures cut down to `resolution` pixels (0: as they are) in place of the
  /// source's own setting. A source without pictures of its own takes no notice.
  virtual SampleShape shape_at(std::int64_t index, std::int64_t) const { return shape_of(index); }
  virtual Sample load_at(std::int64_t index, std::int64_t) const { return load(index); }
  /// load_at() for the draw at this position of the sample stream: what a sample comes with may depend on that.
  virtual Sample load_drawn(std::uint64_t, std::int64_t index, std::int64_t resolution) const {
    return load_at(index, resolution);
  }
  /// load_at() with pixel_values left empty: for samples whose image features are known.
  virtual Sample load_without_pixels(std::int64_t index, std::int64_t resolution) const {
    Sample sample = load_at(index, resolution);
    sample.vlm.pixel_values.clear();
    return sample;
  }
  /// Resolution of load() and shape_of(), as load_at() takes it.
  virtual std::int64_t own_resolution() const { return 0; }
  /// Texts of the tasks, and which of them a sample is of (Sample::task_index). A source without tasks has none, and 0.
  virtual std::vector<std::string> tasks() const { return {}; }
  virtual std::int64_t task_of(std::int64_t) const { return 0; }
  /// Images that a sample has.
  virtual std::int64_t pictures_of(std::int64_t) const { return 0; }
  /// Names of the datasets, and which of them a sample is of. A source without datasets has none, and 0. Names differ,
  /// unless the same folder was given twice.
  virtual std::vector<std::string> datasets() const { return {}; }
  virtual std::int64_t dataset_of(std::int64_t) const { return 0; }
  /// How often samples of each dataset are drawn beside those of the others, above 0; none: by their numbers.
  virtual std::vector<double> dataset_weights() const { return {}; }
  /// Index of the episode that a sample is of, as its dataset counts them. A source without datasets has none, and 0.
  virtual std::int64_t episode_index_of(std::int64_t) const { return 0; }
  /// A column of the datasets that has one text or number a row: numbers as short as they read back, "true" and
  /// "false". It is read now, whole, and no picture with it. A source without datasets has none, and returns nothing of
  /// any sample. Throws Error(kData) naming file, column and, where there is one, row.
  virtual SampleColumn column(const std::string&) const { return {}; }
  /// Samples that are trained on, and those of the held-out episodes, as numbers of this source.
  virtual const std::vector<std::int64_t>& training() const = 0;
  virtual const std::vector<std::int64_t>& held_out() const = 0;
  /// Equal on all ranks that see the same data: covers what load() would return.
  virtual std::uint64_t hash() const = 0;
  /// Covers what image features depend on: which pictures a sample has, in which order, and their files with sizes and
  /// times of change. Not the resolution, and nothing but pictures.
  virtual std::uint64_t pictures_hash() const { return hash(); }
};

/// Samples without files: random pixels, words, states and actions from `seed`, the same for the same number
/// everywhere.
struct SyntheticOptions {
  std::int64_t samples = 64;
  std::uint64_t seed = 0;
  std::int64_t state_dim = 4, action_dim = 2, chunk = 4;
  std::int64_t sensor_window = 8, sensor_channels = 3;
  int images = 1;          ///< per sample
  int smallest_side = 56;  ///< pixels of an image's side, a multiple of 28; sides vary up to the largest
  int largest_side = 112;
  int smallest_text = 8, largest_text = 40;  ///< text tokens
  std::int64_t tasks = 0;                    ///< made-up ones, which samples are of in turn
  int heavy_every = 0;                       ///< every n-th sample has twice the largest side; 0: none
  std::int64_t vocabulary = 512;             ///< text tokens are below this
  std::int64_t image_token = 0, vision_start_token = 0, vision_end_token = 0;  ///< of the model
  std::int64_t not_a_number = -1;                                              ///< this sample's first action is NaN
};
std::unique_ptr<SampleSource> make_synthetic_source(const SyntheticOptions& options);

}  // namespace plimsoll::data
