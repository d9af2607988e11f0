#include "cache/row_ranges.h"

#include <iterator>

namespace plimsoll::cache {

RowRanges::RowRanges(std::int64_t rows) : free_(rows) {
  if (rows > 0) gaps_.emplace(0, rows);
}

std::optional<std::int64_t> RowRanges::take(std::int64_t count) {
  auto best = gaps_.end();
  for (auto gap = gaps_.begin(); gap != gaps_.end(); ++gap)
    if (gap->second >= count && (best == gaps_.end() || gap->second < best->second)) best = gap;
  if (best == gaps_.end()) return std::nullopt;
  const auto [first, size] = *best;
  gaps_.erase(best);
  if (size > count) gaps_.emplace(first + count, size - count);
  free_ -= count;
  return first;
}

void RowRanges::give_back(std::int64_t first, std::int64_t count) {
  free_ += count;
  const auto after = gaps_.lower_bound(first);
  if (after != gaps_.end() && after->first == first + count) {
    count += after->second;
    gaps_.erase(after);
  }
  const auto behind = gaps_.lower_bound(first);
  if (behind != gaps_.begin()) {
    const auto before = std::prev(behind);
    if (before->first + before->second == first) {
      before->second += count;
      return;
    }
  }
  gaps_.emplace(first, count);
}

}  // namespace plimsoll::cache
