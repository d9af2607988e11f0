#pragma once
// A dataset of the demo's tabletop, for `plimsoll demo-data`.

#include <cstdint>
#include <string>

#include "data/tabletop.h"

namespace plimsoll::data {

struct DemoDataOptions {
  TabletopOptions table;
  std::int64_t episodes = 1000;         ///< one scene each
  std::int64_t frames_per_episode = 8;  ///< few: a small model memorises scenes that it sees in many frames
  int fps = 10;
};

/// What was written.
struct DemoDataTotals {
  std::int64_t episodes = 0, frames = 0, heavy_episodes = 0;
};

/// Writes a LeRobot v3.0 dataset to `root`, which must not exist or be empty. Equal options give equal files. Features:
///
///   observation.images.top    video, H.264, [top_side, top_side, 3]
///   observation.images.wrist  image column, PNG; larger in heavy episodes (a video has one size, pictures may differ)
///   observation.state [3], observation.force [3], action [3]   float32, see tabletop.h
DemoDataTotals write_demo_dataset(const std::string& root, const DemoDataOptions& options);

}  // namespace plimsoll::data
