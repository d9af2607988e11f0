#pragma once
// Numbers to about unit scale and back, by the dataset's statistics, as LeRobot's policies do it.
//
//   mean_std:   (x - mean) / (std + 1e-8)
//   min_max:    2 (x - min) / (max - min) - 1
//   quantiles:  2 (x - q01) / (q99 - q01) - 1

#include <span>
#include <string>
#include <vector>

#include "data/lerobot_info.h"

namespace plimsoll::data {

enum class Normalisation { kMeanStd, kMinMax, kQuantiles };

/// "mean_std", "min_max" or "quantiles"; others throw Error(kUsage).
Normalisation parse_normalisation(const std::string& name);

/// Per element x -> (x - shift) / scale + offset. Where the range is zero (an element that never changes) scale is 1,
/// so that such an element becomes 0 (mean_std) or -1 instead of noise blown up. Immutable.
class Normaliser {
 public:
  /// `where`: whose statistics they are, for errors. Throws Error(kData) naming it and the statistic that is missing
  /// (converted datasets have no quantiles) or not finite.
  Normaliser(Normalisation kind, const FeatureStatistics& statistics, const std::string& where);

  std::size_t width() const { return shift_.size(); }
  /// In place; `values` holds whole rows of width() elements.
  void normalise(std::span<float> values) const;
  void denormalise(std::span<float> values) const;

 private:
  std::vector<double> shift_, scale_;
  double offset_ = 0;
};

}  // namespace plimsoll::data
