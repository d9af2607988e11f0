#include "data/bpe.h"

#include <algorithm>
#include <mutex>
#include <queue>

#include "core/error.h"
#include "data/byte_alphabet.h"

namespace plimsoll::data {

namespace {

// Instructions repeat their words: a few thousand pieces are all there is. Beyond that the cache stays as it is.
constexpr std::size_t kMostPieces = 16384;
constexpr std::size_t kLongestCached = 64;

constexpr std::int64_t kLargestId = 1 << 26;

/// A merge that may still be possible at `position`; outdated when the symbols there have changed meanwhile.
struct Candidate {
  std::uint32_t rank;
  int position;
  std::uint32_t left, right, result;
};
struct Later {
  bool operator()(const Candidate& a, const Candidate& b) const {
    return a.rank != b.rank ? a.rank > b.rank : a.position > b.position;
  }
};

constexpr int kNone = -1;

/// Symbols of a piece as a linked list over a vector: merging takes the right one out.
struct Symbol {
  std::uint32_t id;
  int previous, next;
  bool alive = true;
};

std::vector<Symbol> link(const std::vector<std::uint32_t>& ids) {
  std::vector<Symbol> symbols;
  const int count = static_cast<int>(ids.size());
  for (int i = 0; i < count; ++i) symbols.push_back({ids[i], i - 1, i + 1 < count ? i + 1 : kNone});
  return symbols;
}

}  // namespace

Bpe::Bpe(const BpeModel& model, const std::string& path)
    : fuse_unknown_(model.fuse_unknown), ignore_merges_(model.ignore_merges) {
  read_vocabulary(model, path);
  read_merges(model, path);
  for (int byte = 0; byte < 256; ++byte) {
    const auto found = ids_.find(ByteAlphabet::spell(static_cast<std::uint8_t>(byte)));
    if (found != ids_.end()) byte_ids_[byte] = found->second;
  }
  if (!model.unknown) return;
  const auto found = ids_.find(*model.unknown);
  // Transformers fails on the first unknown byte then; one that has all bytes never asks.
  if (found != ids_.end()) unknown_ = found->second;
}

void Bpe::read_vocabulary(const BpeModel& model, const std::string& path) {
  ids_.reserve(model.vocabulary.size());
  for (const auto& [token, id] : model.vocabulary) {
    if (id < 0 || id > kLargestId)
      fail(ExitCode::kData, "{}: token \"{}\" has the id {}, which cannot be", path, token, id);
    if (id >= static_cast<std::int64_t>(tokens_.size())) tokens_.resize(id + 1);
    if (!tokens_[id].empty())
      fail(ExitCode::kData, "{}: tokens \"{}\" and \"{}\" have the same id {}", path, tokens_[id], token, id);
    tokens_[id] = token;
    ids_.emplace(token, static_cast<Id>(id));
  }
}

void Bpe::read_merges(const BpeModel& model, const std::string& path) {
  merges_.reserve(model.merges.size());
  for (std::size_t rank = 0; rank < model.merges.size(); ++rank) {
    const auto& [left, right] = model.merges[rank];
    const auto a = ids_.find(left), b = ids_.find(right), whole = ids_.find(left + right);
    for (const auto& [found, token] : {std::pair{a, left}, {b, right}, {whole, left + right}})
      if (found == ids_.end())
        fail(ExitCode::kData, "{}: merge {} (\"{}\" + \"{}\") needs token \"{}\", which the vocabulary lacks", path,
             rank, left, right, token);
    merges_.insert_or_assign(pair_of(a->second, b->second), Merge{static_cast<std::uint32_t>(rank), whole->second});
  }
}

std::optional<std::int64_t> Bpe::id_of(std::string_view spelled) const {
  const auto found = ids_.find(spelled);
  return found == ids_.end() ? std::nullopt : std::optional<std::int64_t>(found->second);
}

std::vector<Bpe::Id> Bpe::first_symbols(std::string_view piece) const {
  std::vector<Id> symbols;
  bool after_unknown = false;
  for (const char c : piece) {
    const auto& id = byte_ids_[static_cast<std::uint8_t>(c)];
    if (id) {
      symbols.push_back(*id);
    } else if (unknown_ && !(after_unknown && fuse_unknown_)) {
      symbols.push_back(*unknown_);
    }
    after_unknown = !id;
  }
  return symbols;
}

std::vector<Bpe::Id> Bpe::merge(std::string_view piece) const {
  std::vector<Symbol> symbols = link(first_symbols(piece));
  std::priority_queue<Candidate, std::vector<Candidate>, Later> queue;
  const auto consider = [&](int left) {
    if (left == kNone || symbols[left].next == kNone) return;
    const Id a = symbols[left].id, b = symbols[symbols[left].next].id;
    const auto found = merges_.find(pair_of(a, b));
    if (found != merges_.end()) queue.push({found->second.rank, left, a, b, found->second.result});
  };
  for (int i = 0; i < static_cast<int>(symbols.size()); ++i) consider(i);
  while (!queue.empty()) {
    const Candidate best = queue.top();
    queue.pop();
    Symbol& left = symbols[best.position];
    if (!left.alive || left.id != best.left || left.next == kNone || symbols[left.next].id != best.right) continue;
    Symbol& right = symbols[left.next];
    right.alive = false;
    left.id = best.result;
    left.next = right.next;
    if (left.next != kNone) symbols[left.next].previous = best.position;
    consider(left.previous);
    consider(best.position);
  }
  std::vector<Id> ids;
  for (const Symbol& symbol : symbols)
    if (symbol.alive) ids.push_back(symbol.id);
  return ids;
}

bool Bpe::find_cached(std::string_view piece, std::vector<std::int64_t>& ids) const {
  const std::shared_lock lock(mutex_);
  const auto found = cache_.find(piece);
  if (found == cache_.end()) return false;
  ids.insert(ids.end(), found->second.begin(), found->second.end());
  return true;
}

void Bpe::keep(std::string_view piece, const std::vector<Id>& merged) const {
  const std::unique_lock lock(mutex_);
  if (cache_.size() < kMostPieces) cache_.emplace(piece, merged);
}

void Bpe::encode(std::string_view piece, std::vector<std::int64_t>& ids) const {
  if (ignore_merges_) {
    if (const auto whole = ids_.find(ByteAlphabet::spell(piece)); whole != ids_.end())
      return ids.push_back(whole->second);
  }
  const bool cacheable = piece.size() <= kLongestCached;
  if (cacheable && find_cached(piece, ids)) return;
  const std::vector<Id> merged = merge(piece);
  ids.insert(ids.end(), merged.begin(), merged.end());
  if (cacheable) keep(piece, merged);
}

}  // namespace plimsoll::data
