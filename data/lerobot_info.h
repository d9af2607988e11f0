#pragma once
// The folder meta/ of a LeRobot dataset, format v3.0 (v2.0 and v2.1: lerobot_v2.h): features, episodes, task texts,
// statistics.
//
// meta/info.json, meta/tasks.parquet, meta/episodes/chunk-*/file-*.parquet, meta/stats.json; data and video files are
// named by the templates in info.json. https://huggingface.co/docs/lerobot/lerobot-dataset-v3

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace plimsoll::data {

class Faults;

/// How a feature is stored.
enum class FeatureKind { kNumbers, kImage, kVideo };

/// One feature of info.json. Numbers: a column of the data files. Image: a column of encoded pictures. Video: mp4
/// files.
struct LeRobotFeature {
  std::string name;
  std::string dtype;                ///< "float32", "int64", "bool", ..., "image", "video"
  std::vector<std::int64_t> shape;  ///< pictures: height, width, channels
  FeatureKind kind = FeatureKind::kNumbers;
  std::vector<std::string> names{};  ///< of a row's values, one each; empty where the dataset does not name them
  std::int64_t width() const;        ///< values of one row
  /// Whether pictures of so many rows and columns are of this shape. Some datasets write the channels first.
  bool declares(std::int64_t rows, std::int64_t columns) const;
};

/// Whether values of this type are numbers: "float32", "int64", "bool" and their like.
bool is_number_dtype(const std::string& dtype);

/// Part of a video file that holds one episode of one camera.
struct VideoSpan {
  std::int64_t chunk = 0, file = 0;
  double from = 0;  ///< seconds in that file at which the episode's frame 0 is
};

struct LeRobotEpisode {
  std::int64_t begin = 0, end = 0;  ///< global indices of its frames, [begin, end)
  std::int64_t data_chunk = 0, data_file = 0;
  std::vector<VideoSpan> videos;  ///< in the order of LeRobotInfo::cameras(); empty spans for image columns
};

/// A data file, which holds whole episodes: [first, last) of LeRobotInfo::episodes.
struct LeRobotDataFile {
  std::string path;
  std::size_t first = 0, last = 0;
  std::int64_t rows = 0;
};

/// Statistics of a feature over the dataset, one value per element; vectors that stats.json lacks are empty.
struct FeatureStatistics {
  std::vector<double> mean, std, min, max, q01, q99;
};

/// All of them, as meta/ names them. The quantiles come last: format v2.1 has none.
struct NamedStatistic {
  const char* name;
  std::vector<double> FeatureStatistics::*values;
};
inline constexpr NamedStatistic kStatistics[] = {{"mean", &FeatureStatistics::mean}, {"std", &FeatureStatistics::std},
                                                 {"min", &FeatureStatistics::min},   {"max", &FeatureStatistics::max},
                                                 {"q01", &FeatureStatistics::q01},   {"q99", &FeatureStatistics::q99}};
inline constexpr std::size_t kStatisticsOfV2 = 4;

/// Everything under meta/, checked. Immutable.
struct LeRobotInfo {
  std::string root;
  double fps = 0;  ///< frames per second
  std::int64_t frames = 0;
  std::vector<LeRobotFeature> features;             ///< without the five index columns, texts and depth
  std::map<std::string, std::string> index_dtypes;  ///< of the five index columns, as far as info.json has them
  /// Picture features that hold distances instead of colours, with the words by which that is known. They are no
  /// cameras, and nothing reads them.
  std::map<std::string, std::string> depth;
  std::vector<LeRobotEpisode> episodes;  ///< in order: begin of each is end of the one before
  std::vector<std::string> tasks;        ///< text by task_index
  std::map<std::string, FeatureStatistics> statistics;
  std::string data_path, video_path;  ///< templates of file and chunk, or of an episode and its chunk
  std::string version;                ///< "v2.1"
  /// Where all this is under `root`, which differs between the versions: for errors.
  std::string episodes_file = "meta/episodes", tasks_file = "meta/tasks.parquet", statistics_file = "meta/stats.json";
  std::vector<std::string> episode_lists;  ///< paths of the files that list the episodes, those that could be opened
  /// total_episodes, total_frames and total_tasks, those that info.json has, as they stand there: to be compared with
  /// what is listed (data/lerobot_consistency.h). Nothing else goes by them.
  std::map<std::string, std::string> totals;

  bool is_v2() const { return version.starts_with("v2."); }
  /// What info.json says of an index column's values; empty where it says nothing.
  std::string index_dtype(const std::string& column) const;
  const LeRobotFeature* find(const std::string& name) const;
  /// Names of the image and video features, sorted.
  std::vector<std::string> cameras() const;
  /// A line for people about each feature that is left out as depth.
  std::vector<std::string> depth_notes() const;
  std::string data_file(std::int64_t chunk, std::int64_t file) const;
  std::string video_file(const std::string& camera, const VideoSpan& span) const;
  /// In the order of the episodes.
  std::vector<LeRobotDataFile> data_files() const;
  /// The video files of cameras()[slot], with the numbers of the episodes in each, ascending.
  std::map<std::string, std::vector<std::size_t>> video_files(std::size_t slot) const;
  /// Seconds in its video of cameras()[slot] at which the episode's last frame is.
  double last_frame(const LeRobotEpisode& episode, std::size_t slot) const;
  /// Throws Error(kData) naming the file when the feature has no statistics of its width.
  const FeatureStatistics& statistics_of(const LeRobotFeature& feature) const;
};

/// Of a dataset: far more than any has, and sums of them stay whole numbers.
inline constexpr std::int64_t kMostFrames = std::int64_t{1} << 48;

/// Reads and checks `root`/meta. Throws Error(kData) naming file and key, column or row: another format version, no
/// episodes, episodes that overlap or leave gaps, task indices that are not 0 .. n - 1, a missing or mistyped entry.
LeRobotInfo read_lerobot_info(const std::string& root);
/// The same, with all faults but those of meta/info.json's own entries given to `faults`; what could not be read is
/// left out.
LeRobotInfo read_lerobot_info(const std::string& root, Faults& faults);

}  // namespace plimsoll::data
