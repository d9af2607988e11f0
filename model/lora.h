#pragma once
// Linear layers of the frozen base and the low-rank adapters on them.

#include <torch/torch.h>

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <regex>
#include <string>
#include <vector>

#include "model/ops.h"
#include "model/options.h"

namespace plimsoll::model {

/// One linear layer: y = x W^T + bias, plus scale * (dropout(x) A^T) B^T when it is adapted. Base tensors require no
/// gradient.
struct Linear {
  Tensor weight;           ///< [out, in], frozen
  Tensor bias;             ///< [out] or undefined
  Tensor a, b;             ///< [rank, in], [out, rank] fp32, trainable; undefined without an adapter
  float scale = 0.0F;      ///< alpha / rank
  float rate = 0.0F;       ///< dropout of the adapter's input
  std::uint32_t site = 0;  ///< RandomSite::kDropout + number of the adapter

  bool adapted() const { return a.defined(); }

  /// `keys`: dropout keys of x's rows (ops.h, Dropout), undefined: no dropout. Result in `compute`. `values`: see
  /// lora_linear; without an adapter they are always computed.
  Tensor operator()(const Tensor& x, const Tensor& keys, at::ScalarType compute, bool values = true) const;
};

/// Several layers that read the same x, with or without adapters: x is saved once for all of them. Results in the order
/// of `layers`.
std::vector<Tensor> apply_group(std::initializer_list<const Linear*> layers, const Tensor& x, const Tensor& keys,
                                at::ScalarType compute);

/// Makes the adapters while the model is built, in the order of calls. Without options it makes none.
class AdapterSet {
 public:
  /// `options` null: no adapters. Throws Error(kUsage) for a rank below 1, a dropout outside [0, 1) or a pattern that
  /// is no regular expression (ECMAScript's; the same as Python's for what module names need).
  AdapterSet(const LoraOptions* options, std::uint64_t seed, at::Device device);

  /// Gives `linear` an adapter if the pattern matches all of `module`
  /// ("model.language_model.layers.0.self_attn.q_proj"). A uniform in +-1/sqrt(in), which is kaiming_uniform with a =
  /// sqrt 5, keyed by (seed, adapter number); B zero.
  void attach(const std::string& module, Linear& linear);

  /// Throws Error(kUsage) if the pattern matches `module`, which has no adapter here; `why` says so.
  void refuse(const std::string& module, const char* why) const;

  /// Throws Error(kUsage) if there are options but nothing was matched.
  void finish() const;

  /// A before B, in the order of attach: the same on every rank.
  const std::vector<Parameter>& parameters() const { return parameters_; }
  bool any() const { return !parameters_.empty(); }

 private:
  bool matches(const std::string& module) const;
  Tensor make(const std::string& name, at::IntArrayRef shape, const std::vector<float>& values);

  std::unique_ptr<const LoraOptions> options_;
  std::regex pattern_;
  std::uint64_t seed_;
  at::Device device_;
  std::vector<Parameter> parameters_;
};

/// PEFT's key of a module's adapter: "base_model.model.<module>.lora_<matrix>.weight".
std::string adapter_key(const std::string& module, char matrix);

}  // namespace plimsoll::model
