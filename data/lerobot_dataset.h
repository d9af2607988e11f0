#pragma once
// A LeRobot dataset, format v2.0, v2.1 or v3.0, on disk: rows of numbers, camera frames, task texts.

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "data/image_file.h"
#include "data/lerobot_info.h"
#include "data/lerobot_row.h"

namespace plimsoll::data {

struct LeRobotOptions {
  /// Features to read; nothing: all.
  std::optional<std::vector<std::string>> features;
  double tolerance = 1e-4;        ///< seconds that a video frame's time may differ from the row's (time_tolerance())
  std::size_t idle_decoders = 8;  ///< video and picture files kept open beyond those in use
};

/// Numbers are read whole when it is opened and checked (global index, episode, task of every row), pictures when they
/// are asked for. Immutable after that; const members may be called from any number of threads. Errors are Error(kData)
/// that name file, column and row. Files under meta/ that contradict each other are refused
/// (data/lerobot_consistency.h).
class LeRobotDataset {
 public:
  /// Opens `root`. Video files must exist, be of the size that info.json declares and be at least as long as the
  /// parquet files say.
  explicit LeRobotDataset(const std::string& root, const LeRobotOptions& options = {});
  ~LeRobotDataset();
  LeRobotDataset(LeRobotDataset&&) noexcept;

  const LeRobotInfo& info() const;
  /// What `plimsoll dataset check` would complain of and is read all the same: a line each for people, which names file
  /// and column. Depth that is left out, a wrong number of tasks, columns of another number type than info.json says.
  const std::vector<std::string>& notes() const;
  std::int64_t size() const { return info().frames; }

  RowIndex row(std::int64_t index) const;
  const LeRobotEpisode& episode_of(std::int64_t index) const;
  const std::string& task(std::int64_t index) const;

  /// Number of a feature of numbers that was read, for values(). Throws Error(kData) when the dataset has none of that
  /// name.
  std::size_t numbers(const std::string& feature) const;
  /// Its values at global index `index`, [width], as float32.
  std::span<const float> values(std::size_t numbers, std::int64_t index) const;

  /// Number of a camera, for image(). Throws Error(kData) when the dataset has none of that name, or depth.
  std::size_t camera(const std::string& feature) const;
  /// A video's frame that was decoded not long ago is copied from data/frame_cache.h.
  Image image(std::size_t camera, std::int64_t index) const;
  /// Size of that picture, without decoding: of an image column out of each picture's header (read when the dataset was
  /// opened, since they may differ), of a video out of its file's.
  ImageSize image_size(std::size_t camera, std::int64_t index) const;

  /// xxh3 over all numbers, tasks and, for each file with pictures, its name and size.
  std::uint64_t hash() const;
  /// Of the cameras that were asked for, in their order: which frame of which file each picture is, and those files'
  /// names, sizes and times of change.
  std::uint64_t pictures_hash() const;

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace plimsoll::data
