#pragma once
// The folder meta/ of LeRobot datasets of format v2.0 and v2.1: meta/tasks.jsonl, meta/episodes.jsonl and statistics an
// episode in meta/episodes_stats.jsonl (v2.1; v2.0 has meta/stats.json, as v3.0). A parquet file an episode, and an mp4
// file an episode and camera. As lerobot 0.3.3 writes and reads it (lerobot/datasets/utils.py, compute_stats.py).

#include <nlohmann/json_fwd.hpp>

#include "data/lerobot_info.h"

namespace plimsoll::data {

/// Adds tasks, episodes and, of v2.1, statistics to what `info`, the content of meta/info.json, has given already.
/// Faults name file and line: episodes out of order, without frames or another number than info.json
/// says, task indices that are not 0 .. n - 1.
void read_lerobot_v2(const nlohmann::json& info, LeRobotInfo& out, Faults& faults);

}  // namespace plimsoll::data
