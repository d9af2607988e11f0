#define PCRE2_CODE_UNIT_WIDTH 8
#include "data/text_splitter.h"

#include <pcre2.h>

#include "core/error.h"

namespace plimsoll::data {

namespace {

struct FreeCode {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
};
struct FreeMatch {
  void operator()(pcre2_match_data* match) const { pcre2_match_data_free(match); }
};

/// PCRE2's \s has U+180E in it, Oniguruma's has not: both follow Unicode's White_Space when it is named.
std::string with_unicode_spaces(const std::string& pattern) {
  std::string result;
  for (std::size_t i = 0; i < pattern.size(); ++i) {
    if (pattern[i] != '\\' || i + 1 == pattern.size()) {
      result += pattern[i];
      continue;
    }
    const char escaped = pattern[++i];
    if (escaped == 's' || escaped == 'S') {
      result += escaped == 's' ? "\\p{White_Space}" : "\\P{White_Space}";
    } else {
      result += {'\\', escaped};
    }
  }
  return result;
}

std::string message_of(int error) {
  PCRE2_UCHAR text[256];
  pcre2_get_error_message(error, text, sizeof text);
  return reinterpret_cast<const char*>(text);
}

std::size_t character_at(std::string_view text, std::size_t start) {
  std::size_t end = start + 1;
  while (end < text.size() && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) ++end;
  return end - start;
}

}  // namespace

struct TextSplitter::Pattern {
  std::unique_ptr<pcre2_code, FreeCode> code;
};

TextSplitter::TextSplitter(const std::vector<SplitPattern>& patterns, const std::string& path) {
  for (const SplitPattern& pattern : patterns) {
    const std::string text = pattern.literal ? pattern.text : with_unicode_spaces(pattern.text);
    const std::uint32_t options = pattern.literal ? PCRE2_UTF | PCRE2_LITERAL : PCRE2_UTF | PCRE2_UCP;
    int error = 0;
    PCRE2_SIZE where = 0;
    pcre2_code* code =
        pcre2_compile(reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), options, &error, &where, nullptr);
    if (!code)
      fail(ExitCode::kData, "{}: its split pattern does not compile: {} at {} of {}", path, message_of(error), where,
           text);
    pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);  // where there is no JIT, matching interprets
    patterns_.push_back({std::unique_ptr<pcre2_code, FreeCode>(code)});
  }
}

TextSplitter::~TextSplitter() = default;
TextSplitter::TextSplitter(TextSplitter&&) noexcept = default;

void TextSplitter::split(std::string_view text, const std::function<void(std::string_view)>& take) const {
  if (!text.empty()) split_from(0, text, take);
}

void TextSplitter::split_from(std::size_t pattern, std::string_view text,
                              const std::function<void(std::string_view)>& take) const {
  if (pattern == patterns_.size()) return take(text);
  const pcre2_code* code = patterns_[pattern].code.get();
  const std::unique_ptr<pcre2_match_data, FreeMatch> match(pcre2_match_data_create_from_pattern(code, nullptr));
  const auto subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  const auto pass_on = [&](std::size_t from, std::size_t to) {
    if (to > from) split_from(pattern + 1, text.substr(from, to - from), take);
  };
  std::size_t done = 0;
  for (std::size_t at = 0; at < text.size();) {
    int found = pcre2_match(code, subject, text.size(), at, PCRE2_NO_UTF_CHECK, match.get(), nullptr);
    if (found == PCRE2_ERROR_JIT_STACKLIMIT)
      found = pcre2_match(code, subject, text.size(), at, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, match.get(), nullptr);
    if (found == PCRE2_ERROR_NOMATCH) break;
    if (found < 0)
      fail(ExitCode::kData, "a text of {} bytes cannot be split into pieces: {}; shorten it", text.size(),
           message_of(found));
    const PCRE2_SIZE* range = pcre2_get_ovector_pointer(match.get());
    pass_on(done, range[0]);
    pass_on(range[0], range[1]);
    done = range[1];
    at = range[1] > range[0] ? range[1] : range[1] + character_at(text, range[1]);
  }
  pass_on(done, text.size());
}

}  // namespace plimsoll::data
