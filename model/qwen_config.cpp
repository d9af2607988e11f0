#include "model/qwen_config.h"

#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

#include "core/error.h"

namespace plimsoll::model {
namespace {

using nlohmann::json;

// One object of config.json. A key that is absent or null leaves the default.
class Fields {
 public:
  Fields(const json& object, std::string origin) : object_(object), origin_(std::move(origin)) {
    if (!object.is_object()) fail(ExitCode::kData, "{}: expected a JSON object, found {}", origin_, object.type_name());
  }

  bool has(const char* key) const { return object_.contains(key) && !object_.at(key).is_null(); }

  template <class T>
  void integer(const char* key, T& out, T low = 1) const {
    if (!has(key)) return;
    const json& value = object_.at(key);
    if (!value.is_number_integer()) wrong(key, "an integer");
    const auto read = value.get<std::int64_t>();
    if (read < low || read > std::numeric_limits<std::int32_t>::max()) wrong(key, "a size that makes sense");
    out = static_cast<T>(read);
  }

  void positive(const char* key, double& out) const {
    if (!has(key)) return;
    if (!object_.at(key).is_number()) wrong(key, "a number");
    out = object_.at(key).get<double>();
    if (!(out > 0)) wrong(key, "a number above zero");
  }

  std::string text(const char* key, const std::string& otherwise) const {
    if (!has(key)) return otherwise;
    if (!object_.at(key).is_string()) wrong(key, "a string");
    return object_.at(key).get<std::string>();
  }

  std::vector<int> integers(const char* key, std::vector<int> otherwise) const {
    if (!has(key)) return otherwise;
    const json& list = object_.at(key);
    if (!list.is_array()) wrong(key, "a list of integers");
    std::vector<int> out;
    for (const json& item : list) {
      if (!item.is_number_integer()) wrong(key, "a list of integers");
      out.push_back(item.get<int>());
    }
    return out;
  }

  bool flag(const char* key) const { return has(key) && object_.at(key).is_boolean() && object_.at(key).get<bool>(); }

  Fields child(const char* key) const { return {object_.at(key), origin_ + ": " + key}; }

  [[noreturn]] void wrong(const char* key, const char* expected) const {
    fail(ExitCode::kData, "{}: {} = {}: expected {}", origin_, key,
         object_.contains(key) ? object_.at(key).dump() : "(absent)", expected);
  }

 private:
  const json& object_;
  std::string origin_;
};

void require_architecture(const Fields& root, const std::string& origin) {
  const std::string type = root.text("model_type", "(none)");
  if (type != "qwen2_5_vl") {
    fail(
        ExitCode::kData,
        "{}: model_type \"{}\" is another architecture: give the directory of a Qwen2.5-VL checkpoint (\"qwen2_5_vl\")",
        origin, type);
  }
}

VisionConfig read_vision(const Fields& f) {
  VisionConfig v;
  f.integer("depth", v.depth);
  f.integer("hidden_size", v.hidden);
  f.integer("intermediate_size", v.intermediate);
  f.integer("num_heads", v.heads);
  f.integer("in_chans", v.channels);
  f.integer("in_channels", v.channels);
  f.integer("patch_size", v.patch);
  f.integer("temporal_patch_size", v.frames);
  f.integer("spatial_merge_size", v.merge);
  f.integer("window_size", v.window);
  f.integer("out_hidden_size", v.out_hidden);
  v.full_attention = f.integers("fullatt_block_indexes", v.full_attention);
  if (f.has("rope_parameters")) f.child("rope_parameters").positive("rope_theta", v.rope_theta);
  if (f.text("hidden_act", "silu") != "silu") f.wrong("hidden_act", "\"silu\"");
  return v;
}

void check_vision(const Fields& f, const VisionConfig& v) {
  if (v.hidden % v.heads != 0) f.wrong("num_heads", "a divisor of hidden_size");
  if (v.head_dim() % 4 != 0) f.wrong("hidden_size", "heads of a multiple of 4 channels");
  if (v.patch_values() != 1176 || v.patch != 14) f.wrong("patch_size", "patches of 3 x 2 x 14 x 14 values");
  if (v.merge != 2) f.wrong("spatial_merge_size", "2");
  if (v.window / v.merge / v.patch < 1) f.wrong("window_size", "at least one merged patch (28 pixels)");
}

void read_rope(const Fields& f, TextConfig& t) {
  f.positive("rope_theta", t.rope_theta);
  const char* key = f.has("rope_parameters") ? "rope_parameters" : "rope_scaling";
  if (!f.has(key)) return;
  const Fields rope = f.child(key);
  rope.positive("rope_theta", t.rope_theta);
  const std::string kind = rope.text("rope_type", rope.text("type", "default"));
  if (kind != "default" && kind != "mrope") f.wrong(key, "rotary kind \"mrope\" or \"default\"");
  const auto section = rope.integers("mrope_section", {16, 24, 24});
  if (section.size() != 3) rope.wrong("mrope_section", "three numbers");
  std::copy(section.begin(), section.end(), t.mrope_section.begin());
}

TextConfig read_text(const Fields& f) {
  TextConfig t;
  f.integer("vocab_size", t.vocabulary);
  f.integer("hidden_size", t.hidden);
  f.integer("intermediate_size", t.intermediate);
  f.integer("num_hidden_layers", t.layers);
  f.integer("num_attention_heads", t.heads);
  if (f.has("num_key_value_heads")) {
    f.integer("num_key_value_heads", t.kv_heads);
  } else {
    t.kv_heads = t.heads;
  }
  f.positive("rms_norm_eps", t.norm_eps);
  read_rope(f, t);
  if (f.text("hidden_act", "silu") != "silu") f.wrong("hidden_act", "\"silu\"");
  if (f.flag("use_sliding_window")) f.wrong("use_sliding_window", "false (sliding windows are not computed here)");
  return t;
}

void check_text(const Fields& f, const TextConfig& t) {
  if (t.hidden % t.heads != 0) f.wrong("num_attention_heads", "a divisor of hidden_size");
  if (t.heads % t.kv_heads != 0) f.wrong("num_key_value_heads", "a divisor of num_attention_heads");
  if (t.head_dim() % 2 != 0) f.wrong("hidden_size", "heads of an even number of channels");
  const auto& s = t.mrope_section;
  if (s[0] < 0 || s[1] < 0 || s[2] < 0 || 2 * (s[0] + s[1] + s[2]) != t.head_dim()) {
    f.wrong(f.has("rope_parameters") ? "rope_parameters" : "rope_scaling",
            "an mrope_section that sums to half of the head's channels");
  }
}

}  // namespace

QwenConfig parse_qwen_config(const json& root_json, const std::string& origin) {
  const Fields root(root_json, origin);
  require_architecture(root, origin);
  if (!root.has("vision_config")) root.wrong("vision_config", "the vision tower's sizes");
  QwenConfig config;
  const Fields vision = root.child("vision_config");
  const Fields text = root.has("text_config") ? root.child("text_config") : root;
  config.vision = read_vision(vision);
  config.text = read_text(text);
  check_vision(vision, config.vision);
  check_text(text, config.text);
  root.integer("image_token_id", config.image_token_id, std::int64_t{0});
  if (config.vision.out_hidden != config.text.hidden)
    vision.wrong("out_hidden_size", "the language model's hidden_size");
  return config;
}

QwenConfig read_qwen_config(const std::string& dir) {
  const std::string path = dir + "/config.json";
  std::ifstream file(path);
  if (!file) fail(ExitCode::kData, "{}: cannot be opened: give the directory of a Qwen2.5-VL checkpoint", path);
  const json root = json::parse(file, nullptr, false);
  if (root.is_discarded()) fail(ExitCode::kData, "{}: not valid JSON: download or write the checkpoint again", path);
  return parse_qwen_config(root, path);
}

json qwen_config_json(const QwenConfig& config, const std::string& dtype) {
  const auto& v = config.vision;
  const auto& t = config.text;
  const json vision = {{"model_type", "qwen2_5_vl_vision"},
                       {"depth", v.depth},
                       {"hidden_size", v.hidden},
                       {"hidden_act", "silu"},
                       {"intermediate_size", v.intermediate},
                       {"num_heads", v.heads},
                       {"in_channels", v.channels},
                       {"patch_size", v.patch},
                       {"temporal_patch_size", v.frames},
                       {"spatial_merge_size", v.merge},
                       {"window_size", v.window},
                       {"out_hidden_size", v.out_hidden},
                       {"fullatt_block_indexes", v.full_attention},
                       {"tokens_per_second", 2},
                       {"initializer_range", 0.02},
                       {"dtype", dtype}};
  const json rope = {{"rope_type", "default"}, {"rope_theta", t.rope_theta}, {"mrope_section", t.mrope_section}};
  const json text = {{"model_type", "qwen2_5_vl_text"},
                     {"vocab_size", t.vocabulary},
                     {"hidden_size", t.hidden},
                     {"intermediate_size", t.intermediate},
                     {"num_hidden_layers", t.layers},
                     {"num_attention_heads", t.heads},
                     {"num_key_value_heads", t.kv_heads},
                     {"hidden_act", "silu"},
                     {"max_position_embeddings", 32768},
                     {"rms_norm_eps", t.norm_eps},
                     {"rope_parameters", rope},
                     {"use_sliding_window", false},
                     {"sliding_window", nullptr},
                     {"initializer_range", 0.02},
                     {"attention_dropout", 0.0},
                     {"use_cache", true},
                     {"bos_token_id", config.image_token_id - 12},
                     {"eos_token_id", config.image_token_id - 10},
                     {"dtype", dtype}};
  return {{"model_type", "qwen2_5_vl"},
          {"architectures", {"Qwen2_5_VLForConditionalGeneration"}},
          {"text_config", text},
          {"vision_config", vision},
          {"image_token_id", config.image_token_id},
          {"video_token_id", config.image_token_id + 1},
          {"vision_start_token_id", config.image_token_id - 3},
          {"vision_end_token_id", config.image_token_id - 2},
          {"tie_word_embeddings", true},
          {"dtype", dtype}};
}

}  // namespace plimsoll::model
