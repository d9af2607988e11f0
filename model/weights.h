#pragma once
// The frozen weights of a Qwen2.5-VL directory: one safetensors file or the shards of an index, read through mmap
// straight into tensors of the wanted dtype on the wanted device. There is never a second copy of a tensor in a
// budgeted allocator.
//
// Two key layouts exist: "visual.*", "model.layers.*" (the hub) and "model.visual.*", "model.language_model.*" (what
// transformers 5 has in memory). Names here are the latter. lm_head and rotary buffers are ignored: nothing here
// computes logits, and rotary frequencies are computed from the configuration.

#include <torch/torch.h>

#include <memory>
#include <string>
#include <string_view>

#include "model/ops.h"

namespace plimsoll::model {

class WeightSource {
 public:
  /// On meta, `dir` is not opened and tensors are shapes. Throws Error(kData) when there is neither
  /// model.safetensors.index.json nor model.safetensors, or a shard is missing or damaged.
  WeightSource(const std::string& dir, at::ScalarType dtype, at::Device device);
  ~WeightSource();

  /// The tensor `name`, converted from fp32, bf16 or fp16 to the source's dtype, round to nearest even; labelled
  /// "weights". Throws Error(kData) naming file and tensor when it is missing or has another shape, or a dtype that is
  /// no float.
  Tensor get(const std::string& name, at::IntArrayRef shape);

  /// Throws Error(kData) naming a tensor that nobody asked for.
  void finish() const;

 private:
  struct Files;
  std::unique_ptr<Files> files_;
  at::ScalarType dtype_;
  at::Device device_;
};

/// `name` in either key layout -> transformers 5's; "" for tensors that are ignored.
std::string canonical_name(std::string_view name);

}  // namespace plimsoll::model
