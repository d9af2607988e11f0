#pragma once
// Cutting text into pieces by a tokenizer's regular expressions, the way Oniguruma (which `tokenizers` uses) matches
// them.

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "data/tokenizer_file.h"

namespace plimsoll::data {

/// PCRE2 with UTF, Unicode properties and just-in-time compilation. Immutable: any thread may use one object.
class TextSplitter {
 public:
  /// Throws Error(kData) that starts with `path` when a pattern does not compile.
  TextSplitter(const std::vector<SplitPattern>& patterns, const std::string& path);
  ~TextSplitter();
  TextSplitter(TextSplitter&&) noexcept;

  /// Calls `take` with every piece of `text` (valid UTF-8), in order: matches and what lies between them, nothing lost.
  /// Several patterns cut one after another.
  void split(std::string_view text, const std::function<void(std::string_view)>& take) const;

 private:
  struct Pattern;
  void split_from(std::size_t pattern, std::string_view text, const std::function<void(std::string_view)>& take) const;
  std::vector<Pattern> patterns_;
};

}  // namespace plimsoll::data
