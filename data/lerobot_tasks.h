#pragma once
// The task texts of a LeRobot dataset by their numbers, whatever file they came from. Private to data/lerobot_*.cpp.

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "data/faults.h"
#include "data/lerobot_info.h"

namespace plimsoll::data {

/// Puts texts[i] to its place indices[i] in `out.tasks`. The indices must be 0 .. n - 1, each once; `where(i)` names
/// one that is not.
void place_tasks(std::span<const std::int64_t> indices, std::vector<std::string> texts,
                 const std::function<std::string(std::size_t)>& where, LeRobotInfo& out, Faults& faults);

}  // namespace plimsoll::data
