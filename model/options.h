#pragma once
// Choices about the trained part of the VLM, and how a trainable tensor is named. Shared by qwen.h and vla.h.

#include <torch/torch.h>

#include <cstdint>
#include <string>

namespace plimsoll::model {

/// Low-rank adapters, Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2021), section 4.1:
/// y = W x + (alpha / rank) B A dropout(x).
struct LoraOptions {
  int rank = 8;           ///< rows of A, at least 1
  double alpha = 16;      ///< the product is scaled by alpha / rank
  double dropout = 0.05;  ///< of the adapter's input, in [0, 1), in training only
  std::string targets =
      R"(.*language_model.*\.(q|k|v|o|gate|up|down)_proj)";  ///< full match on transformers-5 module names
};

/// How many blocks keep only their input and run again in backward: the first so many of each tower. Vision runs
/// without autograd, and then keeps nothing anyhow, unless something in it is trained.
struct Recompute {
  int language_blocks = 0;  ///< 0 .. language_blocks()
  int vision_blocks = 0;    ///< 0 .. vision_blocks()
  int expert_blocks = 0;    ///< 0 .. expert_blocks()
  bool offload = false;     ///< what recomputed language blocks keep lies in host memory (host_copy.h)
};

enum class ParameterGroup { kVlm, kExpert };  ///< learning rates vl_lr and lr

/// One trainable tensor. Names: PEFT's full key for adapters ("base_model.model....lora_A.weight"), "expert.*",
/// "sensor.*".
struct Parameter {
  std::string name;
  at::Tensor tensor;  ///< leaf, fp32, contiguous, requires_grad
  ParameterGroup group;
};

}  // namespace plimsoll::model
