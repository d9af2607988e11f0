#pragma once
// Which rows of one large table are taken: for features of different lengths that share a piece of device memory.

#include <cstdint>
#include <map>
#include <optional>

namespace plimsoll::cache {

/// One thread at a time.
class RowRanges {
 public:
  explicit RowRanges(std::int64_t rows);
  /// The first of `count` rows, at least 1, that are free side by side and are taken from now on: of the smallest such
  /// gap, the foremost. Nothing where there is no such gap.
  std::optional<std::int64_t> take(std::int64_t count);
  /// Gives back what take() gave, all of it.
  void give_back(std::int64_t first, std::int64_t count);
  std::int64_t free() const { return free_; }

 private:
  std::map<std::int64_t, std::int64_t> gaps_;  ///< first row and count; no two touch
  std::int64_t free_;
};

}  // namespace plimsoll::cache
