#pragma once
// Where each patch of an image goes: the vision tower works on patches sorted by attention window. Host integers only.
//
// An image of h x w patches arrives in merge-block order, (h / 2, w / 2, 2, 2): four neighbours that become one token
// follow each other. Blocks are cut into windows of side x side blocks from the top left corner; windows at the right
// and bottom are smaller when the side does not divide. (Bai et al., "Qwen2.5-VL Technical Report", 2025,
// section 2.1.1.)

#include <array>
#include <cstdint>
#include <vector>

namespace plimsoll::model {

/// Layout of all images of a micro-batch, one after another. P patches, P / 4 blocks.
struct VisionLayout {
  std::vector<std::int64_t> blocks;                    ///< [P / 4] block at each place of the window order
  std::vector<std::int64_t> unpermute;                 ///< [P / 4] place in the window order of each block
  std::vector<std::int64_t> windows;                   ///< patches of each window; sums to P
  std::vector<std::int64_t> frames;                    ///< patches of each frame of each image; sums to P
  std::vector<std::array<std::int64_t, 2>> positions;  ///< [P] patch row and column, in image order

  /// Appends one image of grid (frames, patch rows, patch columns). Rows and columns are multiples of `merge`; `side`
  /// is the window's side in blocks.
  void append(const std::array<std::int64_t, 3>& grid, int merge, int side);
};

}  // namespace plimsoll::model
