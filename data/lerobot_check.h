#pragma once
// Everything that is wrong with a LeRobot dataset, found in one pass. Behind `plimsoll dataset check`.

#include <cstdint>
#include <string>
#include <vector>

namespace plimsoll::data {

/// What was found. Each text names the file and, where there is one, the column and the row.
struct DatasetReport {
  std::int64_t episodes = 0, frames = 0, tasks = 0;  ///< as meta/ has them
  std::vector<std::string> faults;    ///< training would end there or learn from what is wrong, or files contradict
  std::vector<std::string> warnings;  ///< can be read, and is seldom meant
};

/// Reads all of `root`: meta/, every row of every data file, the size of every picture of an image column, and of every
/// video its size and the first and the last frame of each episode. A column's rows that are wrong in the same way are
/// named up to the third, then counted. Memory grows with the largest data file. Throws Error(kData) where nothing else
/// can be read: meta/info.json, its version, frames a second or paths.
DatasetReport check_lerobot_dataset(const std::string& root);

}  // namespace plimsoll::data
