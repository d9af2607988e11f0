#pragma once
// The sensor encoder: a window of channels (force, touch, joint currents) becomes a few tokens of the context.

#include <torch/torch.h>

#include "model/head_options.h"
#include "model/initial.h"
#include "model/ops.h"

namespace plimsoll::model {

/// Patches of `patch` time steps -> linear (a strided convolution over unfolded input) -> + learned positions -> one
/// pre-norm gated MLP with a residual -> linear to the context's width.
class SensorEncoder {
 public:
  /// Makes "sensor.*" in `parameters`. `out` is the width of a token. Throws Error(kUsage) naming the key when the
  /// options do not fit each other.
  SensorEncoder(const SensorOptions& options, std::int64_t out, ParameterList& parameters);

  /// sensor: [samples, window, channels] fp32, contiguous -> [samples * window / patch, out] in `compute`.
  Tensor encode(const Tensor& sensor, at::ScalarType compute) const;

 private:
  SensorOptions options_;
  Tensor patch_weight_, patch_bias_, positions_, norm_, gate_, up_, down_, out_weight_, out_bias_;
};

}  // namespace plimsoll::model
