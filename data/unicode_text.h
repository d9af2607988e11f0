#pragma once
// The little Unicode that a tokenizer needs, on UTF-8.

#include <cstddef>
#include <string>
#include <string_view>

namespace plimsoll::data {

/// `text` with every byte sequence that is no UTF-8 replaced by U+FFFD.
std::string valid_utf8(std::string_view text);

/// Normalisation form C (Unicode Standard Annex 15) of valid UTF-8.
std::string nfc(std::string_view text);

/// Bytes of the white space (Unicode's White_Space) that valid UTF-8 starts or ends with.
std::size_t leading_space(std::string_view text);
std::size_t trailing_space(std::string_view text);

/// Whether valid UTF-8 starts or ends with a word character: letter, mark, digit or connector (Unicode's \w).
bool starts_with_word(std::string_view text);
bool ends_with_word(std::string_view text);

}  // namespace plimsoll::data
