#pragma once
// config.json of a Qwen2.5-VL checkpoint. No torch in here.

#include <array>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

namespace plimsoll::model {

/// Vision tower. Defaults are those that transformers assumes for keys that config.json leaves out.
struct VisionConfig {
  int depth = 32;              ///< blocks
  std::int64_t hidden = 3584;  ///< width
  std::int64_t intermediate = 3420;
  int heads = 16;
  int channels = 3, patch = 14, frames = 2, merge = 2;  ///< a patch is channels x frames x patch x patch values
  int window = 112;                                     ///< pixels of an attention window's side
  std::int64_t out_hidden = 3584;                       ///< width of an image feature: the language model's
  std::vector<int> full_attention{7, 15, 23, 31};       ///< blocks that attend to a whole frame; the others to windows
  double rope_theta = 10000.0;
  int head_dim() const { return static_cast<int>(hidden / heads); }
  std::int64_t patch_values() const { return std::int64_t{channels} * frames * patch * patch; }
};

/// Language model.
struct TextConfig {
  std::int64_t vocabulary = 152064;
  std::int64_t hidden = 8192;
  std::int64_t intermediate = 29568;
  int layers = 80;
  int heads = 64, kv_heads = 8;
  double norm_eps = 1e-5;
  double rope_theta = 1e6;
  std::array<int, 3> mrope_section{16, 24, 24};  ///< frequencies that follow time, height, width
  int head_dim() const { return static_cast<int>(hidden / heads); }
};

struct QwenConfig {
  VisionConfig vision;
  TextConfig text;
  std::int64_t image_token_id = 151655;
};

/// Reads DIR/config.json in both layouts: flat text fields as on the hub, or text_config beside vision_config. Throws
/// Error(kData) naming file, key and value: no such file, no JSON, another architecture, a feature that is not computed
/// here (sliding window, other activations or rotary kinds), or sizes that do not divide.
QwenConfig read_qwen_config(const std::string& dir);

/// The same from parsed text; `origin` names the file in errors.
QwenConfig parse_qwen_config(const nlohmann::json& root, const std::string& origin);

/// config.json of `config` as transformers 5 writes it, for init-model. `dtype`: "float32" or "bfloat16".
nlohmann::json qwen_config_json(const QwenConfig& config, const std::string& dtype);

}  // namespace plimsoll::model
