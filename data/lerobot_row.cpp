#include "data/lerobot_row.h"

#include <fmt/format.h>

#include <cmath>
#include <limits>

namespace plimsoll::data {

double time_tolerance(double due, double tolerance) {
  const auto kept = static_cast<float>(due);
  return tolerance + static_cast<double>(std::nextafter(kept, std::numeric_limits<float>::infinity()) - kept);
}

void check_row(const RowIndex& row, std::int64_t index, std::int64_t episode, const LeRobotInfo& info,
               const TellRow& tell) {
  const std::int64_t frame = index - info.episodes[static_cast<std::size_t>(episode)].begin;
  if (row.index != index) tell("index", row.index, fmt::format("global index {} is due", index));
  if (row.episode_index != episode)
    tell("episode_index", row.episode_index, fmt::format("{} says {}", info.episodes_file, episode));
  if (row.frame_index != frame)
    tell("frame_index", row.frame_index, fmt::format("frame {} of its episode is due", frame));
  if (row.task_index < 0 || row.task_index >= static_cast<std::int64_t>(info.tasks.size()))
    tell("task_index", row.task_index, fmt::format("{} has {} tasks", info.tasks_file, info.tasks.size()));
}

}  // namespace plimsoll::data
