#pragma once
// Byte-pair merging: the bytes of one piece of text to token ids, by the rank of the merges.
//
// Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units" (ACL 2016), section 3.2; always the
// lowest rank first, leftmost among equals.

#include <array>
#include <cstdint>
#include <optional>
#include <shared_mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "data/tokenizer_file.h"

namespace plimsoll::data {

/// Immutable but for a cache of pieces behind a lock: any thread may use one object.
class Bpe {
 public:
  /// Throws Error(kData) that starts with `path` when two tokens share an id, or a merge names or makes a token that is
  /// not there.
  Bpe(const BpeModel& model, const std::string& path);

  /// Appends the ids of `piece` (raw bytes, a piece after splitting).
  void encode(std::string_view piece, std::vector<std::int64_t>& ids) const;

  /// Id of the token spelled so in the byte-level alphabet.
  std::optional<std::int64_t> id_of(std::string_view spelled) const;

  /// Spelled tokens by id; empty strings where an id is not used.
  const std::vector<std::string>& tokens() const { return tokens_; }

 private:
  using Id = std::uint32_t;
  /// What a pair of neighbours becomes, and how early that merge was learned.
  struct Merge {
    std::uint32_t rank;
    Id result;
  };
  struct PairHash {
    std::size_t operator()(std::uint64_t pair) const noexcept {
      return (pair ^ pair >> 29) * 0x9E3779B97F4A7C15ull >> 13;
    }
  };
  /// Lets maps of strings be searched by string_view, without a copy.
  struct TextHash {
    using is_transparent = void;
    std::size_t operator()(std::string_view text) const noexcept { return std::hash<std::string_view>{}(text); }
  };
  template <class Value>
  using TextMap = std::unordered_map<std::string, Value, TextHash, std::equal_to<>>;

  static std::uint64_t pair_of(Id left, Id right) { return std::uint64_t{left} << 32 | right; }
  void read_vocabulary(const BpeModel& model, const std::string& path);
  void read_merges(const BpeModel& model, const std::string& path);
  /// One symbol per byte, or the unknown token where the vocabulary lacks that byte.
  std::vector<Id> first_symbols(std::string_view piece) const;
  std::vector<Id> merge(std::string_view piece) const;
  bool find_cached(std::string_view piece, std::vector<std::int64_t>& ids) const;
  void keep(std::string_view piece, const std::vector<Id>& merged) const;

  TextMap<Id> ids_;
  std::vector<std::string> tokens_;
  std::unordered_map<std::uint64_t, Merge, PairHash> merges_;
  std::array<std::optional<Id>, 256> byte_ids_;
  // Of the tokenizer file: "unk_token", "fuse_unk" (neighbouring unknown bytes become one token), "ignore_merges" (a
  // whole piece that is a token is taken as it is).
  std::optional<Id> unknown_;
  bool fuse_unknown_ = false;
  bool ignore_merges_ = false;

  mutable std::shared_mutex mutex_;
  mutable TextMap<std::vector<Id>> cache_;
};

}  // namespace plimsoll::data
