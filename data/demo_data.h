#pragma once
// A dataset of the demo's tabletop, for `plimsoll demo-data`, and what is known of one by which its table can be set up
// again, for `plimsoll eval`.

#include <cstdint>
#include <string>
#include <vector>

#include "data/frame.h"
#include "data/tabletop.h"

namespace plimsoll::data {

/// What `plimsoll demo-data` makes heavy unless it is told otherwise.
inline constexpr double kUsualHeavyFraction = 0.1;

struct DemoDataOptions {
  TabletopOptions table;
  std::int64_t episodes = 1000;         ///< one scene each
  std::int64_t frames_per_episode = 8;  ///< few: a small model memorises scenes that it sees in many frames
  int fps = 10;
  /// The instructions are dealt to the episodes at random, so that they say nothing of what is done; one in four is
  /// right by chance, there being four colours.
  bool shuffled_instructions = false;
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
///
/// Beside them meta/tabletop.json keeps the table's options. Scenes are those from 0 on, never kFirstUnseenScene or
/// above.
DemoDataTotals write_demo_dataset(const std::string& root, const DemoDataOptions& options);

/// Scenes from here on are in no dataset, whatever its seed.
inline constexpr std::int64_t kFirstUnseenScene = std::int64_t{1} << 32;

/// A moment at the table under the names above, as it is recorded. Without an action, as a policy meets it.
Frame demo_frame(TabletopObservation seen, std::vector<double> action = {});

/// What is known of a dataset that write_demo_dataset made.
struct DemoDataset {
  TabletopOptions table;
  int fps = 10;
  std::vector<double> mean_action;  ///< [kActionDim], over all frames
};

/// The options of the table that the dataset at `root` was recorded at. One that was written before meta/tabletop.json
/// was has the cameras' sizes out of meta/info.json, and for the rest what demo-data does unless it is told otherwise.
/// Throws Error(kData) naming the file when it is no dataset of the tabletop: a feature is missing or of another shape.
DemoDataset read_demo_dataset(const std::string& root);

}  // namespace plimsoll::data
