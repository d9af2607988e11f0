#include "model/init_model.h"

#include <ATen/Parallel.h>
#include <c10/util/BFloat16.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <vector>

#include "core/error.h"
#include "core/file.h"
#include "core/hash.h"
#include "core/philox.h"
#include "core/safetensors.h"

namespace plimsoll::model {
namespace {

constexpr std::int64_t kPiece = 1 << 20;  // values drawn at once

struct Plan {
  std::string name;
  std::vector<std::int64_t> shape;
  float mean, deviation;
  std::int64_t count() const {
    std::int64_t n = 1;
    for (const auto size : shape) n *= size;
    return n;
  }
};

class Plans {
 public:
  void linear(const std::string& name, std::int64_t out, std::int64_t in, bool bias) {
    const auto scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(in)));
    all.push_back({name + ".weight", {out, in}, 0.0F, scale});
    if (bias) all.push_back({name + ".bias", {out}, 0.0F, 0.02F});
  }
  void norm(const std::string& name, std::int64_t width) { all.push_back({name + ".weight", {width}, 1.0F, 0.1F}); }
  std::vector<Plan> all;
};

void plan_vision(Plans& plans, const VisionConfig& v) {
  const auto scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(v.patch_values())));
  plans.all.push_back(
      {"visual.patch_embed.proj.weight", {v.hidden, v.channels, v.frames, v.patch, v.patch}, 0.0F, scale});
  for (int i = 0; i < v.depth; ++i) {
    const std::string root = fmt::format("visual.blocks.{}.", i);
    plans.norm(root + "norm1", v.hidden);
    plans.norm(root + "norm2", v.hidden);
    plans.linear(root + "attn.qkv", 3 * v.hidden, v.hidden, true);
    plans.linear(root + "attn.proj", v.hidden, v.hidden, true);
    plans.linear(root + "mlp.gate_proj", v.intermediate, v.hidden, true);
    plans.linear(root + "mlp.up_proj", v.intermediate, v.hidden, true);
    plans.linear(root + "mlp.down_proj", v.hidden, v.intermediate, true);
  }
  const std::int64_t merged = v.hidden * v.merge * v.merge;
  plans.norm("visual.merger.ln_q", v.hidden);
  plans.linear("visual.merger.mlp.0", merged, merged, true);
  plans.linear("visual.merger.mlp.2", v.out_hidden, merged, true);
}

void plan_text(Plans& plans, const TextConfig& t) {
  const std::int64_t kv = std::int64_t{t.kv_heads} * t.head_dim();
  plans.all.push_back({"model.embed_tokens.weight", {t.vocabulary, t.hidden}, 0.0F, 0.5F});
  for (int i = 0; i < t.layers; ++i) {
    const std::string root = fmt::format("model.layers.{}.", i);
    plans.norm(root + "input_layernorm", t.hidden);
    plans.norm(root + "post_attention_layernorm", t.hidden);
    plans.linear(root + "self_attn.q_proj", t.hidden, t.hidden, true);
    plans.linear(root + "self_attn.k_proj", kv, t.hidden, true);
    plans.linear(root + "self_attn.v_proj", kv, t.hidden, true);
    plans.linear(root + "self_attn.o_proj", t.hidden, t.hidden, false);
    plans.linear(root + "mlp.gate_proj", t.intermediate, t.hidden, false);
    plans.linear(root + "mlp.up_proj", t.intermediate, t.hidden, false);
    plans.linear(root + "mlp.down_proj", t.hidden, t.intermediate, false);
  }
  plans.norm("model.norm", t.hidden);
}

// In pieces, each with a draw of its own, so that threads share the work and the values do not depend on their number.
template <class T>
std::vector<std::byte> draw(const Plan& plan, std::uint64_t seed) {
  const std::uint64_t name = xxh3_64(std::as_bytes(std::span(plan.name)));
  std::vector<std::byte> bytes(plan.count() * sizeof(T));
  at::parallel_for(0, (plan.count() + kPiece - 1) / kPiece, 1, [&](std::int64_t begin, std::int64_t end) {
    std::vector<float> values(std::min(plan.count(), kPiece));
    for (std::int64_t piece = begin; piece < end; ++piece) {
      const std::int64_t first = piece * kPiece, n = std::min(kPiece, plan.count() - first);
      fill_normal({seed, name, static_cast<std::uint32_t>(piece), static_cast<std::uint32_t>(RandomSite::kInit)},
                  values.data(), n);
      for (std::int64_t i = 0; i < n; ++i) {
        const T value(plan.mean + plan.deviation * values[i]);
        std::memcpy(bytes.data() + (first + i) * sizeof(T), &value, sizeof(T));
      }
    }
  });
  return bytes;
}

TensorSource source(const Plan& plan, const InitOptions& options) {
  TensorSource tensor{plan.name, options.bf16 ? "BF16" : "F32", plan.shape, {}, nullptr};
  const std::uint64_t seed = options.seed;
  if (options.bf16) {
    tensor.make = [plan, seed] { return draw<c10::BFloat16>(plan, seed); };
  } else {
    tensor.make = [plan, seed] { return draw<float>(plan, seed); };
  }
  return tensor;
}

std::vector<std::vector<Plan>> cut_shards(const std::vector<Plan>& plans, const InitOptions& options) {
  std::vector<std::vector<Plan>> shards(1);
  std::int64_t size = 0;
  for (const auto& plan : plans) {
    const std::int64_t bytes = plan.count() * (options.bf16 ? 2 : 4);
    if (size + bytes > options.shard_bytes && !shards.back().empty()) {
      shards.emplace_back();
      size = 0;
    }
    shards.back().push_back(plan);
    size += bytes;
  }
  return shards;
}

void write_shard(const std::string& file, const std::vector<Plan>& plans, const InitOptions& options) {
  std::vector<TensorSource> tensors;
  for (const auto& plan : plans) tensors.push_back(source(plan, options));
  write_safetensors(std::filesystem::path(options.dir) / file, std::move(tensors), {{"format", "pt"}}, ExitCode::kData);
}

void write_weights(const std::vector<Plan>& plans, const InitOptions& options) {
  const auto shards = cut_shards(plans, options);
  if (shards.size() == 1) return write_shard("model.safetensors", shards[0], options);
  nlohmann::json map;
  std::int64_t total = 0;
  for (std::size_t i = 0; i < shards.size(); ++i) {
    const std::string file = fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
    write_shard(file, shards[i], options);
    for (const auto& plan : shards[i]) {
      map[plan.name] = file;
      total += plan.count() * (options.bf16 ? 2 : 4);
    }
  }
  const nlohmann::json index{{"metadata", {{"total_size", total}}}, {"weight_map", map}};
  write_file_durably(std::filesystem::path(options.dir) / "model.safetensors.index.json", index.dump(2) + "\n",
                     ExitCode::kData);
}

void make_empty_folder(const std::string& dir) {
  std::error_code error;
  std::filesystem::create_directories(dir, error);
  if (error) fail(ExitCode::kData, "{}: cannot be made: {}", dir, error.message());
  if (!std::filesystem::is_empty(dir, error) || error) {
    fail(ExitCode::kUsage, "{}: is there and is not an empty folder: give another, or empty it", dir);
  }
}

QwenConfig tiny() {
  QwenConfig c;
  c.vision = {.depth = 4, .hidden = 64, .intermediate = 128, .heads = 4, .out_hidden = 128, .full_attention = {1, 3}};
  c.text = {
      .vocabulary = 1024, .hidden = 128, .intermediate = 256, .layers = 4, .heads = 4, .kv_heads = 2, .norm_eps = 1e-6};
  c.text.mrope_section = {4, 6, 6};
  return c;
}

QwenConfig wide() {
  QwenConfig c;
  c.vision = {.depth = 4, .hidden = 256, .intermediate = 512, .heads = 4, .out_hidden = 1024, .full_attention = {1, 3}};
  c.text = {.vocabulary = 1024,
            .hidden = 1024,
            .intermediate = 2816,
            .layers = 4,
            .heads = 8,
            .kv_heads = 2,
            .norm_eps = 1e-6};
  return c;
}

QwenConfig three_b() {
  QwenConfig c;
  c.vision = {.depth = 32, .hidden = 1280, .intermediate = 3420, .heads = 16, .out_hidden = 2048};
  c.text = {.vocabulary = 151936,
            .hidden = 2048,
            .intermediate = 11008,
            .layers = 36,
            .heads = 16,
            .kv_heads = 2,
            .norm_eps = 1e-6};
  return c;
}

}  // namespace

QwenConfig init_config(const std::string& size, int layers) {
  if (size != "tiny" && size != "wide" && size != "3b") {
    fail(ExitCode::kUsage, "--size {}: unknown size: give tiny, wide or 3b", size);
  }
  QwenConfig config = size == "tiny" ? tiny() : size == "wide" ? wide() : three_b();
  const std::int64_t full = 151665;  // ids that Qwen's tokenizer uses
  config.image_token_id = std::min(config.text.vocabulary, full) - 22 + 12;
  if (layers > 0) {
    config.vision.depth = std::min(config.vision.depth, layers);
    config.text.layers = std::min(config.text.layers, layers);
  }
  return config;
}

void write_random_checkpoint(const QwenConfig& config, const InitOptions& options) {
  make_empty_folder(options.dir);
  Plans plans;
  plan_vision(plans, config.vision);
  plan_text(plans, config.text);
  write_weights(plans.all, options);
  const auto json = qwen_config_json(config, options.bf16 ? "bfloat16" : "float32");
  write_file_durably(std::filesystem::path(options.dir) / "config.json", json.dump(2) + "\n", ExitCode::kData);
}

}  // namespace plimsoll::model
