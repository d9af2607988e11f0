#pragma once
// LoRA adapters on disk in PEFT's format: adapter_config.json and adapter_model.safetensors.
//
// Written with the module names of transformers 5 (and 4.52 on): "base_model.model.model.language_model.layers.0...".
// Read with those and with older ones ("base_model.model.model.layers.0...", "base_model.model.visual.blocks.0..."), in
// fp32, bf16 or fp16.

#include <torch/torch.h>

#include <string>
#include <vector>

#include "core/error.h"
#include "model/ops.h"
#include "model/options.h"

namespace plimsoll::model {

/// The options that an adapter was trained with, from DIR/adapter_config.json. `targets` is the pattern, or made from a
/// list of name endings. Throws Error(kData) naming file and key when it is missing, no LORA, or uses a variant that is
/// not computed here (DoRA, rank-stabilised scaling, biases, per-layer ranks, layer choices, modules saved in full).
LoraOptions read_adapter_options(const std::string& dir);

/// Fills `adapters` (of a model built with `options`) from DIR. Throws Error(kData) naming file, key and value when
/// rank or alpha differ from `options`, a tensor is missing, unexpected or of another shape, or a value is not finite.
/// On an error some tensors may be filled.
void load_adapter(const std::string& dir, const LoraOptions& options, const std::vector<Parameter>& adapters);

/// Writes both files into the existing folder DIR, fp32, each durably. `base_model` is recorded as
/// base_model_name_or_path. Host memory: one copy of the adapters if they are not on the CPU. Throws Error(code).
void save_adapter(const std::string& dir, const LoraOptions& options, const std::vector<Parameter>& adapters,
                  const std::string& base_model, ExitCode code = ExitCode::kCheckpoint);

}  // namespace plimsoll::model
