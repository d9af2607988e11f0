#include "data/added_tokens.h"

#include <algorithm>

#include "data/unicode_text.h"

namespace plimsoll::data {

namespace {

bool touches_a_word(std::string_view text, std::size_t start, std::size_t end) {
  return ends_with_word(text.substr(0, start)) || starts_with_word(text.substr(end));
}

}  // namespace

AddedTokenFinder::AddedTokenFinder(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  std::erase_if(tokens_, [](const AddedToken& token) { return token.content.empty(); });
  std::stable_sort(tokens_.begin(), tokens_.end(),
                   [](const AddedToken& a, const AddedToken& b) { return a.content.size() > b.content.size(); });
  for (std::uint32_t i = 0; i < tokens_.size(); ++i)
    by_first_byte_[static_cast<std::uint8_t>(tokens_[i].content[0])].push_back(i);
}

const AddedToken* AddedTokenFinder::longest_at(std::string_view text, std::size_t at) const {
  for (const std::uint32_t i : by_first_byte_[static_cast<std::uint8_t>(text[at])])
    if (text.substr(at).starts_with(tokens_[i].content)) return &tokens_[i];
  return nullptr;
}

void AddedTokenFinder::cut(std::string_view text, const std::function<void(std::string_view)>& take_text,
                           const std::function<void(const AddedToken&)>& take_token) const {
  std::size_t done = 0;
  for (std::size_t at = 0; at < text.size();) {
    const AddedToken* token = longest_at(text, at);
    if (!token) {
      ++at;
      continue;
    }
    std::size_t start = at, end = at + token->content.size();
    at = end;
    if (token->single_word && touches_a_word(text, start, end)) continue;
    if (token->lstrip) start = std::max(done, start - trailing_space(text.substr(0, start)));
    if (token->rstrip) end += leading_space(text.substr(end));
    if (start > done) take_text(text.substr(done, start - done));
    take_token(*token);
    done = at = end;
  }
  if (done < text.size()) take_text(text.substr(done));
}

}  // namespace plimsoll::data
