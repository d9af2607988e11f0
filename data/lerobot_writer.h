#pragma once
// Writing a LeRobot dataset, format v3.0: what data/lerobot_info.h describes, so that LeRobot opens it.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "data/frame.h"

namespace plimsoll::data {

/// A feature to write. "float32": [n] numbers. "video": frames of exactly `shape` (height, width, 3), H.264. "image":
/// PNG in the data files; `shape` is the usual one, single pictures may differ.
struct WriterFeature {
  std::string name, dtype;
  std::vector<std::int64_t> shape;
  std::vector<std::string> names;  ///< of the elements; may be empty
};

struct LeRobotWriterOptions {
  int fps = 10;
  std::string robot_type = "plimsoll_tabletop";
  std::vector<WriterFeature> features;
  std::int64_t frames_per_data_file = 100000;   ///< a new file starts with the first episode past it
  std::int64_t frames_per_video_file = 100000;  ///< the same of every camera's mp4 files
  std::int64_t rows_per_group = 256;            ///< rows of a row group: what is in memory at once
  int video_quality = 18;                       ///< x264's constant rate factor
};

/// Writes frame by frame; memory does not grow with the number of frames. meta/info.json comes last, so that an
/// interrupted dataset is not taken for a whole one. One thread. Errors are Error(kData) that name the file, and
/// Error(kUsage) for frames that do not fit the features.
class LeRobotWriter {
 public:
  /// Creates `root`, which must not exist or be empty.
  LeRobotWriter(const std::string& root, const LeRobotWriterOptions& options);
  ~LeRobotWriter();

  void add(const Frame& frame, const std::string& task);
  /// Ends an episode, which has at least one frame.
  void end_episode();
  void finish();
  std::int64_t episodes() const;
  std::int64_t frames() const;

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace plimsoll::data
