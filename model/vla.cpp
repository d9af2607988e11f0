#include "model/vla.h"

#include <optional>

#include "core/error.h"
#include "core/scope.h"
#include "model/diffusion.h"
#include "model/expert.h"
#include "model/initial.h"
#include "model/peft.h"
#include "model/qwen.h"
#include "model/sensor.h"

namespace plimsoll::model {
namespace {

void check(const VlaOptions& o) {
  if (o.stage != 1 && o.stage != 2) fail(ExitCode::kUsage, "train.stage is {}, but must be 1 or 2", o.stage);
  if (o.expert.kind != "ddpm" && o.expert.kind != "flow") {
    fail(ExitCode::kUsage, "expert.kind is \"{}\", but must be \"ddpm\" or \"flow\"", o.expert.kind);
  }
  if (o.state_dim < 0) fail(ExitCode::kUsage, "the state has {} values, but must have 0 or more", o.state_dim);
  if (o.stage == 1 && !o.adapter.empty()) {
    fail(ExitCode::kUsage, "model.adapter is \"{}\", but stage 1 trains without adapters: use train.stage = 2",
         o.adapter);
  }
}

ExpertPorts ports_of(const VlaOptions& o, std::int64_t hidden) {
  return {hidden, o.state_dim, o.action_dim, o.max_context, o.precision.compute};
}

}  // namespace

struct VlaModel::Parts {
  VlaOptions options;
  Qwen vlm;
  Diffusion diffusion;
  ParameterList own;  ///< sensor, then expert
  std::optional<SensorEncoder> sensor;
  std::optional<ActionExpert> expert;
  std::vector<Parameter> all;

  Parts(const VlaOptions& o, at::Device device)
      : options(o),
        vlm(o.path, o.precision, o.stage == 2 ? &o.lora : nullptr, o.seed, device),
        diffusion(o.expert.kind == "flow", o.expert.diffusion_steps, o.expert.clip, device),
        own(o.seed, ParameterGroup::kExpert, device) {
    const AllocationLabel label("expert and sensor");
    if (o.sensor.window != 0) sensor.emplace(o.sensor, o.expert.width, own);
    expert.emplace(o.expert, ports_of(o, vlm.hidden_size()), own);
    all = vlm.adapters();
    all.insert(all.end(), own.all().begin(), own.all().end());
    if (!o.adapter.empty() && !device.is_meta()) load_adapter(o.adapter, o.lora, vlm.adapters());
    diffusion.sampling_times(o.expert.sampling_steps);  // a wrong number of steps is an error now, not after training
  }

  Tensor features(const PackedBatch& batch, const Recompute& recompute, bool training, const Shown& shown = {}) const {
    if (batch.cached_states.defined()) return batch.cached_states;
    const bool with_autograd = training && options.stage == 2;
    const at::AutoGradMode mode(with_autograd && at::GradMode::is_enabled());
    const Tensor images = vlm.image_features(batch, recompute, with_autograd);
    if (shown.image_features && images.defined()) shown.image_features(images);
    Tensor hidden = vlm.hidden_states(batch, images, recompute, with_autograd);
    if (shown.hidden_states) shown.hidden_states(hidden.detach());
    return hidden;
  }

  Tensor sensor_tokens(const PackedBatch& batch) const {
    return sensor ? sensor->encode(batch.sensor, options.precision.compute) : Tensor();
  }

  Tensor predict(const Tensor& noisy, const Tensor& times, const PackedBatch& batch, const ExpertContext& context,
                 int recomputed, const ActionExpert::LastLayer& shown = {}) const {
    return expert->predict(noisy, diffusion.embed_times(times, ActionExpert::kTimeWidth), batch.state, context,
                           recomputed, shown);
  }
};

VlaModel::VlaModel(const VlaOptions& options, at::Device device) {
  check(options);
  parts_ = std::make_unique<Parts>(options, device);
}

VlaModel::~VlaModel() = default;

const std::vector<Parameter>& VlaModel::parameters() const { return parts_->all; }
int VlaModel::language_blocks() const { return parts_->vlm.language_blocks(); }
int VlaModel::vision_blocks() const { return parts_->options.stage == 2 ? parts_->vlm.vision_blocks() : 0; }
int VlaModel::expert_blocks() const { return parts_->options.expert.depth; }
const VlaOptions& VlaModel::options() const { return parts_->options; }

PackingRules VlaModel::packing_rules(std::uint64_t seed, bool evaluate) const {
  const VlaOptions& o = parts_->options;
  PackingRules rules = parts_->vlm.packing_rules();
  rules.max_context = o.max_context;
  rules.draws = evaluate ? 1 : o.expert.draws;
  rules.chunk = o.expert.chunk;
  rules.action_dim = o.action_dim;
  rules.state_dim = o.state_dim;
  rules.sensor_window = o.sensor.window;
  rules.sensor_channels = o.sensor.channels;
  rules.sensor_tokens = o.sensor.tokens();
  rules.diffusion_steps = o.expert.diffusion_steps;
  rules.flow = o.expert.kind == "flow";
  rules.evaluate = evaluate;
  rules.dropout = !evaluate && o.stage == 2 && o.lora.dropout > 0;
  rules.vision_dropout = rules.dropout && rules.vision_dropout;
  rules.seed = seed;
  return rules;
}

Tensor VlaModel::encode(const PackedBatch& batch, Features which) const {
  const at::NoGradGuard no_grad;
  return which == Features::kImages ? parts_->vlm.image_features(batch) : parts_->features(batch, {}, false);
}

Tensor VlaModel::sample_losses(const PackedBatch& batch, const Recompute& recompute, const Shown& shown) const {
  const Parts& p = *parts_;
  const Tensor hidden = p.features(batch, recompute, true, shown);
  const Tensor sensors = p.sensor_tokens(batch);
  const AllocationLabel label("expert");
  const ExpertContext context = p.expert->context(hidden, sensors, batch, p.options.expert.draws, false);
  const Tensor noisy = p.diffusion.add_noise(batch.actions, batch.noise, batch.timesteps);
  const Tensor predicted = p.predict(noisy, batch.timesteps, batch, context, recompute.expert_blocks, shown.last_layer);
  return p.diffusion.loss(predicted, batch.actions, batch.noise, batch.action_weight);
}

Tensor VlaModel::sample_actions(const PackedBatch& batch) const {
  const at::NoGradGuard no_grad;
  const Parts& p = *parts_;
  const Tensor hidden = p.features(batch, {}, false);
  const Tensor sensors = p.sensor_tokens(batch);
  const AllocationLabel label("expert");
  const ExpertContext context = p.expert->context(hidden, sensors, batch, 1, true);
  const auto& noise = batch.noise;
  const auto draws = noise.size(0) / batch.samples;
  Tensor x =
      noise.view({batch.samples, draws, noise.size(1), noise.size(2)}).select(1, 0).clone(at::MemoryFormat::Contiguous);
  const auto times = p.diffusion.sampling_times(p.options.expert.sampling_steps);
  for (std::size_t i = 0; i < times.size(); ++i) {
    const Tensor now = at::full({batch.samples}, times[i], noise.options());
    const Tensor rows = p.predict(x, now, batch, context, 0);
    const Tensor predicted = rows.narrow(1, rows.size(1) - x.size(1), x.size(1)).to(at::kFloat).contiguous();
    p.diffusion.step_back(x, predicted, times, i);
  }
  return x;
}

}  // namespace plimsoll::model
