#include "model/lora.h"

#include <cmath>

#include "core/error.h"
#include "core/philox.h"
#include "core/scope.h"

namespace plimsoll::model {
namespace {

std::regex compile(const LoraOptions* options) {
  if (options == nullptr) return {};
  try {
    return std::regex(options->targets, std::regex::ECMAScript | std::regex::optimize);
  } catch (const std::regex_error& error) {
    fail(ExitCode::kUsage, "lora.targets = \"{}\" is no regular expression: {}", options->targets, error.what());
  }
}

void check(const LoraOptions& options) {
  if (options.rank < 1) fail(ExitCode::kUsage, "lora.rank = {}: give at least 1", options.rank);
  if (!(options.dropout >= 0 && options.dropout < 1))
    fail(ExitCode::kUsage, "lora.dropout = {}: give a rate in [0, 1)", options.dropout);
}

// Values of draw 1: draw 0 of this site belongs to the expert's weights.
std::vector<float> initial_a(std::uint64_t seed, std::uint64_t number, std::int64_t rank, std::int64_t in) {
  const auto key = mix({seed, number, 1, static_cast<std::uint32_t>(RandomSite::kInit)});
  const float bound = 1.0F / std::sqrt(static_cast<float>(in));
  std::vector<float> values(rank * in);
  for (std::size_t i = 0; i < values.size(); ++i)
    values[i] = (2.0F * uniform(random_words(key, i / 4)[i % 4]) - 1.0F) * bound;
  return values;
}

}  // namespace

Tensor Linear::operator()(const Tensor& x, const Tensor& keys, at::ScalarType compute, bool values) const {
  if (!adapted()) return linear(x, weight, bias, compute);
  const bool drop = keys.defined() && rate > 0;
  const Dropout dropout{drop ? rate : 0.0F, drop ? keys : Tensor(), site};
  return lora_linear(x, weight, bias, a, b, scale, dropout, compute, values);
}

std::vector<Tensor> apply_group(std::initializer_list<const Linear*> layers, const Tensor& x, const Tensor& keys,
                                at::ScalarType compute) {
  std::vector<LoraLayer> group;
  float scale = 1.0F;
  Dropout dropout;
  for (const Linear* layer : layers) {
    group.push_back({layer->weight, layer->bias, layer->a, layer->b, layer->site});
    if (!layer->adapted()) continue;
    scale = layer->scale;  // the same for all adapters of a set
    if (keys.defined() && layer->rate > 0) dropout = {layer->rate, keys, 0};
  }
  return lora_linears(x, group, scale, dropout, compute);
}

AdapterSet::AdapterSet(const LoraOptions* options, std::uint64_t seed, at::Device device)
    : options_(options == nullptr ? nullptr : std::make_unique<const LoraOptions>(*options)),
      pattern_(compile(options)),
      seed_(seed),
      device_(device) {
  if (options_) check(*options_);
}

bool AdapterSet::matches(const std::string& module) const { return options_ && std::regex_match(module, pattern_); }

Tensor AdapterSet::make(const std::string& name, at::IntArrayRef shape, const std::vector<float>& values) {
  Tensor tensor = at::empty(shape, at::TensorOptions().dtype(at::kFloat).device(device_));
  if (!device_.is_meta())
    tensor.copy_(at::from_blob(const_cast<float*>(values.data()), shape, at::TensorOptions().dtype(at::kFloat)));
  tensor.requires_grad_(true);
  parameters_.push_back({name, tensor, ParameterGroup::kVlm});
  return tensor;
}

void AdapterSet::attach(const std::string& module, Linear& linear) {
  if (!matches(module)) return;
  const AllocationLabel label("adapters");
  const std::int64_t out = linear.weight.size(0), in = linear.weight.size(1), rank = options_->rank;
  const auto number = static_cast<std::uint32_t>(parameters_.size() / 2);
  const bool values = !device_.is_meta();
  linear.a =
      make(adapter_key(module, 'A'), {rank, in}, values ? initial_a(seed_, number, rank, in) : std::vector<float>());
  linear.b = make(adapter_key(module, 'B'), {out, rank}, std::vector<float>(values ? out * rank : 0));
  linear.scale = static_cast<float>(options_->alpha / options_->rank);
  linear.rate = static_cast<float>(options_->dropout);
  linear.site = static_cast<std::uint32_t>(RandomSite::kDropout) + number;
}

void AdapterSet::refuse(const std::string& module, const char* why) const {
  if (matches(module)) fail(ExitCode::kUsage, "lora.targets = \"{}\" matches {}: {}", options_->targets, module, why);
}

void AdapterSet::finish() const {
  if (options_ && parameters_.empty()) {
    fail(
        ExitCode::kUsage,
        "lora.targets = \"{}\" matches no linear layer: names look like model.language_model.layers.0.self_attn.q_proj",
        options_->targets);
  }
}

std::string adapter_key(const std::string& module, char matrix) {
  return fmt::format("base_model.model.{}.lora_{}.weight", module, matrix);
}

}  // namespace plimsoll::model
