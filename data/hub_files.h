#pragma once
// The text and image side of a Hugging Face model directory, written from nothing: what `plimsoll init-model` needs so
// that transformers' AutoProcessor, AutoTokenizer and our own readers open its output.

#include <cstdint>
#include <string>

#include "data/image_processor.h"

namespace plimsoll::data {

/// Ids of the tokens that a Qwen2.5-VL config.json names.
struct SpecialIds {
  std::int64_t pad = 151643;  ///< <|endoftext|>; also bos_token_id
  std::int64_t im_start = 151644;
  std::int64_t im_end = 151645;  ///< eos_token_id
  std::int64_t vision_start = 151652, vision_end = 151653, vision_pad = 151654;
  std::int64_t image_pad = 151655;  ///< image_token_id
  std::int64_t video_pad = 151656;  ///< video_token_id
};

/// Rows that a full-size Qwen2.5-VL embedding has; its tokenizer uses 151665 of them.
constexpr std::int64_t kFullVocabulary = 151936;

/// The special ids that write_tokenizer() gives for `vocabulary_size`: the 22 added tokens end the vocabulary, in
/// Qwen's order; from 151665 on they stay at 151643 to 151664. Throws Error(kUsage) below 278 = 256 bytes + 22.
SpecialIds special_ids(std::int64_t vocabulary_size);

/// Writes tokenizer.json, tokenizer_config.json, special_tokens_map.json, chat_template.jinja and
/// generation_config.json into the existing `dir`: a byte-level BPE with Qwen's splitter whose merges are made
/// deterministically, first from words that robot instructions use. Ids stay below `vocabulary_size`. Throws
/// Error(kUsage) as special_ids(), Error(kData) when it cannot be written.
SpecialIds write_tokenizer(const std::string& dir, std::int64_t vocabulary_size);

/// Writes preprocessor_config.json (and what transformers wants beside it for videos) into `dir`.
void write_image_processor(const std::string& dir, const ImageProcessorOptions& options);

}  // namespace plimsoll::data
