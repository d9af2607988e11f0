#include "data/normaliser.h"

#include <cmath>

#include "core/error.h"

namespace plimsoll::data {
namespace {

const std::vector<double>& statistic(const std::vector<double>& values, const char* name, const std::string& where) {
  if (values.empty()) {
    fail(ExitCode::kData,
         "{}: no \"{}\" among them; choose another data.normalisation or compute the statistics again (format v2.1 has "
         "no "
         "quantiles)",
         where, name);
  }
  for (const double value : values) {
    if (!std::isfinite(value)) fail(ExitCode::kData, "{}: their {} holds {}, which is not finite", where, name, value);
  }
  return values;
}

}  // namespace

Normalisation parse_normalisation(const std::string& name) {
  if (name == "mean_std") return Normalisation::kMeanStd;
  if (name == "min_max") return Normalisation::kMinMax;
  if (name == "quantiles") return Normalisation::kQuantiles;
  fail(ExitCode::kUsage, "data.normalisation is \"{}\", but must be one of mean_std, min_max, quantiles", name);
}

Normaliser::Normaliser(Normalisation kind, const FeatureStatistics& statistics, const std::string& where) {
  if (kind == Normalisation::kMeanStd) {
    shift_ = statistic(statistics.mean, "mean", where);
    for (const double std : statistic(statistics.std, "std", where)) scale_.push_back(std > 0 ? std + 1e-8 : 1.0);
  } else {
    const bool ends = kind == Normalisation::kMinMax;
    shift_ = statistic(ends ? statistics.min : statistics.q01, ends ? "min" : "q01", where);
    const auto& high = statistic(ends ? statistics.max : statistics.q99, ends ? "max" : "q99", where);
    for (std::size_t i = 0; i < shift_.size(); ++i)
      scale_.push_back(high[i] > shift_[i] ? (high[i] - shift_[i]) / 2 : 1.0);
    offset_ = -1;
  }
}

void Normaliser::normalise(std::span<float> values) const {
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::size_t element = i % width();
    values[i] = static_cast<float>((static_cast<double>(values[i]) - shift_[element]) / scale_[element] + offset_);
  }
}

void Normaliser::denormalise(std::span<float> values) const {
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::size_t element = i % width();
    values[i] = static_cast<float>((static_cast<double>(values[i]) - offset_) * scale_[element] + shift_[element]);
  }
}

}  // namespace plimsoll::data
