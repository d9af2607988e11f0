#include "data/unicode_text.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <memory>

#include "core/error.h"

namespace plimsoll::data {

namespace {

struct Character {
  utf8proc_int32_t code = -1;
  std::size_t bytes = 0;  ///< 0 at the end of the text
};

Character first(std::string_view text) {
  Character result;
  if (text.empty()) return result;
  const auto taken = utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                                      static_cast<utf8proc_ssize_t>(text.size()), &result.code);
  result.bytes = taken > 0 ? static_cast<std::size_t>(taken) : 1;
  return result;
}

Character last(std::string_view text) {
  std::size_t start = text.size();
  while (start > 0) {
    --start;
    if ((static_cast<unsigned char>(text[start]) & 0xC0) != 0x80) break;
  }
  return first(text.substr(start));
}

bool is_space(utf8proc_int32_t code) {
  if (code < 0) return false;
  if ((code >= 0x09 && code <= 0x0D) || code == 0x85) return true;
  const auto category = utf8proc_category(code);
  return category == UTF8PROC_CATEGORY_ZS || category == UTF8PROC_CATEGORY_ZL || category == UTF8PROC_CATEGORY_ZP;
}

bool is_word(utf8proc_int32_t code) {
  if (code < 0) return false;
  const auto category = utf8proc_category(code);
  return (category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_ND) || category == UTF8PROC_CATEGORY_NL ||
         category == UTF8PROC_CATEGORY_PC;
}

bool is_ascii(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x80; });
}

}  // namespace

std::string valid_utf8(std::string_view text) {
  if (is_ascii(text)) return std::string(text);
  std::string result;
  while (!text.empty()) {
    const Character character = first(text);
    if (character.code >= 0) {
      result += text.substr(0, character.bytes);
    } else {
      result += "\xEF\xBF\xBD";
    }
    text.remove_prefix(character.bytes);
  }
  return result;
}

std::string nfc(std::string_view text) {
  if (is_ascii(text)) return std::string(text);
  utf8proc_uint8_t* composed = nullptr;
  const auto length =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()), static_cast<utf8proc_ssize_t>(text.size()),
                   &composed, static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(composed, &std::free);
  if (length < 0)
    fail(ExitCode::kData, "a text of {} bytes cannot be normalised: {}", text.size(), utf8proc_errmsg(length));
  return {reinterpret_cast<const char*>(composed), static_cast<std::size_t>(length)};
}

std::size_t leading_space(std::string_view text) {
  std::size_t bytes = 0;
  while (is_space(first(text.substr(bytes)).code)) bytes += first(text.substr(bytes)).bytes;
  return bytes;
}

std::size_t trailing_space(std::string_view text) {
  std::size_t rest = text.size();
  while (is_space(last(text.substr(0, rest)).code)) rest -= last(text.substr(0, rest)).bytes;
  return text.size() - rest;
}

bool starts_with_word(std::string_view text) { return is_word(first(text).code); }
bool ends_with_word(std::string_view text) { return is_word(last(text).code); }

}  // namespace plimsoll::data
