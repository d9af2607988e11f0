#pragma once
// Small LeRobot datasets whose every value follows from its global index, for tests of what reads them.

#include <array>
#include <string>

#include "data/lerobot_writer.h"

namespace plimsoll::data {

/// A grey level per global index, apart enough to survive H.264.
inline std::uint8_t level_of(std::int64_t index) { return static_cast<std::uint8_t>(20 + 30 * (index % 8)); }

inline Image grey(std::int64_t height, std::int64_t width, std::uint8_t level) {
  return {height, width, std::vector<std::uint8_t>(static_cast<std::size_t>(height * width * 3), level)};
}

inline std::array<double, 2> state_of(std::int64_t index) {
  const auto i = static_cast<double>(index);
  return {i, 100 - 2 * i};
}

inline LeRobotWriterOptions counting_options() {
  LeRobotWriterOptions options;
  options.features = {{"observation.images.top", "video", {32, 48, 3}, {}},
                      {"observation.images.wrist", "image", {28, 28, 3}, {}},
                      {"observation.state", "float32", {2}, {}},
                      {"observation.force", "float32", {1}, {}},
                      {"action", "float32", {2}, {}}};
  options.rows_per_group = 4;
  return options;
}

/// Frame `index`: both pictures have level_of(index), the PNG 28 + 2 * (index % 3) rows; action = -state; force =
/// index.
inline WriterFrame counting_frame(std::int64_t index) {
  const auto state = state_of(index);
  WriterFrame frame;
  frame.images["observation.images.top"] = grey(32, 48, level_of(index));
  frame.images["observation.images.wrist"] = grey(28 + 2 * (index % 3), 28, level_of(index));
  frame.numbers["observation.state"] = {state[0], state[1]};
  frame.numbers["observation.force"] = {static_cast<double>(index)};
  frame.numbers["action"] = {-state[0], -state[1]};
  return frame;
}

/// Writes episodes of the given lengths; the task of episode e is "task <e % 2>".
inline void write_counting_dataset(const std::string& root, const std::vector<std::int64_t>& lengths,
                                   const LeRobotWriterOptions& options = counting_options()) {
  LeRobotWriter writer(root, options);
  std::int64_t index = 0;
  for (std::size_t episode = 0; episode < lengths.size(); ++episode) {
    for (std::int64_t i = 0; i < lengths[episode]; ++i)
      writer.add(counting_frame(index++), "task " + std::to_string(episode % 2));
    writer.end_episode();
  }
  writer.finish();
}

}  // namespace plimsoll::data
