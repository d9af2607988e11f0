#include <algorithm>

#include "core/error.h"
#include "core/scope.h"
#include "model/recompute.h"
#include "model/towers.h"

namespace plimsoll::model {

LanguageModel::LanguageModel(const TextConfig& config, const ModuleLoader& loader)
    : config_(config), compute_(loader.compute) {
  const std::string root = "model.language_model.";
  loader.adapters.refuse(root + "embed_tokens", "embeddings have no adapter here");
  loader.adapters.refuse("lm_head", "the language head is not computed here");
  embedding_ = loader.weights.get(root + "embed_tokens.weight", {config.vocabulary, config.hidden});
  for (int i = 0; i < config.layers; ++i) blocks_.push_back(make_block(i, loader));
  norm_ = loader.weights.get(root + "norm.weight", {config.hidden});
}

LanguageModel::Block LanguageModel::make_block(int index, const ModuleLoader& loader) const {
  const std::string root = fmt::format("model.language_model.layers.{}.", index);
  const std::int64_t width = config_.hidden, wide = config_.intermediate,
                     kv = std::int64_t{config_.kv_heads} * config_.head_dim();
  const std::size_t before = loader.adapters.parameters().size();
  Block block;
  block.norm1 = loader.weights.get(root + "input_layernorm.weight", {width});
  block.norm2 = loader.weights.get(root + "post_attention_layernorm.weight", {width});
  block.q = loader.linear(root + "self_attn.q_proj", width, width, true);
  block.k = loader.linear(root + "self_attn.k_proj", kv, width, true);
  block.v = loader.linear(root + "self_attn.v_proj", kv, width, true);
  block.o = loader.linear(root + "self_attn.o_proj", width, width, false);
  block.gate = loader.linear(root + "mlp.gate_proj", wide, width, false);
  block.up = loader.linear(root + "mlp.up_proj", wide, width, false);
  block.down = loader.linear(root + "mlp.down_proj", width, wide, false);
  const auto& made = loader.adapters.parameters();
  for (std::size_t i = before; i < made.size(); ++i) block.trainable.push_back(made[i].tensor);
  return block;
}

Tensor LanguageModel::embed(const PackedBatch& batch, const Tensor& image_features) const {
  Tensor x = gather_rows(embedding_, batch.input_ids);
  if (x.scalar_type() != compute_) x = x.to(compute_);
  if (image_features.defined()) x = place_rows(x, batch.image_rows, image_features);
  if (batch.cached_features.defined()) x = place_rows(x, batch.cached_rows, batch.cached_features);
  return x;
}

Tensor LanguageModel::attend(const Block& block, Tensor x, const PackedBatch& batch, const Tensor& keys) const {
  const std::int64_t tokens = x.size(0), width = config_.head_dim();
  auto qkv = apply_group({&block.q, &block.k, &block.v}, x, keys, compute_);
  x.reset();
  const Tensor v = qkv[2].view({tokens, config_.kv_heads, width});
  const Tensor q = rotary(qkv[0].view({tokens, config_.heads, width}), batch.text_cos, batch.text_sin);
  const Tensor k = rotary(qkv[1].view({tokens, config_.kv_heads, width}), batch.text_cos, batch.text_sin);
  qkv.clear();  // rotated copies are all that attention needs
  return attention(q, k, v, batch.tokens, true).view({tokens, config_.hidden});
}

Tensor LanguageModel::expand(const Block& block, Tensor x, const Tensor& keys) const {
  const auto wide = apply_group({&block.gate, &block.up}, x, keys, compute_);
  x.reset();
  return swiglu(wide[0], wide[1]);
}

// Sums go into the branch's result, which nothing has saved: no allocation for them. The forks (ops.h) keep the sums of
// gradients the same on meta; the normed rows are handed over so that they end where they were last read.
Tensor LanguageModel::run_block(const Block& block, const Tensor& x, const PackedBatch& batch, const Tensor& keys,
                                bool values) const {
  auto [start, normed] = rms_norm_fork(x, block.norm1, config_.norm_eps);
  Tensor sum = block.o(attend(block, std::move(normed), batch, keys), keys, compute_);
  sum.add_(start);
  auto [middle, normed_middle] = rms_norm_fork(sum, block.norm2, config_.norm_eps);
  sum.reset();
  Tensor out = block.down(expand(block, std::move(normed_middle), keys), keys, compute_, values);
  return out.add_(middle);
}

Tensor LanguageModel::run_labelled(const Block& block, const Tensor& x, const PackedBatch& batch, const Tensor& keys,
                                   bool values) const {
  const AllocationLabel label("language.recompute");
  return run_block(block, x, batch, keys, values);
}

Tensor LanguageModel::forward(const PackedBatch& batch, const Tensor& image_features, const Recompute& settings,
                              bool training) const {
  const AllocationLabel label("language");
  const auto on_host = settings.offload ? std::make_shared<HostChain>() : nullptr;
  const Tensor none;
  const Tensor& keys = training ? batch.dropout_keys : none;
  Tensor x = embed(batch, image_features);
  for (int i = 0; i < blocks(); ++i) {
    const Block& block = blocks_[i];
    const AllocationLabel of_block(numbered_label("language.block", i));
    if (i < settings.language_blocks) {
      // Captured by value: the batch's tensors must outlive this call, and they are only references.
      const auto run = [this, &block, batch, keys](bool values) {
        return [this, &block, batch, keys, values](const Tensor& input) {
          return run_labelled(block, input, batch, keys, values);
        };
      };
      x = recompute(run(true), x, block.trainable, on_host, run(false));
    } else {
      x = run_block(block, x, batch, keys, true);
    }
  }
  return rms_norm(x, norm_, config_.norm_eps);
}

}  // namespace plimsoll::model
