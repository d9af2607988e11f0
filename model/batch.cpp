#include "model/batch.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/error.h"
#include "core/philox.h"
#include "core/scope.h"
#include "model/device_rows.h"
#include "model/vision_layout.h"

namespace plimsoll::model {
namespace {

constexpr std::int64_t kPositionLimit = 1 << 20;  // rotary tables are made for every position below the largest

struct Sizes {
  std::int64_t samples = 0, tokens = 0, patches = 0, features = 0;
  bool cached = false;  ///< tokens are hidden states out of the cache
};

/// Some rows of the features, in their order.
struct FeaturePiece {
  std::int64_t rows = 0;
  const std::byte* on_host = nullptr;  ///< the sample's own, which outlives the packing; null: on the device
  at::Tensor on_device;
};

// All that goes to the device, in ordinary host memory. Empty vectors when only shapes are wanted.
struct HostBatch {
  Sizes sizes;
  std::vector<float> pixels, vision_cos, vision_sin, text_cos, text_sin, state, sensor, actions, weight, noise,
      timesteps, loss_weight;
  std::vector<std::int64_t> unpermute, vision_keys, merged_keys, ids, image_rows, cached_rows, token_keys,
      context_positions, token_rows, sensor_rows, context_lengths;
  std::vector<FeaturePiece> feature_pieces;
  Segments windows, frames, tokens;
};

// Host vector -> tensor on the device: one allocation, one copy; on meta the allocation only.
class Upload {
 public:
  explicit Upload(at::Device device) : device_(device) {}

  Tensor floats(const std::vector<float>& values, at::IntArrayRef shape, at::ScalarType dtype = at::kFloat) const {
    if (dtype != at::kBFloat16) return copy(values, shape, dtype);
    const std::vector<c10::BFloat16> rounded(values.begin(), values.end());
    return copy(rounded, shape, dtype);
  }
  Tensor integers(const std::vector<std::int64_t>& values, at::IntArrayRef shape) const {
    return copy(values, shape, at::kLong);
  }
  /// Of that dtype already: one allocation, wherever the pieces come from.
  Tensor features(const HostBatch& host, at::IntArrayRef shape, at::ScalarType dtype) const {
    Tensor out = at::empty(shape, at::TensorOptions().dtype(dtype).device(device_));
    std::int64_t at = 0;
    for (const FeaturePiece& piece : host.feature_pieces) {
      Tensor to = out.narrow(0, at, piece.rows);
      at += piece.rows;
      if (piece.on_device.defined()) {
        to.copy_(piece.on_device);
      } else {
        to.copy_(at::from_blob(const_cast<std::byte*>(piece.on_host), to.sizes(), at::TensorOptions().dtype(dtype)));
      }
    }
    return out;
  }

 private:
  template <class T>
  Tensor copy(const std::vector<T>& values, at::IntArrayRef shape, at::ScalarType dtype) const {
    Tensor out = at::empty(shape, at::TensorOptions().dtype(dtype).device(device_));
    if (device_.is_meta() || out.numel() == 0) return out;
    // from_blob only reads: the cast drops const for an interface that has no const pointers.
    out.copy_(at::from_blob(const_cast<T*>(values.data()), shape, at::TensorOptions().dtype(dtype)));
    return out;
  }
  at::Device device_;
};

/// Patches that become one token.
std::int64_t unit_of(const PackingRules& rules) { return std::int64_t{rules.merge} * rules.merge; }

SegmentsPtr self_attention(std::vector<std::int64_t> lengths) {
  auto segments = std::make_shared<Segments>();
  segments->keys = lengths;
  segments->queries = std::move(lengths);
  return segments;
}

void upload_vision(const HostBatch& host, const PackingRules& rules, const Upload& upload, PackedBatch& batch) {
  const std::int64_t patches = host.sizes.patches, blocks = patches / unit_of(rules);
  if (patches == 0) return;
  batch.pixel_values = upload.floats(host.pixels, {patches, rules.patch_values});
  batch.vision_cos = upload.floats(host.vision_cos, {patches, rules.vision_head_dim});
  batch.vision_sin = upload.floats(host.vision_sin, {patches, rules.vision_head_dim});
  batch.vision_unpermute = upload.integers(host.unpermute, {blocks});
  if (rules.vision_dropout) {
    batch.vision_keys = upload.integers(host.vision_keys, {patches, 2});
    batch.merged_keys = upload.integers(host.merged_keys, {blocks, 2});
  }
  batch.image_rows = upload.integers(host.image_rows, {blocks});
}

void upload_features(const HostBatch& host, const PackingRules& rules, const Upload& upload, PackedBatch& batch) {
  if (host.sizes.features == 0 || host.sizes.cached) return;
  batch.cached_features = upload.features(host, {host.sizes.features, rules.hidden}, rules.compute);
  batch.cached_rows = upload.integers(host.cached_rows, {host.sizes.features});
}

void upload_text(const HostBatch& host, const PackingRules& rules, const Upload& upload, PackedBatch& batch) {
  const std::int64_t tokens = host.sizes.tokens;
  if (host.sizes.cached) {
    batch.cached_states = upload.features(host, {tokens, rules.hidden}, rules.compute);
    return;
  }
  batch.input_ids = upload.integers(host.ids, {tokens});
  batch.text_cos = upload.floats(host.text_cos, {tokens, rules.head_dim}, rules.compute);
  batch.text_sin = upload.floats(host.text_sin, {tokens, rules.head_dim}, rules.compute);
  if (rules.dropout) batch.dropout_keys = upload.integers(host.token_keys, {tokens, 2});
}

void upload_expert(const HostBatch& host, const PackingRules& rules, const Upload& upload, PackedBatch& batch) {
  const std::int64_t n = host.sizes.samples, extra = n * rules.sensor_tokens;
  batch.context_positions = upload.integers(host.context_positions, {host.sizes.tokens + extra});
  if (extra > 0) {
    batch.token_rows = upload.integers(host.token_rows, {host.sizes.tokens});
    batch.sensor_rows = upload.integers(host.sensor_rows, {extra});
  }
  batch.state = upload.floats(host.state, {n, rules.state_dim});
  if (rules.sensor_window > 0)
    batch.sensor = upload.floats(host.sensor, {n, rules.sensor_window, rules.sensor_channels});
  batch.actions = upload.floats(host.actions, {n, rules.chunk, rules.action_dim});
  batch.action_weight = upload.floats(host.weight, {n, rules.chunk});
  batch.noise = upload.floats(host.noise, {n * rules.draws, rules.chunk, rules.action_dim});
  batch.timesteps = upload.floats(host.timesteps, {n * rules.draws});
  if (!rules.evaluate) batch.loss_weight = upload.floats(host.loss_weight, {n});
}

PackedBatch upload_all(HostBatch host, const PackingRules& rules, at::Device device) {
  const AllocationLabel label("batch");
  const Upload upload(device);
  PackedBatch batch;
  batch.samples = host.sizes.samples;
  upload_vision(host, rules, upload, batch);
  upload_features(host, rules, upload, batch);
  upload_text(host, rules, upload, batch);
  upload_expert(host, rules, upload, batch);
  batch.vision_windows = self_attention(std::move(host.windows.queries));
  batch.vision_frames = self_attention(std::move(host.frames.queries));
  batch.tokens = self_attention(std::move(host.tokens.queries));
  batch.context_lengths = std::move(host.context_lengths);
  return batch;
}

// cos and sin of position x frequency for every position up to the largest one: [position][frequency], in fp32 like
// torch.
class RotaryTable {
 public:
  RotaryTable(const std::vector<float>& frequencies, std::int64_t positions)
      : width_(static_cast<std::int64_t>(frequencies.size())) {
    cos_.reserve(positions * width_);
    sin_.reserve(positions * width_);
    for (std::int64_t position = 0; position < positions; ++position) {
      for (const float frequency : frequencies) {
        const float angle = static_cast<float>(position) * frequency;
        cos_.push_back(std::cos(angle));
        sin_.push_back(std::sin(angle));
      }
    }
  }
  float cos(std::int64_t position, std::int64_t i) const { return cos_[position * width_ + i]; }
  float sin(std::int64_t position, std::int64_t i) const { return sin_[position * width_ + i]; }

 private:
  std::int64_t width_;
  std::vector<float> cos_, sin_;
};

void check(bool holds, const Sample& sample, const char* what, std::int64_t found, std::int64_t expected) {
  if (!holds) {
    fail(ExitCode::kData, "sample {}: {}: found {}, expected {}: the dataset and the model's configuration do not fit",
         sample.index, what, found, expected);
  }
}

void check_size(const Sample& sample, const char* what, std::size_t found, std::int64_t expected) {
  check(static_cast<std::int64_t>(found) == expected, sample, what, static_cast<std::int64_t>(found), expected);
}

// Cached rows, as bytes or on the device.
void check_rows(const Sample& sample, const char* what, const HostBytes& bytes, const DeviceRows* device,
                std::int64_t rows, const PackingRules& rules) {
  const std::int64_t expected = rows * rules.hidden * static_cast<std::int64_t>(c10::elementSize(rules.compute));
  const std::size_t found = device == nullptr ? bytes.size() : device->rows.nbytes();
  check_size(sample, what, found, expected);
}

void check_states(const Sample& sample, const PackingRules& rules) {
  const auto tokens = static_cast<std::int64_t>(sample.vlm.input_ids.size());
  check_rows(sample, "bytes of cached hidden states", sample.vlm.hidden_states, sample.vlm.device_states.get(), tokens,
             rules);
}

void check_images(const Sample& sample, const PackingRules& rules) {
  std::int64_t patches = 0;
  for (const auto& grid : sample.vlm.image_grid_thw) {
    check(grid[0] >= 1 && grid[1] >= rules.merge && grid[2] >= rules.merge, sample,
          "frames, rows or columns of an image", std::min({grid[0], grid[1], grid[2]}), rules.merge);
    check(grid[1] % rules.merge == 0 && grid[2] % rules.merge == 0, sample,
          "rows or columns of patches beyond a multiple", grid[1] % rules.merge + grid[2] % rules.merge, 0);
    patches += grid[0] * grid[1] * grid[2];
  }
  if (!sample.vlm.has_features()) {
    check_size(sample, "values of image patches", sample.vlm.pixel_values.size(), patches * rules.patch_values);
  } else {
    check_size(sample, "values of image patches beside cached features", sample.vlm.pixel_values.size(), 0);
    check_rows(sample, "bytes of cached image features", sample.vlm.image_features, sample.vlm.device_features.get(),
               patches / unit_of(rules), rules);
  }
  const auto& ids = sample.vlm.input_ids;
  check_size(sample, "image tokens", std::count(ids.begin(), ids.end(), rules.image_token_id),
             patches / unit_of(rules));
}

void check_text(const Sample& sample, const PackingRules& rules) {
  const auto& ids = sample.vlm.input_ids;
  check(!ids.empty(), sample, "text tokens", 0, 1);
  check_size(sample, "position ids", sample.vlm.position_ids.size(), 3 * static_cast<std::int64_t>(ids.size()));
  const auto [low, high] = std::minmax_element(ids.begin(), ids.end());
  check(*low >= 0, sample, "smallest token id", *low, 0);
  check(rules.vocabulary == 0 || *high < rules.vocabulary, sample, "largest token id (vocabulary minus one at most)",
        *high, rules.vocabulary - 1);
  const auto [first, last] = std::minmax_element(sample.vlm.position_ids.begin(), sample.vlm.position_ids.end());
  check(*first >= 0 && *last < kPositionLimit, sample, "position ids, the furthest", *first < 0 ? *first : *last, 0);
}

void check_sample(const Sample& sample, const PackingRules& rules) {
  if (!sample.vlm.has_states()) {
    check_text(sample, rules);
    check_images(sample, rules);
  } else {
    check_states(sample, rules);
  }
  check_size(sample, "state values", sample.state.size(), rules.state_dim);
  check_size(sample, "sensor values", sample.sensor.size(), std::int64_t{rules.sensor_window} * rules.sensor_channels);
  check_size(sample, "action values", sample.actions.size(), std::int64_t{rules.chunk} * rules.action_dim);
  check_size(sample, "action padding flags", sample.action_is_pad.size(), rules.chunk);
}

// A dropout key: the two mixed words of the sample, packed, and the row's number within the sample.
std::int64_t dropout_word(const PackingRules& rules, std::uint64_t position) {
  const auto words = mix({rules.seed, position, 0, static_cast<std::uint32_t>(RandomSite::kDropout)});
  return static_cast<std::int64_t>(std::uint64_t{words[0]} | std::uint64_t{words[1]} << 32);
}

void append_keys(std::vector<std::int64_t>& keys, std::int64_t word, std::int64_t row) {
  keys.push_back(word);
  keys.push_back(row);
}

// One sample's images, appended in window order.
class VisionPacker {
 public:
  VisionPacker(HostBatch& host, const PackingRules& rules)
      : host_(host), rules_(rules), unit_(unit_of(rules)), side_(rules.window / rules.merge / rules.patch) {}

  void append(const StreamSample& item) {
    const auto& vlm = item.sample->vlm;
    if (vlm.has_features()) return;
    const std::size_t first = layout_.blocks.size(), first_position = layout_.positions.size();
    for (const auto& grid : vlm.image_grid_thw) layout_.append(grid, rules_.merge, side_);
    const float* pixels = vlm.pixel_values.data();
    for (std::size_t place = first; place < layout_.blocks.size(); ++place) {
      const std::int64_t block = layout_.blocks[place] - static_cast<std::int64_t>(first);
      const float* from = pixels + block * unit_ * rules_.patch_values;
      host_.pixels.insert(host_.pixels.end(), from, from + unit_ * rules_.patch_values);
      for (std::int64_t cell = 0; cell < unit_; ++cell)
        order_.push_back(layout_.positions[first_position + block * unit_ + cell]);
      if (rules_.vision_dropout) keys(dropout_word(rules_, item.position), block);
    }
    host_.sizes.patches = static_cast<std::int64_t>(layout_.positions.size());
  }

  void finish() {
    std::int64_t largest = 0;
    for (const auto& position : order_) largest = std::max({largest, position[0], position[1]});
    tables(RotaryTable(rules_.vision_frequencies, largest + 1));
    host_.unpermute = std::move(layout_.unpermute);
    host_.windows.queries = std::move(layout_.windows);
    host_.frames.queries = std::move(layout_.frames);
  }

 private:
  void keys(std::int64_t word, std::int64_t block) {
    for (std::int64_t cell = 0; cell < unit_; ++cell) append_keys(host_.vision_keys, word, block * unit_ + cell);
    append_keys(host_.merged_keys, word, block);
  }

  // A row is [h, w, h, w], each a quarter of the head.
  void tables(const RotaryTable& table) {
    const std::int64_t quarter = rules_.vision_head_dim / 4;
    for (const auto& position : order_) {
      for (std::int64_t i = 0; i < 4 * quarter; ++i) {
        host_.vision_cos.push_back(table.cos(position[i / quarter % 2], i % quarter));
        host_.vision_sin.push_back(table.sin(position[i / quarter % 2], i % quarter));
      }
    }
  }

  HostBatch& host_;
  const PackingRules& rules_;
  std::int64_t unit_;
  int side_;
  VisionLayout layout_;
  std::vector<std::array<std::int64_t, 2>> order_;  // patch positions in window order
};

void append_features(HostBatch& host, const HostBytes& bytes, const DeviceRows* device, std::int64_t rows) {
  if (device == nullptr) {
    host.feature_pieces.push_back({rows, bytes.data(), {}});
  } else {
    host.feature_pieces.push_back({rows, nullptr, device->rows});
  }
}

void append_text(HostBatch& host, const StreamSample& item, const PackingRules& rules) {
  const auto& ids = item.sample->vlm.input_ids;
  const auto length = static_cast<std::int64_t>(ids.size());
  const auto& vlm = item.sample->vlm;
  auto& rows = vlm.has_features() ? host.cached_rows : host.image_rows;
  for (std::int64_t t = 0; t < length; ++t) {
    if (ids[t] == rules.image_token_id) rows.push_back(host.sizes.tokens + t);
    if (rules.dropout) append_keys(host.token_keys, dropout_word(rules, item.position), t);
  }
  if (vlm.has_features()) append_features(host, vlm.image_features, vlm.device_features.get(), vlm.feature_rows());
  host.ids.insert(host.ids.end(), ids.begin(), ids.end());
  host.tokens.queries.push_back(length);
  host.sizes.tokens += length;
}

// M-RoPE: frequency i follows the axis of its section; both halves of the head carry the same angles.
void append_rotary(HostBatch& host, const Sample& sample, const PackingRules& rules, const RotaryTable& table) {
  const std::int64_t length = static_cast<std::int64_t>(sample.vlm.input_ids.size()), half = rules.head_dim / 2;
  const auto axis = [&](std::int64_t i) {
    return i < rules.mrope_section[0] ? 0 : i < rules.mrope_section[0] + rules.mrope_section[1] ? 1 : 2;
  };
  for (std::int64_t t = 0; t < length; ++t) {
    for (std::int64_t i = 0; i < 2 * half; ++i) {
      const std::int64_t position = sample.vlm.position_ids[axis(i % half) * length + t];
      host.text_cos.push_back(table.cos(position, i % half));
      host.text_sin.push_back(table.sin(position, i % half));
    }
  }
}

void pack_rotary(HostBatch& host, std::span<const StreamSample> samples, const PackingRules& rules) {
  std::int64_t largest = 0;
  for (const auto& item : samples) {
    const auto& ids = item.sample->vlm.position_ids;
    largest = std::max(largest, *std::max_element(ids.begin(), ids.end()));
  }
  const RotaryTable table(rules.text_frequencies, largest + 1);
  for (const auto& item : samples) append_rotary(host, *item.sample, rules, table);
}

// Text rows, then sensor rows, of each sample. Rows past max_context share the last position.
void append_context(HostBatch& host, std::int64_t tokens, const PackingRules& rules) {
  const auto first = static_cast<std::int64_t>(host.context_positions.size());
  for (std::int64_t i = 0; i < tokens + rules.sensor_tokens; ++i) {
    host.context_positions.push_back(std::min(i, rules.max_context - 1));
    (i < tokens ? host.token_rows : host.sensor_rows).push_back(first + i);
  }
  host.context_lengths.push_back(tokens + rules.sensor_tokens);
}

float timestep(const PackingRules& rules, std::uint32_t word) {
  if (!rules.flow)
    return static_cast<float>((std::uint64_t{word} * static_cast<std::uint64_t>(rules.diffusion_steps)) >> 32);
  const double u = (static_cast<double>(word) + 0.5) * 0x1.0p-32;
  return static_cast<float>(0.001 +
                            0.999 * std::pow(u, 1.0 / 1.5));  // inverse of Beta(1.5, 1)'s distribution function t^1.5
}

void append_draws(HostBatch& host, std::uint64_t position, const PackingRules& rules) {
  const std::int64_t size = std::int64_t{rules.chunk} * rules.action_dim;
  const auto site = rules.evaluate ? RandomSite::kEvaluate : RandomSite::kNoise;
  for (int draw = 0; draw < rules.draws; ++draw) {
    const auto number = static_cast<std::uint32_t>(draw);
    const auto words =
        random_words(mix({rules.seed, position, number, static_cast<std::uint32_t>(RandomSite::kTimestep)}), 0);
    host.timesteps.push_back(timestep(rules, words[0]));
    const std::size_t first = host.noise.size();
    host.noise.resize(first + size);
    fill_normal({rules.seed, position, number, static_cast<std::uint32_t>(site)}, host.noise.data() + first, size);
  }
}

void append_expert(HostBatch& host, const StreamSample& item, const PackingRules& rules) {
  const Sample& sample = *item.sample;
  host.state.insert(host.state.end(), sample.state.begin(), sample.state.end());
  host.sensor.insert(host.sensor.end(), sample.sensor.begin(), sample.sensor.end());
  host.actions.insert(host.actions.end(), sample.actions.begin(), sample.actions.end());
  for (const auto pad : sample.action_is_pad) host.weight.push_back(pad != 0 ? 0.0F : 1.0F);
  append_context(host, static_cast<std::int64_t>(sample.vlm.input_ids.size()), rules);
  append_draws(host, item.position, rules);
  host.loss_weight.push_back(item.weight);
}

void require_tables(const PackingRules& rules) {
  if (static_cast<int>(rules.text_frequencies.size()) * 2 != rules.head_dim ||
      static_cast<int>(rules.vision_frequencies.size()) * 4 != rules.vision_head_dim) {
    fail(ExitCode::kUsage,
         "packing rules without rotary frequencies ({} text, {} vision): take them from Qwen::packing_rules()",
         rules.text_frequencies.size(), rules.vision_frequencies.size());
  }
}

void append_states(HostBatch& host, const Sample& sample) {
  const auto length = static_cast<std::int64_t>(sample.vlm.input_ids.size());
  append_features(host, sample.vlm.hidden_states, sample.vlm.device_states.get(), length);
  host.tokens.queries.push_back(length);
  host.sizes.tokens += length;
}

// Samples that come with their hidden states.
PackedBatch pack_cached(std::span<const StreamSample> samples, const PackingRules& rules, at::Device device) {
  HostBatch host;
  host.sizes.samples = static_cast<std::int64_t>(samples.size());
  host.sizes.cached = true;
  for (const auto& item : samples) {
    check_sample(*item.sample, rules);
    append_states(host, *item.sample);
    append_expert(host, item, rules);
  }
  return upload_all(std::move(host), rules, device);
}

}  // namespace

PackedBatch pack(std::span<const StreamSample> samples, const PackingRules& rules, at::Device device) {
  require_tables(rules);
  if (samples.empty()) fail(ExitCode::kUsage, "a micro-batch of no samples cannot be packed");
  const auto cached = std::ranges::count_if(samples, [](const auto& item) { return item.sample->vlm.has_states(); });
  if (cached == std::ssize(samples)) return pack_cached(samples, rules, device);
  if (cached > 0)
    fail(ExitCode::kUsage, "{} of {} samples of a micro-batch come with their hidden states: all must, or none", cached,
         samples.size());
  HostBatch host;
  host.sizes.samples = static_cast<std::int64_t>(samples.size());
  for (const auto& item : samples) check_sample(*item.sample, rules);
  VisionPacker vision(host, rules);
  for (const auto& item : samples) {
    vision.append(item);
    append_text(host, item, rules);
    append_expert(host, item, rules);
  }
  vision.finish();
  host.sizes.features = static_cast<std::int64_t>(host.cached_rows.size());
  pack_rotary(host, samples, rules);
  return upload_all(std::move(host), rules, device);
}

PackedBatch pack_shapes(std::span<const SampleShape> shapes, const PackingRules& rules) {
  HostBatch host;
  host.sizes.samples = static_cast<std::int64_t>(shapes.size());
  host.sizes.cached = !shapes.empty() && shapes.front().states > 0;
  for (const auto& shape : shapes) {
    const std::int64_t tokens = host.sizes.cached ? shape.states : shape.tokens;
    host.sizes.tokens += tokens;
    host.sizes.patches += shape.patches;
    host.sizes.features += shape.features;
    host.tokens.queries.push_back(tokens);
    host.context_lengths.push_back(tokens + rules.sensor_tokens);
    if (shape.patches > 0) host.frames.queries.push_back(shape.patches);
  }
  host.windows = host.frames;
  return upload_all(std::move(host), rules, at::kMeta);
}

}  // namespace plimsoll::model
