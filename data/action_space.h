#pragma once
// What an action is counted from: absolute, as the dataset holds it, or the difference to the state at the moment at
// which the model is asked. Differences are the same wherever the robot stands, which makes datasets of several robots
// alike.
//
// A sample at frame t of a dataset with `data.action_space = "delta"` asks, for each action k of its chunk, for
//
//   normalised(action[t + k] - state[t])   in the relative dimensions
//   normalised(action[t + k])              in all others, such as a gripper that is commanded open or shut
//
// Every action of a chunk is counted from the state before its first one, not from the action before it: errors do not
// add up along the chunk. Who executes what a model predicts goes back by executable_actions().

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "data/feature_statistics.h"
#include "data/normaliser.h"

namespace plimsoll::data {

enum class ActionKind { kAbsolute, kDelta };

/// "absolute" or "delta"; others throw Error(kUsage).
ActionKind parse_action_space(const std::string& name);

/// Which dimensions of an action are differences, and to which of the state. Immutable.
class ActionSpace {
 public:
  /// Absolute in every dimension.
  ActionSpace() = default;
  /// Per dimension of an action the dimension of the state that is taken off; nothing: absolute.
  explicit ActionSpace(std::vector<std::optional<std::size_t>> state_of);

  bool is_relative() const { return !relative_dimensions().empty(); }
  /// Dimensions that are differences, ascending.
  std::vector<std::size_t> relative_dimensions() const;
  /// Dimension of the state that is taken off this one of an action; nothing: absolute.
  std::optional<std::size_t> state_dimension_of(std::size_t dimension) const;

  /// In place, in the units of the dataset. `actions` holds whole rows; `state` is one row, that of the moment at which
  /// the chunk begins. In float32: there and back again differs by at most the rounding of one addition.
  void make_relative(std::span<float> actions, std::span<const float> state) const;
  void make_absolute(std::span<float> actions, std::span<const float> state) const;

 private:
  std::vector<std::optional<std::size_t>> state_of_;
};

/// The elements of a row of numbers: their count and, where the dataset names them, their names.
struct DimensionNames {
  std::size_t width = 0;
  std::vector<std::string> names;  ///< `width` of them or none
};

/// The space of differences. An action's dimension belongs to the state's of the same name where both are named, else
/// to that of the same index. `chosen`: the relative ones; empty: all that have one in the state, which where both are
/// named means one of the same name (a chosen dimension whose name the state lacks goes by its index). Throws
/// Error(kUsage) that begins with `where` for a dimension that is not there or has none in the state, and when none is
/// relative.
ActionSpace delta_space(const DimensionNames& action, const DimensionNames& state, std::span<const std::int64_t> chosen,
                        const std::string& where);

/// Rows of numbers, one after another.
struct Rows {
  std::span<const float> values;
  std::size_t width = 0;
};

/// Statistics of the relative dimensions, exact and over the whole dataset: of action[t + k] - state[t] for every frame
/// t and every k below `chunk` that its episode still has. The count is that of these pairs. The absolute dimensions'
/// are zeros. `quantiles`: those too, for which all differences of one dimension are held in memory, frames x chunk
/// floats. Time: frames x chunk.
CountedStatistics delta_statistics(const ActionSpace& space, const Rows& actions, const Rows& states,
                                   std::span<const LeRobotEpisode> episodes, std::int64_t chunk, bool quantiles);

/// What a robot is to do: the inverse of what samples hold. `predicted` is a model's output, whole rows, normalised;
/// `scale` and `space` are those of the dataset whose robot it is (LeRobotSource::action_normaliser(), action_space());
/// `state` is what the model was given when it predicted, not normalised, in the order of the samples' state. The
/// result has the shape of `predicted`, in the units of the dataset.
std::vector<float> executable_actions(std::span<const float> predicted, const Normaliser& scale,
                                      const ActionSpace& space, std::span<const float> state);

}  // namespace plimsoll::data
