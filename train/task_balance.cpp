#include "train/task_balance.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>

#include "core/error.h"

namespace plimsoll::train {
namespace {

constexpr double kLeast = 1e-3;  // a weight
constexpr int kBits = 12;

std::vector<double> coarse_ones(std::span<const double> values) {
  std::vector<double> rounded;
  for (const double value : values) rounded.push_back(coarse(value));
  return rounded;
}

std::vector<std::size_t> present_in(const BalanceInput& step) {
  std::vector<std::size_t> present;
  for (std::size_t type = 0; type < step.counts.size(); ++type)
    if (step.counts[type] > 0) present.push_back(type);
  return present;
}

bool usable(const BalanceInput& step, const std::vector<std::size_t>& present) {
  return std::ranges::all_of(present, [&](std::size_t type) {
    return std::isfinite(step.losses[type]) && std::isfinite(step.norms[type]) && step.losses[type] > 0;
  });
}

double sum_of(const std::vector<double>& weights, const std::vector<std::size_t>& types) {
  double sum = 0;
  for (const std::size_t type : types) sum += weights[type];
  return sum;
}

// Those that take part are scaled so that all weights sum to the number of types; the others keep theirs. One that the
// scaling would bring below the least has the least, and the rest are scaled to what is left then.
void rescale(std::vector<double>& weights, std::vector<std::size_t> scaled) {
  const double all = std::accumulate(weights.begin(), weights.end(), 0.0);
  double left = static_cast<double>(weights.size()) - (all - sum_of(weights, scaled));
  while (!scaled.empty()) {
    const double scale = left / sum_of(weights, scaled);
    const auto least = std::stable_partition(scaled.begin(), scaled.end(),
                                             [&](std::size_t type) { return weights[type] * scale >= kLeast; });
    if (least == scaled.end()) {
      for (const std::size_t type : scaled) weights[type] *= scale;
      return;
    }
    std::for_each(least, scaled.end(), [&](std::size_t type) { weights[type] = kLeast; });
    left -= kLeast * static_cast<double>(scaled.end() - least);
    scaled.erase(least, scaled.end());
  }
}

}  // namespace

double coarse(double value) {
  int exponent = 0;
  const double mantissa = std::frexp(value, &exponent);
  return std::ldexp(std::round(std::ldexp(mantissa, kBits)), exponent - kBits);
}

BalanceState balanced(const BalanceState& before, const BalanceInput& seen, const BalanceOptions& options) {
  BalanceState state = before;
  const std::size_t types = seen.counts.size();
  const std::vector<double> losses = coarse_ones(seen.losses), norms = coarse_ones(seen.norms);
  const BalanceInput step{seen.counts, losses, norms};
  if (state.weights.empty()) state = {std::vector<double>(types, 1.0), std::vector<double>(types, 0.0)};
  const auto present = present_in(step);
  if (present.empty() || !usable(step, present)) return state;
  for (const std::size_t type : present)
    if (state.first_losses[type] == 0) state.first_losses[type] = step.losses[type];
  double mean_norm = 0, mean_progress = 0;
  for (const std::size_t type : present) {
    mean_norm += step.norms[type] / static_cast<double>(present.size());
    mean_progress += step.losses[type] / state.first_losses[type] / static_cast<double>(present.size());
  }
  for (const std::size_t type : present) {
    const double rate = step.losses[type] / state.first_losses[type] / mean_progress;
    const double apart = step.norms[type] - mean_norm * std::pow(rate, options.alpha);
    const double sign = apart > 0 ? 1.0 : apart < 0 ? -1.0 : 0.0;
    // A norm is proportional to its weight.
    const double slope = sign * step.norms[type] / state.weights[type];
    state.weights[type] = std::max(kLeast, state.weights[type] - options.learning_rate * slope);
  }
  rescale(state.weights, present);
  return state;
}

std::string to_json(const BalanceState& state) {
  return nlohmann::ordered_json{{"weights", state.weights}, {"first_losses", state.first_losses}}.dump();
}

BalanceState balance_from_json(std::string_view text) {
  if (text.empty()) return {};
  try {
    const auto json = nlohmann::json::parse(text);
    return {json.at("weights"), json.at("first_losses")};
  } catch (const nlohmann::json::exception& error) {
    fail(ExitCode::kCheckpoint, "the checkpoint's state of the balance of tasks: {}; resume from the one before",
         error.what());
  }
}

}  // namespace plimsoll::train
