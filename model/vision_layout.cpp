#include "model/vision_layout.h"

#include <algorithm>

namespace plimsoll::model {
namespace {

// Blocks of one window, row by row; `first` is the frame's first block, `columns` the frame's width in blocks.
struct Window {
  std::int64_t top, bottom, left, right;
  void list(std::int64_t first, std::int64_t columns, std::vector<std::int64_t>& out) const {
    for (std::int64_t row = top; row < bottom; ++row) {
      for (std::int64_t column = left; column < right; ++column) out.push_back(first + row * columns + column);
    }
  }
  std::int64_t blocks() const { return (bottom - top) * (right - left); }
};

void append_frame(VisionLayout& layout, std::int64_t rows, std::int64_t columns, int merge, int side) {
  const auto first = static_cast<std::int64_t>(layout.blocks.size());
  for (std::int64_t top = 0; top < rows; top += side) {
    for (std::int64_t left = 0; left < columns; left += side) {
      const Window window{top, std::min(top + side, rows), left, std::min(left + side, columns)};
      window.list(first, columns, layout.blocks);
      layout.windows.push_back(window.blocks() * merge * merge);
    }
  }
  layout.frames.push_back(rows * columns * merge * merge);
}

void append_positions(VisionLayout& layout, std::int64_t rows, std::int64_t columns, int merge) {
  for (std::int64_t block = 0; block < rows * columns; ++block) {
    for (std::int64_t cell = 0; cell < std::int64_t{merge} * merge; ++cell) {
      layout.positions.push_back({block / columns * merge + cell / merge, block % columns * merge + cell % merge});
    }
  }
}

}  // namespace

void VisionLayout::append(const std::array<std::int64_t, 3>& grid, int merge, int side) {
  const auto start = blocks.size();
  const std::int64_t rows = grid[1] / merge, columns = grid[2] / merge;
  for (std::int64_t frame = 0; frame < grid[0]; ++frame) {
    append_frame(*this, rows, columns, merge, side);
    append_positions(*this, rows, columns, merge);
  }
  unpermute.resize(blocks.size());
  for (auto place = start; place < blocks.size(); ++place) unpermute[blocks[place]] = static_cast<std::int64_t>(place);
}

}  // namespace plimsoll::model
