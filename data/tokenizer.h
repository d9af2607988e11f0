#pragma once
// Text to token ids and back: byte-level BPE as Qwen's models use it, read from a Hugging Face tokenizer.json.
//
// What happens to a text, in this order, is what the `tokenizers` library does with the same file: added tokens are cut
// out (leftmost, then longest; those marked "normalized" after normalisation), the rest is normalised (NFC or nothing),
// split by the file's regular expression, each piece's bytes are written in the byte-level alphabet and merged by rank.
// Nothing is put in front or behind: Qwen's post-processor adds no token.
//
// Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units" (ACL 2016), section 3.2.

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace plimsoll::data {

/// Immutable once read, but for a cache of pieces behind a lock: any thread may use one object.
class Tokenizer {
 public:
  /// Reads `path`. Throws Error(kData) naming the file when it is missing, no JSON, damaged (an id twice, a merge of
  /// unknown tokens), or of another kind (Unigram, WordPiece, byte fallback, other normalisers or splitters): the text
  /// says which kind was found.
  explicit Tokenizer(const std::string& path);
  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;

  /// Ids of `text`, special tokens inside it parsed as such (as transformers does). Bytes that are no UTF-8 become
  /// U+FFFD.
  std::vector<std::int64_t> encode(std::string_view text) const;

  /// The text of `ids`, special tokens spelled out. Unknown ids throw Error(kData); bytes that form no UTF-8 are
  /// returned as is.
  std::string decode(std::span<const std::int64_t> ids) const;

  /// Id of a whole token by its text ("<|image_pad|>"), base or added; nothing when there is none.
  std::optional<std::int64_t> token_id(std::string_view token) const;

  /// Largest id + 1. The model's embedding may have more rows (padding).
  std::int64_t vocabulary_size() const;

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace plimsoll::data
