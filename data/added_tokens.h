#pragma once
// Finding special and other added tokens in a text: leftmost first, the longest among those that start there.

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "data/tokenizer_file.h"

namespace plimsoll::data {

/// Immutable: any thread may use one object.
class AddedTokenFinder {
 public:
  explicit AddedTokenFinder(std::vector<AddedToken> tokens);

  /// Calls `take_text` for every stretch between tokens (never empty) and `take_token` for every token, in order.
  void cut(std::string_view text, const std::function<void(std::string_view)>& take_text,
           const std::function<void(const AddedToken&)>& take_token) const;

  bool empty() const { return tokens_.empty(); }

 private:
  const AddedToken* longest_at(std::string_view text, std::size_t at) const;

  std::vector<AddedToken> tokens_;
  std::array<std::vector<std::uint32_t>, 256> by_first_byte_;  ///< longest first
};

}  // namespace plimsoll::data
