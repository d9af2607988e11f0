#pragma once
// Statistics of features, as LeRobot keeps them per episode and over a dataset. Numbers: no sums of squares that
// cancel, and quantiles of the data itself (linear interpolation between neighbours, as numpy's default), of a regular
// part of it where there are too many rows to keep. Pictures: from histograms of 256 levels, so exact whatever their
// number.

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "data/image_file.h"

namespace plimsoll::data {

/// Per element of a feature (per channel of a picture, in 0..1).
struct Summary {
  std::int64_t count = 0;  ///< rows
  std::vector<double> min, max, mean, std, q01, q10, q50, q90, q99;
};

/// Of rows of numbers. Welford, "Note on a Method for Calculating Corrected Sums of Squares and Products"
/// (Technometrics 1962).
class NumberSummary {
 public:
  /// `width`: values of a row.
  explicit NumberSummary(std::size_t width);
  /// `row` has `width` values.
  void add(std::span<const double> row);
  /// Of all rows since the start or clear(); there must be one at least.
  Summary summary() const;
  void clear();

 private:
  std::size_t width_;
  std::int64_t count_ = 0, stride_ = 1;
  std::vector<double> mean_, squares_, min_, max_;
  std::vector<std::vector<double>> kept_;  // for quantiles: every stride_-th row, so that memory is bounded
};

/// Of pictures' channels, from their histograms.
class PictureSummary {
 public:
  void add(const Image& image);
  Summary summary() const;
  void clear() { *this = PictureSummary(); }

 private:
  std::array<std::array<std::int64_t, 256>, 3> histograms_{};
  std::int64_t count_ = 0;
};

}  // namespace plimsoll::data
