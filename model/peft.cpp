#include "model/peft.h"

#include <cmath>
#include <cstring>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "core/file.h"
#include "core/safetensors.h"
#include "model/weights.h"

namespace plimsoll::model {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

constexpr std::string_view kPrefix = "base_model.model.";
constexpr const char* kAllLinear = R"(.*\.((q|k|v|o|gate|up|down)_proj|attn\.(qkv|proj)|merger\.mlp\.[02]))";

std::string config_path(const std::string& dir) { return (fs::path(dir) / "adapter_config.json").string(); }

json read_config(const std::string& dir) {
  const std::string path = config_path(dir);
  json root = json::parse(read_file(path), nullptr, false);
  if (!root.is_object()) fail(ExitCode::kData, "{}: not a JSON object: no PEFT adapter", path);
  return root;
}

// The value of `key`, or null.
json value_of(const json& root, const char* key) { return root.contains(key) ? root.at(key) : json(); }

bool is_off(const json& value) {
  return value.is_null() || value == json(false) || value == json("none") ||
         ((value.is_object() || value.is_array()) && value.empty());
}

// Variants that change what is computed. Anything here that is not off is refused.
void refuse_variants(const json& root, const std::string& path) {
  for (const char* key :
       {"use_dora", "use_rslora", "use_qalora", "use_bdlora", "bias", "lora_bias", "modules_to_save", "rank_pattern",
        "alpha_pattern", "layers_to_transform", "layers_pattern", "exclude_modules", "fan_in_fan_out",
        "trainable_token_indices", "layer_replication", "target_parameters", "alora_invocation_tokens"}) {
    const json value = value_of(root, key);
    if (!is_off(value))
      fail(ExitCode::kData, "{}: {} = {}: this LoRA variant is not computed here", path, key, value.dump());
  }
}

std::string escaped(const std::string& name) {
  std::string out;
  for (const char c : name) {
    if (std::string_view(R"(\^$.|?*+()[]{})").find(c) != std::string_view::npos) out += '\\';
    out += c;
  }
  return out;
}

// PEFT: a string is a pattern for the whole name; an item of a list is the name or its end after a dot.
std::string pattern_of(const json& targets, const std::string& path) {
  if (targets.is_string()) return targets == json("all-linear") ? kAllLinear : targets.get<std::string>();
  std::vector<std::string> names;
  for (const json& item : targets.is_array() ? targets : json::array()) {
    if (item.is_string()) names.push_back(escaped(item.get<std::string>()));
  }
  if (names.empty() || names.size() != targets.size()) {
    fail(ExitCode::kData, "{}: target_modules = {}: expected a pattern or a list of names", path, targets.dump());
  }
  return fmt::format(R"((.*\.)?({}))", fmt::join(names, "|"));
}

double number(const json& root, const char* key, double otherwise, const std::string& path) {
  const json value = value_of(root, key);
  if (value.is_null()) return otherwise;
  if (!value.is_number()) fail(ExitCode::kData, "{}: {} = {}: expected a number", path, key, value.dump());
  return value.get<double>();
}

// A stored key -> the key that we write, whatever transformers' version named the module.
std::string canonical_key(const std::string& key) {
  if (!key.starts_with(kPrefix)) return key;
  std::string module = key.substr(kPrefix.size());
  if (module.starts_with("layers.") || module.starts_with("blocks.")) return key;  // an adapter of one tower alone
  return std::string(kPrefix) + canonical_name(module);
}

using Entries = std::map<std::string, const TensorEntry*>;

Entries entries_of(const SafetensorsFile& file) {
  Entries entries;
  for (const auto& entry : file.tensors()) {
    if (!entries.try_emplace(canonical_key(entry.name), &entry).second) {
      fail(ExitCode::kData, "{}: two tensors for {}", file.path().string(), canonical_key(entry.name));
    }
  }
  return entries;
}

template <class T>
std::vector<float> widened(const TensorEntry& entry) {
  std::vector<float> out(entry.bytes.size() / sizeof(T));
  for (std::size_t i = 0; i < out.size(); ++i) {
    T value;
    std::memcpy(&value, entry.bytes.data() + i * sizeof(T), sizeof(T));
    out[i] = static_cast<float>(value);
  }
  return out;
}

std::vector<float> floats_of(const TensorEntry& entry, const std::string& file) {
  if (entry.dtype == "F32") return widened<float>(entry);
  if (entry.dtype == "BF16") return widened<c10::BFloat16>(entry);
  if (entry.dtype == "F16") return widened<c10::Half>(entry);
  fail(ExitCode::kData, "{}: tensor {} has dtype {}: expected F32, BF16 or F16", file, entry.name, entry.dtype);
}

void fill(const Parameter& parameter, const TensorEntry& entry, const std::string& file) {
  if (at::IntArrayRef(entry.shape) != parameter.tensor.sizes()) {
    fail(ExitCode::kData, "{}: tensor {} has shape [{}], this model and rank need [{}]: an adapter of another model?",
         file, entry.name, fmt::join(entry.shape, ", "), fmt::join(parameter.tensor.sizes(), ", "));
  }
  auto values = floats_of(entry, file);
  for (const float value : values) {
    if (!std::isfinite(value))
      fail(ExitCode::kData, "{}: tensor {} holds {}: the adapter is damaged", file, entry.name, value);
  }
  const at::NoGradGuard no_grad;
  parameter.tensor.detach().copy_(
      at::from_blob(values.data(), parameter.tensor.sizes(), at::TensorOptions().dtype(at::kFloat)));
}

void require_same(const std::string& path, const char* key, double found, double expected) {
  if (found != expected) {
    fail(ExitCode::kData, "{}: {} = {}, the configuration asks for {}: set lora.{} accordingly", path, key, found,
         expected, std::string_view(key) == "r" ? "rank" : "alpha");
  }
}

json config_json(const LoraOptions& options, const std::string& base_model) {
  return {{"peft_type", "LORA"},
          {"peft_version", "0.20.0"},
          {"auto_mapping", nullptr},
          {"task_type", nullptr},
          {"base_model_name_or_path", base_model},
          {"revision", nullptr},
          {"inference_mode", true},
          {"r", options.rank},
          {"lora_alpha", options.alpha},
          {"lora_dropout", options.dropout},
          {"target_modules", options.targets},
          {"exclude_modules", nullptr},
          {"bias", "none"},
          {"fan_in_fan_out", false},
          {"init_lora_weights", true},
          {"use_rslora", false},
          {"use_dora", false},
          {"modules_to_save", nullptr},
          {"layers_to_transform", nullptr},
          {"layers_pattern", nullptr},
          {"rank_pattern", json::object()},
          {"alpha_pattern", json::object()}};
}

}  // namespace

LoraOptions read_adapter_options(const std::string& dir) {
  const std::string path = config_path(dir);
  const json root = read_config(dir);
  if (value_of(root, "peft_type") != json("LORA")) {
    fail(ExitCode::kData, "{}: peft_type = {}: only \"LORA\" adapters can be read", path,
         value_of(root, "peft_type").dump());
  }
  refuse_variants(root, path);
  LoraOptions options;
  const double rank = number(root, "r", 8, path);
  if (!(rank >= 1 && rank <= 1 << 20) || rank != std::floor(rank))
    fail(ExitCode::kData, "{}: r = {}: expected a whole number from 1", path, rank);
  options.rank = static_cast<int>(rank);
  options.alpha = number(root, "lora_alpha", 8, path);
  options.dropout = number(root, "lora_dropout", 0, path);
  options.targets = pattern_of(value_of(root, "target_modules"), path);
  return options;
}

void load_adapter(const std::string& dir, const LoraOptions& options, const std::vector<Parameter>& adapters) {
  const LoraOptions stored = read_adapter_options(dir);
  require_same(config_path(dir), "r", stored.rank, options.rank);
  require_same(config_path(dir), "lora_alpha", stored.alpha, options.alpha);
  const SafetensorsFile file(fs::path(dir) / "adapter_model.safetensors");
  const std::string name = file.path().string();
  Entries entries = entries_of(file);
  for (const auto& parameter : adapters) {
    const auto found = entries.find(parameter.name);
    if (found == entries.end()) {
      fail(ExitCode::kData, "{}: no tensor {}: an adapter of another model or other targets ({})", name, parameter.name,
           options.targets);
    }
    fill(parameter, *found->second, name);
    entries.erase(found);
  }
  if (!entries.empty()) {
    fail(ExitCode::kData, "{}: tensor {} has no place in this model with lora.targets = \"{}\"", name,
         entries.begin()->second->name, options.targets);
  }
}

void save_adapter(const std::string& dir, const LoraOptions& options, const std::vector<Parameter>& adapters,
                  const std::string& base_model, ExitCode code) {
  std::vector<Tensor> host;
  std::vector<TensorSource> tensors;
  for (const auto& parameter : adapters) {
    host.push_back(parameter.tensor.detach().to(at::kCPU, at::kFloat).contiguous());
    const auto& values = host.back();
    tensors.push_back({parameter.name,
                       "F32",
                       values.sizes().vec(),
                       {static_cast<const std::byte*>(values.const_data_ptr()), values.nbytes()}});
  }
  write_safetensors(fs::path(dir) / "adapter_model.safetensors", std::move(tensors), {{"format", "pt"}}, code);
  write_file_durably(config_path(dir), config_json(options, base_model).dump(2) + "\n", code);
}

}  // namespace plimsoll::model
