#include "report/shown_text.h"

#include <algorithm>

namespace plimsoll::report {
namespace {

bool is_control(char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; }
bool continues_a_character(char c) { return (static_cast<unsigned char>(c) & 0xC0U) == 0x80U; }

std::string entity(char c) {
  switch (c) {
    case '&':
      return "&amp;";
    case '<':
      return "&lt;";
    case '>':
      return "&gt;";
    case '"':
      return "&quot;";
    case '\'':
      return "&#39;";
    default:
      return {is_control(c) && c != '\n' && c != '\t' ? ' ' : c};
  }
}

}  // namespace

std::string on_one_line(std::string_view text, std::size_t most) {
  std::size_t size = std::min(most, text.size());
  while (size < text.size() && size > 0 && continues_a_character(text[size])) --size;
  std::string shown(text.substr(0, size));
  for (char& c : shown) {
    if (is_control(c)) c = ' ';
  }
  return size < text.size() ? shown + "..." : shown;
}

std::string escape_html(std::string_view text) {
  std::string escaped;
  escaped.reserve(text.size());
  for (const char c : text) escaped += entity(c);
  return escaped;
}

}  // namespace plimsoll::report
