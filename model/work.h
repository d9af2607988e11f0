#pragma once
// How much there is to compute in one sample, before anything is timed. No torch in here.

#include "core/sample.h"
#include "model/head_options.h"
#include "model/qwen_config.h"

namespace plimsoll::model {

/// Multiply-adds of the matrix products with weights in one sample's forward, by tower. Attention's own products, rows
/// of sensors, norms and activations are left out: it is for comparing towers, not for a count of FLOPs.
struct ForwardWork {
  double vision = 0, language = 0, expert = 0;

  /// Of a step in which the language model's adapters and the expert learn: gradients of the language model's inputs
  /// cost as much as its forward, those of the expert's inputs and weights twice as much; the vision tower has none.
  double step() const { return vision + 2 * language + 3 * expert; }
};
ForwardWork forward_work(const QwenConfig& model, const ExpertOptions& expert, const SampleShape& sample);

}  // namespace plimsoll::model
