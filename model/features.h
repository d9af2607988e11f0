#pragma once
// What the VLM computes for one prompt, written to a file: `plimsoll features`, and the comparisons with other
// implementations. No torch in here.

#include <string>

#include "core/sample.h"

namespace plimsoll::model {

struct FeatureRequest {
  std::string model;       ///< Hugging Face directory
  std::string adapter;     ///< PEFT directory, or empty
  bool bf16 = false;       ///< weights and computation in bf16, otherwise fp32 throughout
  bool gradients = false;  ///< needs an adapter
  std::string
      write_adapter;  ///< folder to write the adapter to again, under today's names; empty: do not. Needs an adapter
  std::string out;    ///< safetensors file to write
};

/// Writes `input_ids` [1, L] and `position_ids` [3, 1, L] int64, with images `image_grid_thw` [images, 3] int64,
/// `pixel_values` [patches, 1176] and `image_features` [patches / 4, hidden] fp32, and `last_hidden_state` [1, L,
/// hidden] fp32 (after the final norm). In bf16 the results are the bf16 values, stored as fp32. With gradients also,
/// under PEFT's keys, the fp32 gradient of mean(last_hidden_state^2) (mean taken in fp32) for every adapter tensor. No
/// dropout. Throws Error(kData, kUsage) as Qwen and load_adapter do.
void write_features(const FeatureRequest& request, const VlmInput& input);

}  // namespace plimsoll::model
