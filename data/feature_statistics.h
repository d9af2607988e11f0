#pragma once
// Statistics of a feature (data/lerobot_info.h) cut down to some of its elements, and those of several parts of the
// data put together. Pure.

#include <cstddef>
#include <span>
#include <vector>

#include "data/lerobot_info.h"

namespace plimsoll::data {

/// Statistics of so many rows.
struct CountedStatistics {
  double count = 0;
  FeatureStatistics values;
};

/// Those of all rows of `parts`: means by count, variances around the mean of all, the least minimum, the greatest
/// maximum. A statistic that one of the parts lacks, and quantiles, which do not follow from those of the parts, stay
/// empty. All parts are of one width; there must be one at least.
CountedStatistics pooled(std::span<const CountedStatistics> parts);

/// Those of the elements `dimensions`, in this order. Empty ones stay empty.
FeatureStatistics select_dimensions(const FeatureStatistics& statistics, std::span<const std::size_t> dimensions);

/// `from`'s element `dimension` in place of that of `into`, which has its width or is empty and then stays so.
void replace_dimension(FeatureStatistics& into, const FeatureStatistics& from, std::size_t dimension);

}  // namespace plimsoll::data
