#pragma once
// Qwen2.5-VL without its language head: vision tower, merger, language model, frozen, with optional LoRA adapters.
//
// Reads a Hugging Face directory as it is. Works on packed batches (model/batch.h). With Precision compute = fp32 it is
// the computation of transformers' Qwen2_5_VLModel in fp32; with bf16 every tensor between operators is bf16 as there,
// norms, softmax and the vision rotation are fp32 inside.
//
// Bai et al., "Qwen2.5-VL Technical Report" (2025): window attention and M-RoPE, section 2.1.

#include <torch/torch.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "model/batch.h"
#include "model/ops.h"
#include "model/options.h"

namespace plimsoll::model {

struct QwenConfig;  // model/qwen_config.h

/// The VLM on one device (CPU or meta). Immutable but for the values of its adapters. Not thread-safe; one per rank.
class Qwen {
 public:
  /// Reads config.json and the weights of `dir`; on meta only config.json, and tensors are shapes. `lora` null: no
  /// adapters, and nothing here ever requires a gradient. Adapters: A uniform in +-1/sqrt(in) (kaiming_uniform with a =
  /// sqrt 5) from `seed`, B zero. Throws Error(kData) naming the file and tensor when the directory is no Qwen2.5-VL or
  /// its tensors do not fit, Error(kUsage) when lora->targets matches nothing or something that cannot be adapted.
  Qwen(const std::string& dir, const Precision& precision, const LoraOptions* lora, std::uint64_t seed,
       at::Device device);
  ~Qwen();

  std::int64_t hidden_size() const;  ///< width of hidden_states and image_features
  int language_blocks() const;
  /// Of the vision tower that can be recomputed: none unless adapters are in it.
  int vision_blocks() const;
  const QwenConfig& config() const;

  /// Packing rules with all that the VLM knows filled in; actions, sensor, diffusion, dropout seed are left to the
  /// caller.
  PackingRules packing_rules() const;

  /// The adapters' tensors under PEFT's names, A before B, block by block: the same order on every rank. Empty without
  /// LoRA.
  const std::vector<Parameter>& adapters() const;

  /// [P / 4, hidden_size] in the dtype `compute`, rows in original image order: vision tower and merger. Undefined
  /// without images. Runs without autograd unless an adapter is in the vision part.
  Tensor image_features(const PackedBatch& batch, const Recompute& recompute = {}, bool training = false) const;

  /// [T, hidden_size] in the dtype `compute`: the language model after its final norm, image features in place of the
  /// image tokens' embeddings. `training` turns dropout on (batch.dropout_keys must be there then). `recompute` says
  /// which blocks keep only their input for backward; more blocks than there are is Error(kUsage).
  Tensor hidden_states(const PackedBatch& batch, const Tensor& image_features, const Recompute& recompute,
                       bool training) const;

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace plimsoll::model
