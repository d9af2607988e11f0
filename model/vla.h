#pragma once
// The vision-language-action model of stages 1 and 2: Qwen2.5-VL with LoRA, sensor encoder, diffusion action expert.
// train/ uses this header and model/batch.h only.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "model/batch.h"
#include "model/ops.h"
#include "model/options.h"

namespace plimsoll::model {

struct ExpertOptions {
  std::string kind = "ddpm";  ///< or "flow"
  int width = 768, depth = 12, heads = 12;
  int draws = 4;              ///< noise draws per VLM forward
  int chunk = 16;             ///< actions predicted at once
  int diffusion_steps = 100;  ///< ddpm: squaredcos_cap_v2
  int sampling_steps = 10;    ///< DDIM or Euler steps when acting
};

struct SensorOptions {
  int window = 0;    ///< time steps; 0: no sensor
  int channels = 0;
  int patch = 4;     ///< time steps per token
  int width = 128;
};

struct VlaOptions {
  std::string path;  ///< Hugging Face directory of the VLM
  std::string adapter;  ///< PEFT directory to start from, or empty
  Precision precision;
  int stage = 2;     ///< 1: VLM frozen, no LoRA; 2: with LoRA
  LoraOptions lora;
  ExpertOptions expert;
  SensorOptions sensor;
  int state_dim = 0, action_dim = 0;
  std::int64_t max_context = 2048;  ///< context tokens of a sample that have a position of their own
  std::uint64_t seed = 0;           ///< of the initial expert, sensor and adapter weights
};

/// The whole model on one device (CPU or meta). Not thread-safe; one per rank.
class VlaModel {
 public:
  /// Reads weights from options.path, or on `meta` only config.json (nothing of the model is allocated but shapes).
  /// Adapters and expert are initialised from options.seed, then options.adapter is read if given.
  VlaModel(const VlaOptions& options, at::Device device);
  ~VlaModel();

  /// Trainable tensors in a fixed order, the same on every rank. The trainer may replace each `tensor`'s storage
  /// (set_data) by a view of its flat buffer before the first step; it never replaces the Tensor object.
  const std::vector<Parameter>& parameters() const;
  int language_blocks() const;
  const VlaOptions& options() const;

  /// Loss per sample [batch.samples] fp32: mean over draws and unmasked action elements of the squared error of the
  /// predicted noise (ddpm) or velocity (flow). Differentiable; training mode (dropout on).
  Tensor sample_losses(const PackedBatch& batch, const Recompute& recompute) const;

  /// Denoised action chunks [samples, chunk, action_dim] fp32 (normalised units), no autograd, dropout off. The starting
  /// noise is batch.noise of draw 0.
  Tensor sample_actions(const PackedBatch& batch) const;

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace plimsoll::model
