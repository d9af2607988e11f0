#include "data/feature_statistics.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace plimsoll::data {
namespace {

constexpr std::array kAll{&FeatureStatistics::mean, &FeatureStatistics::std, &FeatureStatistics::min,
                          &FeatureStatistics::max,  &FeatureStatistics::q01, &FeatureStatistics::q99};

using Statistic = std::vector<double> FeatureStatistics::*;

bool all_have(std::span<const CountedStatistics> parts, Statistic statistic) {
  return std::all_of(parts.begin(), parts.end(), [&](const auto& part) { return !(part.values.*statistic).empty(); });
}

double pooled_mean(std::span<const CountedStatistics> parts, double count, std::size_t i) {
  double mean = 0;
  for (const CountedStatistics& part : parts) mean += part.count / count * part.values.mean[i];
  return mean;
}

double pooled_variance(std::span<const CountedStatistics> parts, double count, double mean, std::size_t i) {
  double variance = 0;
  for (const CountedStatistics& part : parts) {
    const double apart = part.values.mean[i] - mean;
    variance += part.count / count * (part.values.std[i] * part.values.std[i] + apart * apart);
  }
  return variance;
}

// The least or the greatest of each element.
template <class Better>
std::vector<double> extremes(std::span<const CountedStatistics> parts, Statistic statistic, Better better) {
  std::vector<double> best = parts.front().values.*statistic;
  for (const CountedStatistics& part : parts) {
    for (std::size_t i = 0; i < best.size(); ++i) best[i] = better(best[i], (part.values.*statistic)[i]);
  }
  return best;
}

}  // namespace

CountedStatistics pooled(std::span<const CountedStatistics> parts) {
  CountedStatistics all;
  for (const CountedStatistics& part : parts) all.count += part.count;
  if (all_have(parts, &FeatureStatistics::mean) && all_have(parts, &FeatureStatistics::std)) {
    for (std::size_t i = 0; i < parts.front().values.mean.size(); ++i) {
      all.values.mean.push_back(pooled_mean(parts, all.count, i));
      all.values.std.push_back(std::sqrt(pooled_variance(parts, all.count, all.values.mean[i], i)));
    }
  }
  const auto less = [](double a, double b) { return std::min(a, b); };
  const auto more = [](double a, double b) { return std::max(a, b); };
  if (all_have(parts, &FeatureStatistics::min)) all.values.min = extremes(parts, &FeatureStatistics::min, less);
  if (all_have(parts, &FeatureStatistics::max)) all.values.max = extremes(parts, &FeatureStatistics::max, more);
  return all;
}

FeatureStatistics select_dimensions(const FeatureStatistics& statistics, std::span<const std::size_t> dimensions) {
  FeatureStatistics chosen;
  for (const Statistic statistic : kAll) {
    if ((statistics.*statistic).empty()) continue;
    for (const std::size_t dimension : dimensions) (chosen.*statistic).push_back((statistics.*statistic)[dimension]);
  }
  return chosen;
}

void replace_dimension(FeatureStatistics& into, const FeatureStatistics& from, std::size_t dimension) {
  for (const Statistic statistic : kAll) {
    auto& values = into.*statistic;
    const auto& others = from.*statistic;
    if (values.empty()) continue;
    if (others.empty()) {
      values.clear();
    } else {
      values[dimension] = others[dimension];
    }
  }
}

}  // namespace plimsoll::data
