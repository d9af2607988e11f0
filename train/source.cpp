#include "train/source.h"

#include <algorithm>

#include "core/error.h"
#include "model/qwen_config.h"

namespace plimsoll::train {
namespace {

void check_model_path(const Config& config) {
  if (config.model.path.empty())
    fail(ExitCode::kUsage, "model.path is empty; give the Hugging Face directory of a Qwen2.5-VL model");
}

void keep_shape(const DataConfig& config, data::SyntheticOptions& options) {
  options.images = static_cast<int>(config.synthetic_images);
  options.heavy_every = config.synthetic_side > 0 ? 0 : 16;
  if (config.synthetic_side % 28 != 0)
    fail(ExitCode::kUsage, "data.synthetic_side = {}: no multiple of 28, the pixels of a token's side; give {} or {}",
         config.synthetic_side, std::max<std::int64_t>(1, config.synthetic_side / 28) * 28,
         (config.synthetic_side / 28 + 1) * 28);
  if (config.synthetic_side > 0) options.smallest_side = options.largest_side = static_cast<int>(config.synthetic_side);
  if (config.synthetic_text > 0) options.smallest_text = options.largest_text = static_cast<int>(config.synthetic_text);
}

std::unique_ptr<data::SampleSource> synthetic(const Config& config) {
  if (!config.data.weights.empty())
    fail(ExitCode::kUsage,
         "data.weights has {} numbers, and data.synthetic_samples = {} makes up one dataset; leave it out",
         config.data.weights.size(), config.data.synthetic_samples);
  const auto vlm = model::read_qwen_config(config.model.path);
  data::SyntheticOptions options;
  options.samples = config.data.synthetic_samples;
  options.seed = static_cast<std::uint64_t>(config.run.seed);
  options.chunk = config.expert.chunk;
  options.sensor_window = config.sensor.window;
  options.image_token = vlm.image_token_id;
  options.vision_start_token = vlm.image_token_id - 3;  // Qwen's order of its special tokens
  options.vision_end_token = vlm.image_token_id - 2;
  options.vocabulary = vlm.image_token_id - 12;
  keep_shape(config.data, options);
  options.tasks = config.data.synthetic_tasks;
  return data::make_synthetic_source(options);
}

}  // namespace

std::unique_ptr<data::SampleSource> make_source(const Config& config) {
  check_model_path(config);
  if (config.data.synthetic_samples > 0) return synthetic(config);
  return make_lerobot_source(config);
}

std::unique_ptr<data::LeRobotSource> make_lerobot_source(const Config& config) {
  check_model_path(config);
  if (config.data.path.empty() && config.data.mix.empty())
    fail(ExitCode::kUsage, "data.path is empty; give the directory of a LeRobot dataset, or several in data.mix");
  data::LeRobotSourceOptions options;
  options.paths = config.data.path;
  options.weights = config.data.weights;
  options.mix = config.data.mix;
  options.cameras = config.data.cameras;
  options.state = config.data.state;
  options.action = config.data.action;
  options.sensor = config.sensor.feature;
  options.sensor_window = config.sensor.window;
  options.chunk = config.expert.chunk;
  options.resolution = config.data.resolution;
  options.eval_fraction = config.data.eval_fraction;
  options.normalisation = data::parse_normalisation(config.data.normalisation);
  options.joint_statistics = config.data.statistics == "joint";
  options.action_space = data::parse_action_space(config.data.action_space);
  options.delta_dimensions = config.data.delta_dimensions;
  return std::make_unique<data::LeRobotSource>(options, std::make_shared<data::VlmProcessor>(config.model.path));
}

}  // namespace plimsoll::train
