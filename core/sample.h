#pragma once
// One training sample, as the loader hands it over and the model packs it. All vectors are ordinary host memory,
// outside every budget; features may lie in memory that is pinned for the device.

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/host_bytes.h"

namespace plimsoll {

namespace model {
struct DeviceRows;
}

/// How much a sample weighs: all that the memory of a micro-batch depends on. Known from metadata before step 1.
struct SampleShape {
  std::int64_t tokens = 0;    ///< language-model tokens, image placeholders included
  std::int64_t patches = 0;   ///< vision patches (14 x 14 pixels), over all images that go through the vision tower
  std::int64_t features = 0;  ///< rows of image features that are read from the cache instead
  std::int64_t states = 0;    ///< rows of last hidden states that are read from the cache in place of all these
  friend bool operator==(const SampleShape&, const SampleShape&) = default;
};

/// What the VLM reads: prompt and images, processed.
struct VlmInput {
  std::vector<std::int64_t> input_ids;                      ///< [L]
  std::vector<std::int64_t> position_ids;                   ///< [3, L] row-major: temporal, height, width (M-RoPE)
  std::vector<std::array<std::int64_t, 3>> image_grid_thw;  ///< per image: frames, patch rows, patch columns
  std::vector<float> pixel_values;                          ///< [patches, 1176] row-major, images one after another
  /// In place of pixel_values, out of the feature cache: what vision tower and merger make of the images, [patches / 4,
  /// hidden] in the model's compute dtype, rows in image order.
  HostBytes image_features;
  /// In place of both and of the whole model, likewise: what the language model makes of the prompt, [L, hidden].
  HostBytes hidden_states;
  /// In place of the bytes of either: the same rows in the device's memory (model/device_rows.h).
  std::shared_ptr<const model::DeviceRows> device_features, device_states;

  bool has_features() const { return !image_features.empty() || device_features; }
  bool has_states() const { return !hidden_states.empty() || device_states; }
  /// Rows of the images' features.
  std::int64_t feature_rows() const {
    std::int64_t rows = 0;
    for (const auto& grid : image_grid_thw) rows += grid[0] * grid[1] * grid[2] / 4;
    return rows;
  }
};

/// What the action expert reads and is asked for; all normalised.
struct Sample {
  std::int64_t index = 0;  ///< global index in the dataset
  VlmInput vlm;
  std::vector<float> state;    ///< [state_dim]
  std::vector<float> sensor;   ///< [window, channels] row-major, oldest first; empty without a sensor
  std::vector<float> actions;  ///< [chunk, action_dim] row-major; rows past the episode's end repeat its last
  std::vector<std::uint8_t> action_is_pad;  ///< [chunk], 1 past the episode's end
  std::int64_t task_index = 0;              ///< row of the dataset's task table
  std::string instruction;

  SampleShape shape() const {
    const auto tokens = static_cast<std::int64_t>(vlm.input_ids.size());
    if (vlm.has_states()) return {0, 0, 0, tokens};
    return {tokens, static_cast<std::int64_t>(vlm.pixel_values.size() / 1176),
            vlm.has_features() ? vlm.feature_rows() : 0};
  }
};

}  // namespace plimsoll
