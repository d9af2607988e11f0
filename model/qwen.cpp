#include "model/qwen.h"

#include <optional>

#include "core/error.h"
#include "model/towers.h"

namespace plimsoll::model {
namespace {

// As transformers computes them, operator by operator in fp32: angles at large positions show every rounding.
std::vector<float> rotary_frequencies(double theta, int width) {
  const at::NoGradGuard no_grad;
  const Tensor exponent = at::arange(0, width, 2, at::TensorOptions().dtype(at::kFloat)) / static_cast<double>(width);
  const Tensor frequencies = at::reciprocal(at::pow(theta, exponent)).contiguous();
  const float* values = frequencies.const_data_ptr<float>();
  return {values, values + frequencies.numel()};
}

void require_blocks(const char* tower, int wanted, int there) {
  if (wanted >= 0 && wanted <= there) return;
  fail(ExitCode::kUsage, "recompute {} {} blocks: the model has {}", wanted, tower, there);
}

}  // namespace

struct Qwen::Parts {
  QwenConfig config;
  Precision precision;
  AdapterSet adapters;
  std::optional<WeightSource> weights;  // closed when everything is read
  VisionTower vision;
  LanguageModel language;
  PackingRules rules;

  Parts(const std::string& dir, const Precision& given, const LoraOptions* lora, std::uint64_t seed, at::Device device)
      : config(read_qwen_config(dir)),
        precision(given),
        adapters(lora, seed, device),
        weights(std::in_place, dir, given.weights, device),
        vision(config.vision, loader()),
        language(config.text, loader()) {
    weights->finish();
    weights.reset();
    adapters.finish();
    fill_rules();
  }

  ModuleLoader loader() { return {*weights, adapters, precision.compute}; }

  void fill_rules() {
    const auto& v = config.vision;
    const auto& t = config.text;
    rules.image_token_id = config.image_token_id;
    rules.vocabulary = t.vocabulary;
    rules.merge = v.merge;
    rules.window = v.window;
    rules.patch = v.patch;
    rules.patch_values = static_cast<int>(v.patch_values());
    rules.vision_head_dim = v.head_dim();
    rules.head_dim = t.head_dim();
    rules.mrope_section = t.mrope_section;
    rules.vision_frequencies = rotary_frequencies(v.rope_theta, v.head_dim() / 2);
    rules.text_frequencies = rotary_frequencies(t.rope_theta, t.head_dim());
    rules.compute = precision.compute;
    rules.hidden = t.hidden;
    rules.vision_dropout = vision.trainable();
  }
};

Qwen::Qwen(const std::string& dir, const Precision& precision, const LoraOptions* lora, std::uint64_t seed,
           at::Device device)
    : parts_(std::make_unique<Parts>(dir, precision, lora, seed, device)) {}

Qwen::~Qwen() = default;

std::int64_t Qwen::hidden_size() const { return parts_->config.text.hidden; }
int Qwen::language_blocks() const { return parts_->language.blocks(); }
int Qwen::vision_blocks() const { return parts_->vision.trainable() ? parts_->vision.blocks() : 0; }
const QwenConfig& Qwen::config() const { return parts_->config; }
PackingRules Qwen::packing_rules() const { return parts_->rules; }
const std::vector<Parameter>& Qwen::adapters() const { return parts_->adapters.parameters(); }

Tensor Qwen::image_features(const PackedBatch& batch, const Recompute& recompute, bool training) const {
  require_blocks("vision", recompute.vision_blocks, parts_->vision.blocks());
  if (!batch.pixel_values.defined()) return {};
  const c10::AutoGradMode grad(at::GradMode::is_enabled() && parts_->vision.trainable());
  return parts_->vision.forward(batch, recompute.vision_blocks, training);
}

Tensor Qwen::hidden_states(const PackedBatch& batch, const Tensor& image_features, const Recompute& recompute,
                           bool training) const {
  require_blocks("language", recompute.language_blocks, language_blocks());
  return parts_->language.forward(batch, image_features, recompute, training);
}

}  // namespace plimsoll::model
