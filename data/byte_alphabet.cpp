#include "data/byte_alphabet.h"

namespace plimsoll::data {

namespace {

bool stands_for_itself(int byte) { return (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174; }

/// All characters of the alphabet are below U+0144: one or two bytes of UTF-8.
std::string to_utf8(int code) {
  if (code < 0x80) return {static_cast<char>(code)};
  return {static_cast<char>(0xC0 | code >> 6), static_cast<char>(0x80 | (code & 0x3F))};
}

constexpr int kCodes = 0x144;

struct Tables {
  std::array<std::string, 256> spelled;
  std::array<int, kCodes> byte_of;  ///< -1: not of the alphabet

  Tables() {
    byte_of.fill(-1);
    int next = 0x100;
    for (int byte = 0; byte < 256; ++byte) {
      const int code = stands_for_itself(byte) ? byte : next++;
      spelled[byte] = to_utf8(code);
      byte_of[code] = byte;
    }
  }
};

const Tables& tables() {
  static const Tables made;
  return made;
}

}  // namespace

const std::string& ByteAlphabet::spell(std::uint8_t byte) { return tables().spelled[byte]; }

std::string ByteAlphabet::spell(std::string_view bytes) {
  std::string result;
  for (const char c : bytes) result += spell(static_cast<std::uint8_t>(c));
  return result;
}

std::optional<std::string> ByteAlphabet::read(std::string_view spelled) {
  std::string result;
  for (std::size_t i = 0; i < spelled.size(); ++i) {
    int code = static_cast<std::uint8_t>(spelled[i]);
    if (code >= 0x80) {
      if ((code & 0xE0) != 0xC0 || i + 1 == spelled.size()) return std::nullopt;
      code = (code & 0x1F) << 6 | (static_cast<std::uint8_t>(spelled[++i]) & 0x3F);
    }
    if (code >= kCodes || tables().byte_of[code] < 0) return std::nullopt;
    result += static_cast<char>(tables().byte_of[code]);
  }
  return result;
}

}  // namespace plimsoll::data
