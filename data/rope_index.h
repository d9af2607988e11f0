#pragma once
// Position ids of Qwen2.5-VL's multimodal rotary embedding (M-RoPE).
//
// Text counts up on all three axes. A picture that starts at position s has time s, height s + row, width s + column on
// its grid of merged patches; the text after it goes on at s + max(rows, columns).
//
// Bai et al., "Qwen2.5-VL Technical Report" (2025), section 2.1.2; numbers as transformers 5.17's get_rope_index.

#include <array>
#include <cstdint>
#include <span>
#include <vector>

namespace plimsoll::data {

/// [3, L] row-major (time, height, width) for a prompt of L tokens. `grids` holds one (frames, patch rows, patch
/// columns) a picture, in order of appearance; each picture is a run of frames * rows * columns / merge^2 tokens
/// `image_token_id`. Throws Error(kData) when runs and grids do not match.
std::vector<std::int64_t> rope_index(std::span<const std::int64_t> input_ids,
                                     std::span<const std::array<std::int64_t, 3>> grids, std::int64_t image_token_id,
                                     std::int64_t merge = 2);

}  // namespace plimsoll::data
