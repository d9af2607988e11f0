#pragma once
// A vocabulary out of nothing, for randomly initialised models: real byte-pair merges, always the same for the same
// size.

#include <cstdint>

#include "data/tokenizer_file.h"

namespace plimsoll::data {

/// `size` tokens (256 at least): the bytes, then merges learned from words of robot instructions and of the chat
/// template (most frequent pair first), then ever longer strings of letters until the size is reached. Ids 0 to size
/// - 1.
///
/// Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units" (ACL 2016), algorithm 1.
BpeModel make_bpe_model(std::int64_t size);

}  // namespace plimsoll::data
