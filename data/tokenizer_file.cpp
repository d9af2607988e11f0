#include "data/tokenizer_file.h"

#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/file.h"

namespace plimsoll::data {

namespace {

using Json = nlohmann::json;

constexpr const char* kAdvice =
    "Plimsoll reads byte-level BPE of Qwen's kind; use the tokenizer.json that belongs to a Qwen2.5-VL model";

/// GPT-2's splitter, which a ByteLevel pre-tokenizer with use_regex applies by itself.
constexpr const char* kByteLevelPattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

[[noreturn]] void refuse(const std::string& path, const std::string& found) {
  fail(ExitCode::kData, "{}: {}; {}", path, found, kAdvice);
}

std::string type_of(const Json& part) { return part.is_object() ? part.value("type", "untyped") : part.dump(); }

bool absent(const Json& json, const char* key) { return !json.contains(key) || json.at(key).is_null(); }

/// A string that is null, missing or empty counts as empty.
std::string optional_text(const Json& json, const char* key) {
  return absent(json, key) ? "" : json.at(key).get<std::string>();
}

/// The members of a "Sequence" under `list`, or the part itself as the only one; none for null.
std::vector<Json> sequence(const Json& root, const char* key, const char* list) {
  if (absent(root, key)) return {};
  const Json& part = root.at(key);
  if (type_of(part) != "Sequence") return {part};
  return part.at(list).get<std::vector<Json>>();
}

AddedToken read_added_token(const Json& json) {
  return {.id = json.at("id").get<std::int64_t>(),
          .content = json.at("content").get<std::string>(),
          .single_word = json.value("single_word", false),
          .lstrip = json.value("lstrip", false),
          .rstrip = json.value("rstrip", false),
          .normalized = json.value("normalized", false)};
}

void read_normalizer(const Json& root, TokenizerFile& file) {
  for (const Json& part : sequence(root, "normalizer", "normalizers")) {
    if (type_of(part) != "NFC")
      refuse(file.path, fmt::format("its normaliser is {}, expected NFC or none", type_of(part)));
    file.nfc = true;
  }
}

SplitPattern read_split(const Json& part, const std::string& path) {
  if (part.value("behavior", "") != "Isolated" || part.value("invert", false))
    refuse(path, fmt::format("its splitter has behavior \"{}\", invert {}, expected \"Isolated\", false",
                             part.value("behavior", ""), part.value("invert", false)));
  const Json& pattern = part.at("pattern");
  if (pattern.contains("Regex")) return {pattern.at("Regex").get<std::string>(), false};
  return {pattern.at("String").get<std::string>(), true};
}

void read_splits(const Json& root, TokenizerFile& file) {
  bool byte_level = false;
  for (const Json& part : sequence(root, "pre_tokenizer", "pretokenizers")) {
    const std::string type = type_of(part);
    if (byte_level) refuse(file.path, fmt::format("its pre-tokenizer {} comes after ByteLevel", type));
    if (type == "Split") {
      file.splits.push_back(read_split(part, file.path));
    } else if (type == "ByteLevel") {
      byte_level = true;
      if (part.value("add_prefix_space", true))
        refuse(file.path, "its ByteLevel pre-tokenizer adds a space in front (add_prefix_space)");
      if (part.value("use_regex", true)) file.splits.push_back({kByteLevelPattern, false});
    } else {
      refuse(file.path, fmt::format("its pre-tokenizer is {}, expected Split and ByteLevel", type));
    }
  }
  if (!byte_level) refuse(file.path, "it has no ByteLevel pre-tokenizer");
}

void check_ends(const Json& root, const std::string& path) {
  for (const Json& part : sequence(root, "post_processor", "processors"))
    if (type_of(part) != "ByteLevel")
      refuse(path, fmt::format("its post-processor is {}, expected ByteLevel or none", type_of(part)));
  for (const Json& part : sequence(root, "decoder", "decoders"))
    if (type_of(part) != "ByteLevel") refuse(path, fmt::format("its decoder is {}, expected ByteLevel", type_of(part)));
}

std::pair<std::string, std::string> read_merge(const Json& json, const std::string& path) {
  if (json.is_array() && json.size() == 2) return {json.at(0).get<std::string>(), json.at(1).get<std::string>()};
  const auto text = json.get<std::string>();
  const auto space = text.find(' ');
  if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos)
    refuse(path, fmt::format("its merge \"{}\" is not two tokens with a space between", text));
  return {text.substr(0, space), text.substr(space + 1)};
}

void check_model(const Json& model, const std::string& path) {
  const std::string type = model.contains("type") ? type_of(model) : (model.contains("merges") ? "BPE" : "untyped");
  if (type != "BPE") refuse(path, fmt::format("its model is {}, expected BPE", type));
  if (model.value("byte_fallback", false)) refuse(path, "its model is BPE with byte_fallback (SentencePiece's kind)");
  if (!absent(model, "dropout") && model.at("dropout").get<double>() != 0.0)
    refuse(path, "its merges are dropped at random (dropout)");
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"})
    if (!optional_text(model, key).empty())
      refuse(path, fmt::format("its {} is \"{}\", expected none", key, optional_text(model, key)));
}

BpeModel read_bpe(const Json& model, const std::string& path) {
  BpeModel bpe;
  for (const auto& [token, id] : model.at("vocab").items()) bpe.vocabulary.emplace_back(token, id.get<std::int64_t>());
  for (const Json& merge : model.at("merges")) bpe.merges.push_back(read_merge(merge, path));
  if (!absent(model, "unk_token")) bpe.unknown = model.at("unk_token").get<std::string>();
  bpe.fuse_unknown = model.value("fuse_unk", false);
  bpe.ignore_merges = model.value("ignore_merges", false);
  return bpe;
}

TokenizerFile read_parts(const Json& root, const std::string& path) {
  TokenizerFile file;
  file.path = path;
  if (!root.is_object() || absent(root, "model")) refuse(path, "it has no \"model\", so it is no tokenizer.json");
  check_model(root.at("model"), path);
  file.bpe = read_bpe(root.at("model"), path);
  read_normalizer(root, file);
  read_splits(root, file);
  check_ends(root, path);
  if (!absent(root, "added_tokens"))
    for (const Json& token : root.at("added_tokens")) file.added_tokens.push_back(read_added_token(token));
  return file;
}

}  // namespace

TokenizerFile read_tokenizer_file(const std::string& path) {
  const std::string text = read_file(path);
  try {
    return read_parts(Json::parse(text), path);
  } catch (const Json::parse_error& error) {
    fail(ExitCode::kData, "{}: is no JSON, at byte {} of {} ({}); fetch the file again", path, error.byte, text.size(),
         error.what());
  } catch (const Json::exception& error) {
    fail(ExitCode::kData, "{}: an entry is missing or of the wrong type ({}); {}", path, error.what(), kAdvice);
  }
}

}  // namespace plimsoll::data
