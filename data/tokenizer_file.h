#pragma once
// A Hugging Face tokenizer.json, read and checked: the parts that a byte-level BPE needs, and nothing that it cannot
// honour.

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace plimsoll::data {

/// An entry of "added_tokens": cut out of the text before anything else happens to it.
struct AddedToken {
  std::int64_t id = 0;
  std::string content;
  bool single_word = false;  ///< only where no word character touches it
  bool lstrip = false;       ///< swallows the white space before it
  bool rstrip = false;       ///< swallows the white space after it
  bool normalized = false;   ///< sought in the normalised text, not in the original
};

/// A "Split" pre-tokenizer with behaviour "Isolated": matches and what is between them become pieces.
struct SplitPattern {
  std::string text;
  bool literal = false;  ///< a plain string instead of a regular expression
};

/// The "model" of type BPE. Tokens and merges are spelled in the byte-level alphabet (data/byte_alphabet.h).
struct BpeModel {
  std::vector<std::pair<std::string, std::int64_t>> vocabulary;
  std::vector<std::pair<std::string, std::string>> merges;  ///< by rank
  std::optional<std::string> unknown;  ///< token for a byte that the vocabulary lacks; without one such bytes vanish
  bool fuse_unknown = false;           ///< a run of such bytes becomes one token
  bool ignore_merges = false;          ///< a piece that is a token as a whole is not merged
};

struct TokenizerFile {
  std::string path;
  std::vector<AddedToken> added_tokens;
  bool nfc = false;                  ///< normalise to NFC (Unicode Standard Annex 15)
  std::vector<SplitPattern> splits;  ///< applied one after another
  BpeModel bpe;
};

/// Reads `path`. Throws Error(kData) naming file and what was found: not JSON, a missing or mistyped entry, a model
/// other than byte-level BPE, a normaliser, splitter, post-processor or option that Plimsoll does not do.
TokenizerFile read_tokenizer_file(const std::string& path);

}  // namespace plimsoll::data
