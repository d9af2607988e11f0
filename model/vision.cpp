#include <algorithm>

#include "core/error.h"
#include "core/scope.h"
#include "model/recompute.h"
#include "model/towers.h"

namespace plimsoll::model {
namespace {

constexpr double kNormEps = 1e-6;  // fixed in the architecture, not in config.json

}  // namespace

Linear ModuleLoader::linear(const std::string& name, std::int64_t out, std::int64_t in, bool bias) const {
  Linear layer;
  layer.weight = weights.get(name + ".weight", {out, in});
  if (bias) layer.bias = weights.get(name + ".bias", {out});
  adapters.attach(name, layer);
  return layer;
}

VisionTower::VisionTower(const VisionConfig& config, const ModuleLoader& loader)
    : config_(config), compute_(loader.compute) {
  const std::string root = "model.visual.";
  loader.adapters.refuse(root + "patch_embed.proj", "the patch embedding is a convolution, which has no adapter here");
  patch_weight_ = loader.weights
                      .get(root + "patch_embed.proj.weight",
                           {config.hidden, config.channels, config.frames, config.patch, config.patch})
                      .view({config.hidden, config.patch_values()});
  for (int i = 0; i < config.depth; ++i) blocks_.push_back(make_block(i, loader));
  const std::int64_t merged = config.hidden * config.merge * config.merge;
  merger_norm_ = loader.weights.get(root + "merger.ln_q.weight", {config.hidden});
  merger_in_ = loader.linear(root + "merger.mlp.0", merged, merged, true);
  merger_out_ = loader.linear(root + "merger.mlp.2", config.out_hidden, merged, true);
  trainable_ = loader.adapters.any();  // the language model is built later
}

VisionTower::Block VisionTower::make_block(int index, const ModuleLoader& loader) const {
  const std::string root = fmt::format("model.visual.blocks.{}.", index);
  const std::int64_t width = config_.hidden, wide = config_.intermediate;
  const std::size_t before = loader.adapters.parameters().size();
  Block block;
  block.norm1 = loader.weights.get(root + "norm1.weight", {width});
  block.norm2 = loader.weights.get(root + "norm2.weight", {width});
  block.qkv = loader.linear(root + "attn.qkv", 3 * width, width, true);
  block.proj = loader.linear(root + "attn.proj", width, width, true);
  block.gate = loader.linear(root + "mlp.gate_proj", wide, width, true);
  block.up = loader.linear(root + "mlp.up_proj", wide, width, true);
  block.down = loader.linear(root + "mlp.down_proj", width, wide, true);
  block.full =
      std::find(config_.full_attention.begin(), config_.full_attention.end(), index) != config_.full_attention.end();
  const auto& made = loader.adapters.parameters();
  for (std::size_t i = before; i < made.size(); ++i) block.trainable.push_back(made[i].tensor);
  return block;
}

Tensor VisionTower::attend(const Block& block, Tensor x, const PackedBatch& batch, const Tensor& keys) const {
  const std::int64_t patches = x.size(0);
  const Tensor qkv = block.qkv(x, keys, compute_).view({patches, 3, config_.heads, config_.head_dim()});
  x.reset();
  const Tensor q = rotary(qkv.select(1, 0), batch.vision_cos, batch.vision_sin);
  const Tensor k = rotary(qkv.select(1, 1), batch.vision_cos, batch.vision_sin);
  const auto& segments = block.full ? batch.vision_frames : batch.vision_windows;
  return attention(q, k, qkv.select(1, 2), segments, false).view({patches, config_.hidden});
}

Tensor VisionTower::expand(const Block& block, Tensor x, const Tensor& keys) const {
  const auto wide = apply_group({&block.gate, &block.up}, x, keys, compute_);
  x.reset();
  return swiglu(wide[0], wide[1]);
}

// Sums go into the branch's result, which nothing has saved: no allocation for them. The forks (ops.h) keep the sums of
// gradients the same on meta; the normed rows are handed over so that they end where they were last read.
Tensor VisionTower::run_block(const Block& block, const Tensor& x, const PackedBatch& batch, const Tensor& keys) const {
  auto [start, normed] = rms_norm_fork(x, block.norm1, kNormEps);
  Tensor sum = block.proj(attend(block, std::move(normed), batch, keys), keys, compute_);
  sum.add_(start);
  auto [middle, normed_middle] = rms_norm_fork(sum, block.norm2, kNormEps);
  sum.reset();
  Tensor out = block.down(expand(block, std::move(normed_middle), keys), keys, compute_);
  return out.add_(middle);
}

Tensor VisionTower::merge(const Tensor& x, const Tensor& keys) const {
  const std::int64_t unit = std::int64_t{config_.merge} * config_.merge;
  const Tensor rows = rms_norm(x, merger_norm_, kNormEps).view({x.size(0) / unit, unit * config_.hidden});
  return merger_out_(gelu_erf(merger_in_(rows, keys, compute_)), keys, compute_);
}

Tensor VisionTower::forward(const PackedBatch& batch, int recomputed, bool training) const {
  const AllocationLabel label("vision");
  const Tensor none;
  const Tensor& keys = training ? batch.vision_keys : none;
  Tensor x = linear(batch.pixel_values, patch_weight_, {}, compute_);
  for (int i = 0; i < blocks(); ++i) {
    const Block& block = blocks_[i];
    const AllocationLabel of_block(numbered_label("vision.block", i));
    if (i < recomputed) {
      x = recompute([this, &block, batch, keys](const Tensor& input) { return run_block(block, input, batch, keys); },
                    x, block.trainable);
    } else {
      x = run_block(block, x, batch, keys);
    }
  }
  return gather_rows(merge(x, training ? batch.merged_keys : none), batch.vision_unpermute);
}

}  // namespace plimsoll::model
