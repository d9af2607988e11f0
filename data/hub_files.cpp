#include "data/hub_files.h"

#include <array>
#include <nlohmann/json.hpp>
#include <string_view>

#include "core/error.h"
#include "core/file.h"
#include "data/tokenizer_maker.h"

namespace plimsoll::data {

namespace {

using Json = nlohmann::json;

constexpr std::int64_t kFirstAdded = 151643;
constexpr std::int64_t kBytes = 256;

struct Added {
  const char* content;
  bool special;
};
constexpr std::array<Added, 22> kAdded{
    {{"<|endoftext|>", true},        {"<|im_start|>", true},       {"<|im_end|>", true},
     {"<|object_ref_start|>", true}, {"<|object_ref_end|>", true}, {"<|box_start|>", true},
     {"<|box_end|>", true},          {"<|quad_start|>", true},     {"<|quad_end|>", true},
     {"<|vision_start|>", true},     {"<|vision_end|>", true},     {"<|vision_pad|>", true},
     {"<|image_pad|>", true},        {"<|video_pad|>", true},      {"<tool_call>", false},
     {"</tool_call>", false},        {"<|fim_prefix|>", false},    {"<|fim_middle|>", false},
     {"<|fim_suffix|>", false},      {"<|fim_pad|>", false},       {"<|repo_name|>", false},
     {"<|file_sep|>", false}}};
constexpr auto kAddedCount = static_cast<std::int64_t>(kAdded.size());

constexpr const char* kPattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

/// Qwen's chat format, system line included; content is a string or a list of parts.
constexpr const char* kChatTemplate =
    R"({%- if not messages or messages[0]['role'] != 'system' -%}
{{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' -}}
{%- endif -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif part['type'] == 'video' -%}
{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
{%- else -%}
{{- part['text'] -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\n' -}}
{%- endif -%}
)";

std::int64_t first_added(std::int64_t vocabulary_size) {
  if (vocabulary_size < kBytes + kAddedCount)
    fail(ExitCode::kUsage, "a vocabulary of {} tokens is too small: {} bytes and {} special tokens need {}",
         vocabulary_size, kBytes, kAddedCount, kBytes + kAddedCount);
  return std::min(vocabulary_size - kAddedCount, kFirstAdded);
}

Json added_token(const Added& token) {
  return {{"content", token.content}, {"single_word", false}, {"lstrip", false},
          {"rstrip", false},          {"normalized", false},  {"special", token.special}};
}

Json added_tokens(std::int64_t first) {
  Json list = Json::array();
  for (std::int64_t i = 0; i < kAddedCount; ++i) {
    list.push_back(added_token(kAdded[i]));
    list.back()["id"] = first + i;
  }
  return list;
}

Json bpe_json(const BpeModel& bpe) {
  Json vocabulary = Json::object(), merges = Json::array();
  for (const auto& [token, id] : bpe.vocabulary) vocabulary[token] = id;
  for (const auto& [left, right] : bpe.merges) merges.push_back(left + " " + right);
  return {{"type", "BPE"},
          {"dropout", nullptr},
          {"unk_token", nullptr},
          {"continuing_subword_prefix", ""},
          {"end_of_word_suffix", ""},
          {"fuse_unk", false},
          {"byte_fallback", false},
          {"ignore_merges", false},
          {"vocab", vocabulary},
          {"merges", merges}};
}

Json byte_level() {
  return {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", false}, {"use_regex", false}};
}

Json tokenizer_json(std::int64_t first) {
  const Json split = {
      {"type", "Split"}, {"pattern", {{"Regex", kPattern}}}, {"behavior", "Isolated"}, {"invert", false}};
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens", added_tokens(first)},
          {"normalizer", {{"type", "NFC"}}},
          {"pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", Json::array({split, byte_level()})}}},
          {"post_processor", byte_level()},
          {"decoder", byte_level()},
          {"model", bpe_json(make_bpe_model(first))}};
}

Json extra_special_tokens() {
  Json names = Json::array();
  for (const Added& token : kAdded)
    if (token.special && std::string_view(token.content) != "<|endoftext|>") names.push_back(token.content);
  return names;
}

Json tokenizer_config(std::int64_t first) {
  Json decoder = Json::object();
  for (std::int64_t i = 0; i < kAddedCount; ++i) decoder[std::to_string(first + i)] = added_token(kAdded[i]);
  return {{"add_bos_token", false},
          {"add_prefix_space", false},
          {"added_tokens_decoder", decoder},
          {"additional_special_tokens", extra_special_tokens()},
          {"bos_token", nullptr},
          {"clean_up_tokenization_spaces", false},
          {"eos_token", "<|im_end|>"},
          {"errors", "replace"},
          {"model_max_length", 131072},
          {"pad_token", "<|endoftext|>"},
          {"processor_class", "Qwen2_5_VLProcessor"},
          {"split_special_tokens", false},
          {"tokenizer_class", "Qwen2Tokenizer"},
          {"unk_token", nullptr}};
}

void write_text(const std::string& dir, const char* name, std::string_view text) {
  write_file_durably(dir + "/" + name, text, ExitCode::kData);
}
void write_json(const std::string& dir, const char* name, const Json& json) {
  write_text(dir, name, json.dump(2) + "\n");
}

}  // namespace

SpecialIds special_ids(std::int64_t vocabulary_size) {
  const std::int64_t first = first_added(vocabulary_size);
  return {.pad = first,
          .im_start = first + 1,
          .im_end = first + 2,
          .vision_start = first + 9,
          .vision_end = first + 10,
          .vision_pad = first + 11,
          .image_pad = first + 12,
          .video_pad = first + 13};
}

SpecialIds write_tokenizer(const std::string& dir, std::int64_t vocabulary_size) {
  const std::int64_t first = first_added(vocabulary_size);
  const SpecialIds ids = special_ids(vocabulary_size);
  write_json(dir, "tokenizer.json", tokenizer_json(first));
  write_json(dir, "tokenizer_config.json", tokenizer_config(first));
  write_json(dir, "special_tokens_map.json",
             {{"additional_special_tokens", extra_special_tokens()},
              {"eos_token", "<|im_end|>"},
              {"pad_token", "<|endoftext|>"}});
  write_text(dir, "chat_template.jinja", kChatTemplate);
  write_json(dir, "generation_config.json",
             {{"bos_token_id", ids.pad}, {"pad_token_id", ids.pad}, {"eos_token_id", {ids.im_end, ids.pad}}});
  return ids;
}

void write_image_processor(const std::string& dir, const ImageProcessorOptions& options) {
  write_json(dir, "preprocessor_config.json",
             {{"image_processor_type", "Qwen2VLImageProcessor"},
              {"processor_class", "Qwen2_5_VLProcessor"},
              {"do_convert_rgb", true},
              {"do_resize", true},
              {"resample", 3},
              {"do_rescale", true},
              {"rescale_factor", 1.0 / 255.0},
              {"do_normalize", true},
              {"image_mean", options.mean},
              {"image_std", options.std},
              {"min_pixels", options.min_pixels},
              {"max_pixels", options.max_pixels},
              {"size", {{"shortest_edge", options.min_pixels}, {"longest_edge", options.max_pixels}}},
              {"patch_size", options.patch},
              {"merge_size", options.merge},
              {"temporal_patch_size", options.frames}});
}

}  // namespace plimsoll::data
