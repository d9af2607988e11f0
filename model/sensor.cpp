#include "model/sensor.h"

#include "core/error.h"
#include "core/scope.h"
#include "model/expert_ops.h"

namespace plimsoll::model {
namespace {

constexpr double kEpsilon = 1e-6;

void check(const SensorOptions& o) {
  if (o.window < 1)
    fail(ExitCode::kUsage, "sensor.window is {}, but must be at least 1 for a sensor encoder", o.window);
  if (o.channels < 1) fail(ExitCode::kUsage, "sensor.channels is {}, but must be at least 1", o.channels);
  if (o.width < 1) fail(ExitCode::kUsage, "sensor.width is {}, but must be at least 1", o.width);
  if (o.patch < 1 || o.window % o.patch != 0) {
    fail(ExitCode::kUsage, "sensor.patch is {}, but must divide sensor.window ({})", o.patch, o.window);
  }
}

}  // namespace

SensorEncoder::SensorEncoder(const SensorOptions& options, std::int64_t out, ParameterList& parameters)
    : options_(options) {
  check(options);
  const std::int64_t width = options.width, hidden = 2 * width;
  patch_weight_ = parameters.weight("sensor.patch_in", width, std::int64_t{options.patch} * options.channels);
  patch_bias_ = parameters.bias("sensor.patch_in", width);
  positions_ = parameters.make("sensor.positions", {options.tokens(), width}, 0.02);
  norm_ = parameters.make("sensor.norm.weight", {width}, 0.0, 1.0);
  gate_ = parameters.weight("sensor.mlp.gate", hidden, width);
  up_ = parameters.weight("sensor.mlp.up", hidden, width);
  down_ = parameters.weight("sensor.mlp.down", width, hidden);
  out_weight_ = parameters.weight("sensor.out", out, width);
  out_bias_ = parameters.bias("sensor.out", out);
}

Tensor SensorEncoder::encode(const Tensor& sensor, at::ScalarType compute) const {
  const AllocationLabel label("sensor");
  const Tensor patches =
      sensor.view({sensor.size(0) * options_.tokens(), std::int64_t{options_.patch} * options_.channels});
  const auto [rows, normed] = rms_norm_fork(
      embed_rows(linear(patches, patch_weight_, patch_bias_, compute), {}, positions_, 1), norm_, kEpsilon);
  const auto wide = lora_linears(normed, {{gate_, {}, {}, {}, 0}, {up_, {}, {}, {}, 0}}, 1.0F, {}, compute);
  const Tensor hidden = swiglu(wide[0], wide[1]);
  return linear(gated_residual(rows, linear(hidden, down_, {}, compute), {}), out_weight_, out_bias_, compute);
}

}  // namespace plimsoll::model
