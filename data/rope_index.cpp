#include "data/rope_index.h"

#include <algorithm>

#include "core/error.h"

namespace plimsoll::data {

namespace {

/// Positions of one prompt while they are written, three axes of `length` each.
class Positions {
 public:
  explicit Positions(std::size_t length) : length_(length), ids_(3 * length) {}

  void text() {
    put(next_, next_, next_);
    ++next_;
  }
  void picture(std::int64_t frames, std::int64_t rows, std::int64_t columns) {
    for (std::int64_t t = 0; t < frames; ++t)
      for (std::int64_t y = 0; y < rows; ++y)
        for (std::int64_t x = 0; x < columns; ++x) put(next_ + t, next_ + y, next_ + x);
    next_ += std::max(rows, columns);
  }
  std::vector<std::int64_t> take() { return std::move(ids_); }

 private:
  void put(std::int64_t time, std::int64_t height, std::int64_t width) {
    ids_[at_] = time;
    ids_[length_ + at_] = height;
    ids_[2 * length_ + at_] = width;
    ++at_;
  }

  std::size_t length_, at_ = 0;
  std::int64_t next_ = 0;
  std::vector<std::int64_t> ids_;
};

}  // namespace

std::vector<std::int64_t> rope_index(std::span<const std::int64_t> input_ids,
                                     std::span<const std::array<std::int64_t, 3>> grids, std::int64_t image_token_id,
                                     std::int64_t merge) {
  Positions positions(input_ids.size());
  std::size_t picture = 0;
  for (std::size_t i = 0; i < input_ids.size();) {
    if (input_ids[i] != image_token_id) {
      positions.text();
      ++i;
      continue;
    }
    const std::size_t start = i;
    while (i < input_ids.size() && input_ids[i] == image_token_id) ++i;
    const auto run = static_cast<std::int64_t>(i - start);
    if (picture == grids.size())
      fail(ExitCode::kData, "the prompt has image tokens for picture {}, but there are only {} pictures", picture,
           grids.size());
    const auto [frames, rows, columns] = grids[picture];
    if (frames * (rows / merge) * (columns / merge) != run)
      fail(ExitCode::kData,
           "picture {} has a grid of {} x {} x {} patches, which makes {} tokens, but the prompt has {} for it",
           picture, frames, rows, columns, frames * (rows / merge) * (columns / merge), run);
    positions.picture(frames, rows / merge, columns / merge);
    ++picture;
  }
  if (picture != grids.size())
    fail(ExitCode::kData, "the prompt has image tokens for {} pictures, but there are {}", picture, grids.size());
  return positions.take();
}

}  // namespace plimsoll::data
