#pragma once
// The vision-language-action model of stages 1 and 2: Qwen2.5-VL with LoRA, sensor encoder, diffusion action expert.
// train/ uses this header and model/batch.h only.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "model/batch.h"
#include "model/head_options.h"
#include "model/ops.h"
#include "model/options.h"

namespace plimsoll::model {

struct VlaOptions {
  std::string path;     ///< Hugging Face directory of the VLM
  std::string adapter;  ///< PEFT directory to start from, or empty; stage 2 only
  Precision precision;  ///< `compute` bf16: as under at::autocast, the expert's residual stream and norms in fp32
  int stage = 2;        ///< 1: VLM frozen, no LoRA; 2: with LoRA
  LoraOptions lora;
  ExpertOptions expert;
  SensorOptions sensor;
  int state_dim = 0;                ///< values of the proprioceptive state; 0: none
  int action_dim = 0;               ///< values of one action
  std::int64_t max_context = 2048;  ///< most context rows of a sample, sensor tokens included
  std::uint64_t seed = 0;           ///< of the initial expert, sensor and adapter weights
};

/// What the VLM makes of samples, and others may keep.
enum class Features {
  kImages,  ///< of their images, by vision tower and merger
  kStates,  ///< the language model's last hidden states, which the expert reads
};

/// Who is shown what a forward pass makes, as soon as it is made; neither holds on to it. Not what came with the batch.
struct Shown {
  std::function<void(const Tensor&)> image_features;  ///< of vision tower and merger, of the samples that have none
  std::function<void(const Tensor&)> hidden_states;   ///< last ones, [T, hidden], of all samples
  /// In the backward pass: what the expert's last layer read, [R, width], and the gradient of what it made, [R, A],
  /// both in the compute dtype. A sample's rows are neighbours, and all samples have as many. Not recomputed.
  std::function<void(const Tensor& rows, const Tensor& gradient)> last_layer;
};

/// The whole model on one device (CPU or meta). Not thread-safe; one per rank.
class VlaModel {
 public:
  /// Reads weights from options.path, or on `meta` only config.json (nothing of the model is allocated but shapes).
  /// Adapters and expert are initialised from options.seed, then options.adapter is read if given. Throws Error(kUsage)
  /// naming the key of an option that does not fit, Error(kData) naming the file when the VLM or the adapter cannot be
  /// read.
  VlaModel(const VlaOptions& options, at::Device device);
  ~VlaModel();

  /// Trainable tensors in a fixed order, the same on every rank. The trainer may replace each `tensor`'s storage
  /// (set_data) by a view of its flat buffer before the first step; it never replaces the Tensor object.
  const std::vector<Parameter>& parameters() const;
  /// Blocks that can be recomputed, per tower; none of the vision tower's unless adapters are in it.
  int language_blocks() const;
  int vision_blocks() const;
  int expert_blocks() const;
  const VlaOptions& options() const;

  /// What pack() must know to make batches for this model: everything is filled in. `evaluate`: one draw, noise of
  /// RandomSite::kEvaluate and no dropout, for sample_actions; else as sample_losses needs it. `seed` keys noise, times
  /// and dropout.
  PackingRules packing_rules(std::uint64_t seed, bool evaluate) const;

  /// Loss per sample [batch.samples] fp32: mean over draws and unmasked action elements of the squared error of the
  /// predicted noise (ddpm) or velocity (flow). Differentiable; training mode (dropout on). A sample's loss and
  /// gradient do not depend on what else is in the batch. In stage 1 the VLM runs without autograd and without dropout.
  /// `shown` sees what the forward pass makes. A batch that comes with its hidden states runs the expert alone, and
  /// gives adapters no gradient.
  Tensor sample_losses(const PackedBatch& batch, const Recompute& recompute, const Shown& shown = {}) const;

  /// Without autograd and dropout, in the compute dtype: [P / 4, hidden] or [T, hidden]. Undefined for images where
  /// there are none.
  Tensor encode(const PackedBatch& batch, Features which) const;

  /// Denoised action chunks [samples, chunk, action_dim] fp32 (normalised units), no autograd, dropout off. The
  /// starting noise is batch.noise of draw 0. Takes options.expert.sampling_steps steps; the VLM runs once.
  Tensor sample_actions(const PackedBatch& batch) const;

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace plimsoll::model
