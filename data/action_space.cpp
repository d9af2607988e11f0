#include "data/action_space.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/error.h"

namespace plimsoll::data {
namespace {

std::optional<std::size_t> place_of(const std::string& name, const std::vector<std::string>& names) {
  const auto found = std::find(names.begin(), names.end(), name);
  if (found == names.end()) return std::nullopt;
  return static_cast<std::size_t>(found - names.begin());
}

/// The state's dimension that belongs to an action's; `by_index`: also where both are named and the names differ.
std::optional<std::size_t> state_dimension(const DimensionNames& action, const DimensionNames& state,
                                           std::size_t dimension, bool by_index) {
  const bool named = !action.names.empty() && !state.names.empty();
  if (named) {
    const auto place = place_of(action.names[dimension], state.names);
    if (place || !by_index) return place;
  }
  return dimension < state.width ? std::optional(dimension) : std::nullopt;
}

std::vector<std::optional<std::size_t>> all_matches(const DimensionNames& action, const DimensionNames& state) {
  std::vector<std::optional<std::size_t>> state_of;
  for (std::size_t i = 0; i < action.width; ++i) state_of.push_back(state_dimension(action, state, i, false));
  return state_of;
}

std::vector<std::optional<std::size_t>> chosen_matches(const DimensionNames& action, const DimensionNames& state,
                                                       std::span<const std::int64_t> chosen, const std::string& where) {
  std::vector<std::optional<std::size_t>> state_of(action.width);
  for (const std::int64_t dimension : chosen) {
    if (dimension < 0 || dimension >= static_cast<std::int64_t>(action.width))
      fail(ExitCode::kUsage, "{}: data.delta_dimensions has {}, but an action has the dimensions 0 to {}", where,
           dimension, static_cast<std::int64_t>(action.width) - 1);
    const auto i = static_cast<std::size_t>(dimension);
    state_of[i] = state_dimension(action, state, i, true);
    if (!state_of[i])
      fail(ExitCode::kUsage,
           "{}: data.delta_dimensions has {}, but the state, of {} dimensions, has none of that index{}; leave it out "
           "or choose another state",
           where, dimension, state.width,
           action.names.empty() ? std::string() : fmt::format(" and none named \"{}\"", action.names[i]));
  }
  return state_of;
}

/// Differences in one dimension of the actions, for every frame and every action ahead of it.
struct Differences {
  const Rows& actions;
  const Rows& states;
  std::span<const LeRobotEpisode> episodes;
  std::int64_t chunk;
  std::size_t dimension, of_state;

  template <class Use>
  void each(Use use) const {
    for (const LeRobotEpisode& episode : episodes) {
      for (std::int64_t t = episode.begin; t < episode.end; ++t) {
        const float state = at(states, t, of_state);
        for (std::int64_t ahead = t; ahead < std::min(episode.end, t + chunk); ++ahead)
          use(at(actions, ahead, dimension) - state);
      }
    }
  }

  static float at(const Rows& rows, std::int64_t row, std::size_t column) {
    return rows.values[static_cast<std::size_t>(row) * rows.width + column];
  }
};

/// Linear interpolation between neighbours, as numpy's default. Puts `values` into another order.
double quantile_of(std::vector<float>& values, double quantile) {
  const double place = quantile * static_cast<double>(values.size() - 1);
  const auto low = static_cast<std::ptrdiff_t>(place);
  std::nth_element(values.begin(), values.begin() + low, values.end());
  const double below = values[static_cast<std::size_t>(low)];
  if (low + 1 == std::ssize(values)) return below;
  const double above = *std::min_element(values.begin() + low + 1, values.end());
  return below + (place - static_cast<double>(low)) * (above - below);
}

/// Two passes, so that the variance does not suffer from cancellation.
void add_moments(const Differences& differences, CountedStatistics& out) {
  double count = 0, sum = 0, squares = 0;
  double least = std::numeric_limits<double>::infinity(), most = -least;
  differences.each([&](float value) {
    count += 1, sum += value;
    least = std::min<double>(least, value), most = std::max<double>(most, value);
  });
  const double mean = sum / count;
  const std::size_t dimension = differences.dimension;
  differences.each([&](float value) { squares += (value - mean) * (value - mean); });
  out.count = count;
  out.values.mean[dimension] = mean;
  out.values.std[dimension] = std::sqrt(squares / count);
  out.values.min[dimension] = least;
  out.values.max[dimension] = most;
}

void add_quantiles(const Differences& differences, CountedStatistics& out) {
  const std::size_t dimension = differences.dimension;
  if (!std::isfinite(out.values.mean[dimension])) {  // values that are no numbers have no order
    out.values.q01[dimension] = out.values.q99[dimension] = out.values.mean[dimension];
    return;
  }
  std::vector<float> values;
  values.reserve(static_cast<std::size_t>(out.count));
  differences.each([&](float value) { values.push_back(value); });
  out.values.q01[dimension] = quantile_of(values, 0.01);
  out.values.q99[dimension] = quantile_of(values, 0.99);
}

}  // namespace

ActionKind parse_action_space(const std::string& name) {
  if (name == "absolute") return ActionKind::kAbsolute;
  if (name == "delta") return ActionKind::kDelta;
  fail(ExitCode::kUsage, "data.action_space is \"{}\", but must be \"absolute\" or \"delta\"", name);
}

ActionSpace::ActionSpace(std::vector<std::optional<std::size_t>> state_of) : state_of_(std::move(state_of)) {}

std::vector<std::size_t> ActionSpace::relative_dimensions() const {
  std::vector<std::size_t> relative;
  for (std::size_t i = 0; i < state_of_.size(); ++i) {
    if (state_of_[i]) relative.push_back(i);
  }
  return relative;
}

std::optional<std::size_t> ActionSpace::state_dimension_of(std::size_t dimension) const {
  return state_of_.empty() ? std::nullopt : state_of_.at(dimension);
}

void ActionSpace::make_relative(std::span<float> actions, std::span<const float> state) const {
  for (std::size_t i = 0; i < actions.size() && !state_of_.empty(); ++i) {
    if (const auto& from = state_of_[i % state_of_.size()]) actions[i] -= state[*from];
  }
}

void ActionSpace::make_absolute(std::span<float> actions, std::span<const float> state) const {
  for (std::size_t i = 0; i < actions.size() && !state_of_.empty(); ++i) {
    if (const auto& from = state_of_[i % state_of_.size()]) actions[i] += state[*from];
  }
}

ActionSpace delta_space(const DimensionNames& action, const DimensionNames& state, std::span<const std::int64_t> chosen,
                        const std::string& where) {
  ActionSpace space(chosen.empty() ? all_matches(action, state) : chosen_matches(action, state, chosen, where));
  if (!space.is_relative())
    fail(ExitCode::kUsage,
         "{}: data.action_space is \"delta\", but no dimension of the action ({}) has one of the state ({}); name the "
         "dimensions in data.delta_dimensions, which then go by their index",
         where, fmt::join(action.names, ", "), fmt::join(state.names, ", "));
  return space;
}

CountedStatistics delta_statistics(const ActionSpace& space, const Rows& actions, const Rows& states,
                                   std::span<const LeRobotEpisode> episodes, std::int64_t chunk, bool quantiles) {
  CountedStatistics out;
  const std::vector<double> zeros(actions.width);
  out.values = {zeros, zeros, zeros, zeros, {}, {}};
  if (quantiles) out.values.q01 = out.values.q99 = zeros;
  for (const std::size_t dimension : space.relative_dimensions()) {
    const Differences differences{actions, states, episodes, chunk, dimension, *space.state_dimension_of(dimension)};
    add_moments(differences, out);
    if (quantiles) add_quantiles(differences, out);
  }
  return out;
}

std::vector<float> executable_actions(std::span<const float> predicted, const Normaliser& scale,
                                      const ActionSpace& space, std::span<const float> state) {
  std::vector<float> actions(predicted.begin(), predicted.end());
  scale.denormalise(actions);
  space.make_absolute(actions, state);
  return actions;
}

}  // namespace plimsoll::data
