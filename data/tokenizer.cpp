#include "data/tokenizer.h"

#include <algorithm>
#include <map>

#include "core/error.h"
#include "data/added_tokens.h"
#include "data/bpe.h"
#include "data/byte_alphabet.h"
#include "data/text_splitter.h"
#include "data/tokenizer_file.h"
#include "data/unicode_text.h"

namespace plimsoll::data {

namespace {

/// The added tokens that are sought before normalisation, or those sought after it (normalised themselves).
AddedTokenFinder finder_of(const TokenizerFile& file, bool normalized) {
  std::vector<AddedToken> chosen;
  for (AddedToken token : file.added_tokens) {
    if (token.normalized != normalized) continue;
    if (normalized && file.nfc) token.content = nfc(token.content);
    chosen.push_back(std::move(token));
  }
  return AddedTokenFinder(std::move(chosen));
}

}  // namespace

struct Tokenizer::Parts {
  explicit Parts(const TokenizerFile& file)
      : bpe(file.bpe, file.path),
        splitter(file.splits, file.path),
        original(finder_of(file, false)),
        normalized(finder_of(file, true)),
        to_nfc(file.nfc) {
    for (const AddedToken& token : file.added_tokens) {
      check_id(token, file.path);
      added[token.id] = token.content;
      added_ids[token.content] = token.id;
    }
  }

  void check_id(const AddedToken& token, const std::string& path) const {
    const std::vector<std::string>& base = bpe.tokens();
    const bool in_base = token.id >= 0 && token.id < static_cast<std::int64_t>(base.size()) && !base[token.id].empty();
    const auto earlier = added.find(token.id);
    const bool taken =
        (in_base && base[token.id] != token.content) || (earlier != added.end() && earlier->second != token.content);
    if (token.id < 0 || taken || bpe.id_of(token.content).value_or(token.id) != token.id)
      fail(ExitCode::kData,
           "{}: added token \"{}\" has the id {}, which is another token's or not its id in the vocabulary", path,
           token.content, token.id);
  }

  void encode_text(std::string_view text, std::vector<std::int64_t>& ids) const {
    splitter.split(text, [&](std::string_view piece) { bpe.encode(piece, ids); });
  }

  /// A stretch without tokens of the original text.
  void encode_stretch(std::string_view text, std::vector<std::int64_t>& ids) const {
    const std::string composed = to_nfc ? nfc(text) : std::string(text);
    normalized.cut(
        composed, [&](std::string_view between) { encode_text(between, ids); },
        [&](const AddedToken& token) { ids.push_back(token.id); });
  }

  Bpe bpe;
  TextSplitter splitter;
  AddedTokenFinder original, normalized;
  bool to_nfc;
  std::map<std::int64_t, std::string> added;
  std::map<std::string, std::int64_t, std::less<>> added_ids;
};

Tokenizer::Tokenizer(const std::string& path) : parts_(std::make_unique<Parts>(read_tokenizer_file(path))) {}
Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;

std::vector<std::int64_t> Tokenizer::encode(std::string_view text) const {
  std::vector<std::int64_t> ids;
  parts_->original.cut(
      valid_utf8(text), [&](std::string_view stretch) { parts_->encode_stretch(stretch, ids); },
      [&](const AddedToken& token) { ids.push_back(token.id); });
  return ids;
}

std::string Tokenizer::decode(std::span<const std::int64_t> ids) const {
  const std::vector<std::string>& base = parts_->bpe.tokens();
  std::string text;
  for (const std::int64_t id : ids) {
    if (const auto added = parts_->added.find(id); added != parts_->added.end()) {
      text += added->second;
      continue;
    }
    if (id < 0 || id >= static_cast<std::int64_t>(base.size()) || base[id].empty())
      fail(ExitCode::kData, "token id {} is not in the vocabulary of {} tokens", id, vocabulary_size());
    text += ByteAlphabet::read(base[id]).value_or(base[id]);
  }
  return text;
}

std::optional<std::int64_t> Tokenizer::token_id(std::string_view token) const {
  if (const auto added = parts_->added_ids.find(token); added != parts_->added_ids.end()) return added->second;
  return parts_->bpe.id_of(token);
}

std::int64_t Tokenizer::vocabulary_size() const {
  const std::int64_t last_added = parts_->added.empty() ? -1 : parts_->added.rbegin()->first;
  return std::max(last_added + 1, static_cast<std::int64_t>(parts_->bpe.tokens().size()));
}

}  // namespace plimsoll::data
