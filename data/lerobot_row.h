#pragma once
// What every row of a LeRobot dataset has beside its features, and whether that is what meta/ says.

#include <cstdint>
#include <functional>
#include <string>

#include "data/lerobot_info.h"

namespace plimsoll::data {

/// The five columns that every data file has after its features.
inline constexpr const char* kIndexFeatures[] = {"timestamp", "frame_index", "episode_index", "index", "task_index"};

struct RowIndex {
  float timestamp = 0;  ///< seconds since the episode's start
  std::int64_t index = 0, frame_index = 0, episode_index = 0, task_index = 0;
};

/// Is told of a column that holds `found`, and what is due there instead.
using TellRow = std::function<void(const char* column, std::int64_t found, const std::string& due)>;

/// Seconds that a row's time may differ from `due`: `tolerance`, and what float32, in which times are kept, cannot tell
/// apart there (1e-4 s and more from 1,024 s on).
double time_tolerance(double due, double tolerance);

/// Compares the row at global index `index`, which is of episode `episode`, with `info`. Its time is not looked at.
void check_row(const RowIndex& row, std::int64_t index, std::int64_t episode, const LeRobotInfo& info,
               const TellRow& tell);

}  // namespace plimsoll::data
