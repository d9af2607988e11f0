#pragma once
// A micro-batch as the model reads it: samples packed one after another, no padding, indices made on the host.

#include <torch/torch.h>

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "core/sample.h"
#include "model/ops.h"

namespace plimsoll::model {

/// Fixed facts that packing needs from the model's configuration.
struct PackingRules {
  std::int64_t image_token_id = 151655;
  std::int64_t vocabulary = 0;                   ///< rows of the embedding: ids at or above are refused; 0: not checked
  int merge = 2;                                 ///< patches per side that become one token
  int window = 112;                              ///< pixels of an attention window's side
  int patch = 14;                                ///< pixels of a patch's side
  int patch_values = 1176;                       ///< values of a patch: channels x frames x side x side
  int vision_head_dim = 80;                      ///< width of the vision tower's rotary tables
  int head_dim = 128;                            ///< width of the language model's rotary tables
  std::array<int, 3> mrope_section{16, 24, 24};  ///< frequencies that follow time, height, width; sum head_dim / 2
  std::vector<float> vision_frequencies;  ///< [vision_head_dim / 4], as fp32 torch computes them; needed by pack only
  std::vector<float> text_frequencies;    ///< [head_dim / 2], likewise
  at::ScalarType compute = at::kFloat;    ///< dtype of the language model's rotary tables
  std::int64_t max_context = 2048;
  std::int64_t hidden = 0;  ///< width of image features and hidden states
  int draws = 1, chunk = 1, action_dim = 1, state_dim = 0;
  int sensor_window = 0, sensor_channels = 0;
  int sensor_tokens = 0;  ///< context rows that a sample's sensor window becomes; they follow its text tokens
  int diffusion_steps = 100;
  bool flow = false;            ///< timesteps are flow times instead of ddpm step indices
  bool evaluate = false;        ///< noise of RandomSite::kEvaluate, so that sampled actions share none with training
  bool dropout = false;         ///< make dropout_keys
  bool vision_dropout = false;  ///< make vision_keys and merged_keys too: an adapter is in the vision part
  std::uint64_t seed = 0;       ///< of noise, timesteps and dropout
};

/// One sample of a micro-batch and its place in the sample stream, which keys its randomness.
struct StreamSample {
  const Sample* sample = nullptr;
  std::uint64_t position = 0;  ///< position in the endless sample stream
  float weight = 1.0F;         ///< of its loss
  std::uint8_t type = 0;       ///< which of the run's types of samples it is of
};

/// A micro-batch on the device. Tensors marked "host-made" hold indices or noise; nothing of them is read back.
struct PackedBatch {
  std::int64_t samples = 0;

  // Vision. P patches in the order of attention windows (rows already permuted on the host).
  Tensor pixel_values;            ///< [P, 1176] fp32, or undefined without images
  Tensor vision_cos, vision_sin;  ///< [P, head_dim] fp32, permuted alike, host-made
  SegmentsPtr vision_windows;     ///< window attention, ragged at the right and bottom of an image
  SegmentsPtr vision_frames;      ///< full attention, per image
  Tensor vision_unpermute;        ///< [P / 4] int64: window order -> image order after the merger
  Tensor vision_keys;  ///< [P, 2] int64 dropout keys of patches, permuted alike; undefined without vision_dropout
  Tensor merged_keys;  ///< [P / 4, 2] int64, of groups of patches in window order

  // Language.
  Tensor input_ids;           ///< [T] int64
  Tensor text_cos, text_sin;  ///< [T, head_dim] in rules.compute: M-RoPE of the samples' position ids, host-made
  Tensor image_rows;          ///< [P / 4] int64: rows of the token sequence that image features replace
  Tensor cached_features;     ///< [F, hidden] in rules.compute: of samples that come with them; undefined without
  Tensor cached_rows;         ///< [F] int64: rows that these replace
  SegmentsPtr tokens;         ///< one segment a sample
  Tensor cached_states;       ///< [T, hidden] in rules.compute: the language model's last hidden states, if all samples
                              ///< come with theirs; vision and language are without tensors then
  Tensor dropout_keys;        ///< [T, 2] int64 (ops.h, Dropout), undefined when dropout is off

  // Action expert. d draws, N chunk.
  Tensor context_positions;  ///< [C] int64: position of each context row within its sample, at most max_context - 1;
                             ///< C = T + sensor tokens, sample after sample, text before sensor
  Tensor token_rows;   ///< [T] int64: context row of each token; undefined without sensor tokens (then row = token)
  Tensor sensor_rows;  ///< [samples * sensor_tokens] int64: context row of each sensor token, likewise
  std::vector<std::int64_t> context_lengths;  ///< [samples] context rows of each sample; sums to C
  Tensor state;                               ///< [samples, state_dim] fp32
  Tensor sensor;                              ///< [samples, window, channels] fp32, undefined without a sensor
  Tensor actions;                             ///< [samples, N, A] fp32
  Tensor action_weight;                       ///< [samples, N] fp32: 1 where unpadded
  Tensor loss_weight;                         ///< [samples] fp32: StreamSample::weight; undefined for evaluation
  Tensor noise;      ///< [samples * d, N, A] fp32 standard normal, host-made; draws of a sample are neighbours
  Tensor timesteps;  ///< [samples * d] fp32, host-made: ddpm step index, uniform in 0 .. diffusion_steps - 1, or flow
                     ///< time 0.001 + 0.999 Beta(1.5, 1) as in pi0 (Black et al. 2024, appendix B)
};

/// Packs samples and copies them to `device`. Host work touches no budgeted allocator. A sample's values do not depend
/// on which others are packed with it. Throws Error(kData) naming the sample's index when its parts do not fit the
/// rules or each other, Error(kUsage) when some samples come with hidden states and some without.
PackedBatch pack(std::span<const StreamSample> samples, const PackingRules& rules, at::Device device);

/// The same tensors by shape alone, on meta: for the dry run. Same allocations in the same order as `pack`. Segments of
/// windows and frames are stand-ins: nothing is allocated by their number.
PackedBatch pack_shapes(std::span<const SampleShape> shapes, const PackingRules& rules);

}  // namespace plimsoll::model
