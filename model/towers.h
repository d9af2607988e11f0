#pragma once
// The two halves of Qwen2.5-VL as qwen.cpp puts them together: vision tower with merger, and language model. Internal
// to the room.

#include <torch/torch.h>

#include <string>
#include <vector>

#include "model/batch.h"
#include "model/lora.h"
#include "model/ops.h"
#include "model/qwen_config.h"
#include "model/weights.h"

namespace plimsoll::model {

/// Where modules get their tensors and adapters from while a model is built.
struct ModuleLoader {
  WeightSource& weights;
  AdapterSet& adapters;
  at::ScalarType compute;

  Linear linear(const std::string& name, std::int64_t out, std::int64_t in, bool bias) const;
};

/// Patch embedding, blocks with window or full attention, merger. All fields by value; built once.
class VisionTower {
 public:
  VisionTower(const VisionConfig& config, const ModuleLoader& loader);

  /// True when an adapter is in here: then it runs with autograd.
  bool trainable() const { return trainable_; }
  int blocks() const { return static_cast<int>(blocks_.size()); }

  /// [P / 4, out_hidden] in image order, from batch.pixel_values in window order. Blocks 0 .. recomputed-1 keep only
  /// their input for backward.
  Tensor forward(const PackedBatch& batch, int recomputed, bool training) const;

 private:
  struct Block {
    Tensor norm1, norm2;
    Linear qkv, proj, gate, up, down;
    bool full = false;              ///< attends to the whole frame
    std::vector<Tensor> trainable;  ///< the block's adapters, inputs of its recompute function
  };
  Block make_block(int index, const ModuleLoader& loader) const;
  Tensor attend(const Block& block, Tensor x, const PackedBatch& batch, const Tensor& keys) const;
  Tensor expand(const Block& block, Tensor x, const Tensor& keys) const;
  Tensor run_block(const Block& block, const Tensor& x, const PackedBatch& batch, const Tensor& keys) const;
  Tensor merge(const Tensor& x, const Tensor& keys) const;

  VisionConfig config_;
  at::ScalarType compute_;
  Tensor patch_weight_;  ///< [hidden, 1176]: the convolution over a whole patch is a product
  std::vector<Block> blocks_;
  Tensor merger_norm_;
  Linear merger_in_, merger_out_;
  bool trainable_ = false;
};

/// Embedding, decoder blocks, final norm.
class LanguageModel {
 public:
  LanguageModel(const TextConfig& config, const ModuleLoader& loader);
  int blocks() const { return static_cast<int>(blocks_.size()); }

  /// [T, hidden] after the final norm. The first recompute.language_blocks blocks keep only their input for backward.
  Tensor forward(const PackedBatch& batch, const Tensor& image_features, const Recompute& recompute,
                 bool training) const;

 private:
  struct Block {
    Tensor norm1, norm2;
    Linear q, k, v, o, gate, up, down;
    std::vector<Tensor> trainable;  ///< the block's adapters, inputs of its recompute function
  };
  Block make_block(int index, const ModuleLoader& loader) const;
  Tensor embed(const PackedBatch& batch, const Tensor& image_features) const;
  Tensor attend(const Block& block, Tensor x, const PackedBatch& batch, const Tensor& keys) const;
  Tensor expand(const Block& block, Tensor x, const Tensor& keys) const;
  /// Without `values` only the graph is wanted: those of the result mean nothing.
  Tensor run_block(const Block& block, const Tensor& x, const PackedBatch& batch, const Tensor& keys,
                   bool values) const;
  Tensor run_labelled(const Block& block, const Tensor& x, const PackedBatch& batch, const Tensor& keys,
                      bool values) const;

  TextConfig config_;
  at::ScalarType compute_;
  Tensor embedding_;
  std::vector<Block> blocks_;
  Tensor norm_;
};

}  // namespace plimsoll::model
