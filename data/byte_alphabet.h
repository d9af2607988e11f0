#pragma once
// The alphabet in which byte-level tokenizers spell bytes: one visible character for each of the 256.
//
// Printable bytes of Latin-1 stand for themselves; the others, in order, for U+0100 and up (a space is U+0120).
// Introduced with GPT-2; tokenizer.json files spell their vocabulary and merges in it.

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace plimsoll::data {

/// Spells bytes in the alphabet and reads them back. Stateless.
class ByteAlphabet {
 public:
  /// The UTF-8 of the character that stands for `byte`.
  static const std::string& spell(std::uint8_t byte);
  static std::string spell(std::string_view bytes);

  /// The bytes that `spelled` stands for; nothing when it holds a character that is not of the alphabet.
  static std::optional<std::string> read(std::string_view spelled);
};

}  // namespace plimsoll::data
