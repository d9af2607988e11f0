#include "data/summary.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace plimsoll::data {
namespace {

constexpr std::size_t kMostKept = 1 << 17;

constexpr std::array kQuantiles{0.01, 0.10, 0.50, 0.90, 0.99};

std::array<std::vector<double>*, 5> quantiles_of(Summary& summary) {
  return {&summary.q01, &summary.q10, &summary.q50, &summary.q90, &summary.q99};
}

double interpolate(const std::vector<double>& sorted, double quantile) {
  const double place = quantile * static_cast<double>(sorted.size() - 1);
  const auto low = static_cast<std::size_t>(place);
  const std::size_t high = std::min(low + 1, sorted.size() - 1);
  return sorted[low] + (place - static_cast<double>(low)) * (sorted[high] - sorted[low]);
}

/// The smallest level that at least `quantile` of the pixels do not exceed.
double level_at(const std::array<std::int64_t, 256>& histogram, double total, double quantile) {
  std::int64_t seen = 0;
  int level = 0;
  while (level < 255 && static_cast<double>(seen += histogram[static_cast<std::size_t>(level)]) < quantile * total)
    ++level;
  return level / 255.0;
}

void add_channel(const std::array<std::int64_t, 256>& histogram, Summary& out) {
  double total = 0, sum = 0, squares = 0, low = 1, high = 0;
  for (std::size_t level = 0; level < 256; ++level) {
    if (histogram[level] == 0) continue;
    const auto n = static_cast<double>(histogram[level]);
    const double value = static_cast<double>(level) / 255.0;
    total += n, sum += n * value, squares += n * value * value;
    low = std::min(low, value), high = std::max(high, value);
  }
  out.min.push_back(low);
  out.max.push_back(high);
  out.mean.push_back(sum / total);
  out.std.push_back(std::sqrt(std::max(0.0, squares / total - (sum / total) * (sum / total))));
  const auto quantiles = quantiles_of(out);
  for (std::size_t q = 0; q < kQuantiles.size(); ++q)
    quantiles[q]->push_back(level_at(histogram, total, kQuantiles[q]));
}

}  // namespace

NumberSummary::NumberSummary(std::size_t width) : width_(width) { clear(); }

void NumberSummary::clear() {
  count_ = 0;
  stride_ = 1;
  mean_.assign(width_, 0);
  squares_.assign(width_, 0);
  min_.assign(width_, std::numeric_limits<double>::infinity());
  max_.assign(width_, -std::numeric_limits<double>::infinity());
  kept_.assign(width_, {});
}

void NumberSummary::add(std::span<const double> row) {
  const bool keep = count_++ % stride_ == 0;
  for (std::size_t i = 0; i < width_; ++i) {
    const double delta = row[i] - mean_[i];
    mean_[i] += delta / static_cast<double>(count_);
    squares_[i] += delta * (row[i] - mean_[i]);
    min_[i] = std::min(min_[i], row[i]);
    max_[i] = std::max(max_[i], row[i]);
    if (keep) kept_[i].push_back(row[i]);
  }
  if (width_ == 0 || kept_[0].size() < kMostKept) return;
  for (auto& values : kept_) {  // every second one goes
    for (std::size_t i = 0; i < values.size() / 2; ++i) values[i] = values[2 * i];
    values.resize(values.size() / 2);
  }
  stride_ *= 2;
}

Summary NumberSummary::summary() const {
  Summary out{count_, min_, max_, mean_, {}, {}, {}, {}, {}, {}};
  const auto quantiles = quantiles_of(out);
  for (std::size_t i = 0; i < width_; ++i) {
    out.std.push_back(std::sqrt(squares_[i] / static_cast<double>(count_)));
    auto sorted = kept_[i];
    std::sort(sorted.begin(), sorted.end());
    for (std::size_t q = 0; q < kQuantiles.size(); ++q) quantiles[q]->push_back(interpolate(sorted, kQuantiles[q]));
  }
  return out;
}

void PictureSummary::add(const Image& image) {
  ++count_;
  for (std::size_t i = 0; i + 2 < image.pixels.size(); i += 3) {
    for (std::size_t channel = 0; channel < 3; ++channel) ++histograms_[channel][image.pixels[i + channel]];
  }
}

Summary PictureSummary::summary() const {
  Summary out;
  out.count = count_;
  for (const auto& histogram : histograms_) add_channel(histogram, out);
  return out;
}

}  // namespace plimsoll::data
