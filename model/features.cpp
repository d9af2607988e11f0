#include "model/features.h"

#include <filesystem>
#include <optional>

#include "core/error.h"
#include "core/safetensors.h"
#include "model/peft.h"
#include "model/qwen.h"

namespace plimsoll::model {
namespace {

// Collects what is written; keeps tensors alive until then.
class Output {
 public:
  void tensor(const std::string& name, const Tensor& value, std::vector<std::int64_t> shape = {}) {
    kept_.push_back(value.detach().to(at::kFloat).contiguous());
    const auto& v = kept_.back();
    if (shape.empty()) shape = v.sizes().vec();
    sources_.push_back(
        {name, "F32", std::move(shape), {static_cast<const std::byte*>(v.const_data_ptr()), v.nbytes()}});
  }
  template <class T>
  void values(const std::string& name, const char* dtype, std::vector<std::int64_t> shape, const T* first,
              std::size_t count) {
    sources_.push_back({name, dtype, std::move(shape), std::as_bytes(std::span(first, count))});
  }
  void write(const std::string& path) {
    write_safetensors(path, std::move(sources_), {{"format", "pt"}}, ExitCode::kData);
  }

 private:
  std::vector<Tensor> kept_;
  std::vector<TensorSource> sources_;
};

void add_input(Output& out, const VlmInput& input) {
  const auto length = static_cast<std::int64_t>(input.input_ids.size());
  out.values("input_ids", "I64", {1, length}, input.input_ids.data(), input.input_ids.size());
  out.values("position_ids", "I64", {3, 1, length}, input.position_ids.data(), input.position_ids.size());
  if (input.image_grid_thw.empty()) return;
  const auto images = static_cast<std::int64_t>(input.image_grid_thw.size());
  out.values("image_grid_thw", "I64", {images, 3}, input.image_grid_thw[0].data(),
             static_cast<std::size_t>(3 * images));
  const auto patches = static_cast<std::int64_t>(input.pixel_values.size() / 1176);
  out.values("pixel_values", "F32", {patches, 1176}, input.pixel_values.data(), input.pixel_values.size());
}

void add_gradients(Output& out, const Tensor& hidden, const std::vector<Parameter>& adapters) {
  hidden.to(at::kFloat).square().mean().backward();
  for (const auto& parameter : adapters) {
    const Tensor& grad = parameter.tensor.grad();
    out.tensor(parameter.name, grad.defined() ? grad : at::zeros_like(parameter.tensor));
  }
}

PackingRules vlm_rules(const Qwen& model) {
  PackingRules rules = model.packing_rules();
  rules.draws = rules.chunk = rules.action_dim = rules.state_dim = 0;
  return rules;
}

}  // namespace

void write_features(const FeatureRequest& request, const VlmInput& input) {
  if ((request.gradients || !request.write_adapter.empty()) && request.adapter.empty()) {
    fail(ExitCode::kUsage, "--grad and --write-adapter are about an adapter: give --adapter too");
  }
  std::optional<LoraOptions> lora;
  if (!request.adapter.empty()) lora = read_adapter_options(request.adapter);
  const auto dtype = request.bf16 ? at::kBFloat16 : at::kFloat;
  const Qwen model(request.model, {dtype, dtype}, lora ? &*lora : nullptr, 0, at::kCPU);
  if (lora) load_adapter(request.adapter, *lora, model.adapters());

  Sample sample;
  sample.vlm = input;
  const StreamSample item{&sample, 0};
  const PackedBatch batch = pack({&item, 1}, vlm_rules(model), at::kCPU);
  const c10::AutoGradMode grad(request.gradients);
  const Tensor features = model.image_features(batch);
  const Tensor hidden = model.hidden_states(batch, features, {}, false);

  Output out;
  add_input(out, input);
  if (features.defined()) out.tensor("image_features", features);
  out.tensor("last_hidden_state", hidden, {1, hidden.size(0), hidden.size(1)});
  if (request.gradients) add_gradients(out, hidden, model.adapters());
  out.write(request.out);
  if (!request.write_adapter.empty()) {
    std::filesystem::create_directories(request.write_adapter);
    save_adapter(request.write_adapter, *lora, model.adapters(), request.model, ExitCode::kData);
  }
}

}  // namespace plimsoll::model
