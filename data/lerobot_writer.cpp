#include "data/lerobot_writer.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <map>
#include <span>
#include <unordered_map>

#include "core/error.h"
#include "core/file.h"
#include "data/lerobot_schema.h"
#include "data/parquet_writer.h"
#include "data/summary.h"
#include "data/video_writer.h"

namespace plimsoll::data {
namespace {

constexpr std::int64_t kFilesPerChunk = 1000;

/// A file's place in folders of at most 1,000.
struct FileNumber {
  std::int64_t number = 0;
  std::int64_t chunk() const { return number / kFilesPerChunk; }
  std::int64_t file() const { return number % kFilesPerChunk; }
  std::string path(const char* extension) const {
    return fmt::format("chunk-{:03}/file-{:03}.{}", chunk(), file(), extension);
  }
};

/// Statistics of one feature of numbers: of the episode being written and of all.
struct NumberStatistics {
  NumberSummary episode, all;
  explicit NumberStatistics(std::size_t width) : episode(width), all(width) {}
  void add(std::span<const double> row) { episode.add(row), all.add(row); }
};

struct PictureStatistics {
  PictureSummary episode, all;
  void add(const Image& image) { episode.add(image), all.add(image); }
};

/// A camera whose frames go to mp4 files.
struct VideoTrack {
  const WriterFeature* feature = nullptr;
  FileNumber file{-1};
  std::unique_ptr<VideoWriter> writer;
  std::int64_t episode_start = 0;  // frame in the file at which the current episode begins
};

}  // namespace

struct LeRobotWriter::Parts {
  Parts(const std::string& folder, const LeRobotWriterOptions& chosen) : root(folder), options(chosen) {
    create_root();
    for (const WriterFeature& feature : options.features) {
      if (feature.dtype == "float32")
        numbers.emplace(feature.name, NumberStatistics(static_cast<std::size_t>(feature.shape.at(0))));
      if (feature.dtype == "video") tracks.push_back({&feature, {-1}, nullptr, 0});
    }
    for (const char* name : kIndexFeatures) numbers.emplace(name, NumberStatistics(1));
    episodes = std::make_unique<ParquetWriter>(prepared("meta/episodes/chunk-000/file-000.parquet"),
                                               episode_columns(options.features), 1000);
  }

  void create_root() const {
    std::error_code error;
    if (std::filesystem::exists(root) && !(std::filesystem::is_directory(root) && std::filesystem::is_empty(root)))
      fail(ExitCode::kUsage, "{}: exists already and is not empty; choose another folder or remove it", root);
    std::filesystem::create_directories(root, error);
    if (error) fail(ExitCode::kData, "{}: cannot be created: {}", root, error.message());
  }

  /// `root`/`name` with its folder made.
  std::string prepared(const std::string& name) const {
    const auto path = std::filesystem::path(root) / name;
    std::error_code error;
    std::filesystem::create_directories(path.parent_path(), error);
    if (error) fail(ExitCode::kData, "{}: cannot be created: {}", path.parent_path().string(), error.message());
    return path.string();
  }

  void begin_episode() {
    length = 0;
    if (!data || data->rows() >= options.frames_per_data_file) {
      if (data) data->finish();
      ++data_file.number;
      data =
          std::make_unique<ParquetWriter>(prepared("data/" + data_file.path("parquet")), data_columns(options.features),
                                          options.rows_per_group, data_metadata(options.features));
    }
    for (VideoTrack& track : tracks) begin_episode(track);
  }

  void begin_episode(VideoTrack& track) {
    if (!track.writer || track.writer->frames() >= options.frames_per_video_file) {
      if (track.writer) track.writer->finish();
      ++track.file.number;
      const std::string path = prepared("videos/" + track.feature->name + "/" + track.file.path("mp4"));
      track.writer = std::make_unique<VideoWriter>(
          path,
          VideoOptions{track.feature->shape.at(0), track.feature->shape.at(1), options.fps, options.video_quality});
    }
    track.episode_start = track.writer->frames();
  }

  std::int64_t task_index(const std::string& task) {
    const auto [item, added] = task_numbers.try_emplace(task, static_cast<std::int64_t>(tasks.size()));
    if (added) tasks.push_back(task);
    return item->second;
  }

  template <class Values>
  const auto& part_of(const Values& values, const WriterFeature& feature) const {
    const auto found = values.find(feature.name);
    if (found == values.end()) fail(ExitCode::kUsage, "{}: frame {} has no \"{}\"", root, frames, feature.name);
    return found->second;
  }

  Cell number_cell(const WriterFeature& feature, const Frame& frame) {
    const auto& values = part_of(frame.numbers, feature);
    if (static_cast<std::int64_t>(values.size()) != feature.shape.at(0))
      fail(ExitCode::kUsage, "{}: frame {}: \"{}\" has {} values, but its shape says {}", root, frames, feature.name,
           values.size(), feature.shape[0]);
    numbers.at(feature.name).add(values);
    if (feature.shape[0] == 1) return values[0];
    return values;
  }

  const Image& picture(const WriterFeature& feature, const Frame& frame) {
    const Image& image = part_of(frame.images, feature);
    pictures[feature.name].add(image);
    return image;
  }

  void add(const Frame& frame, const std::string& task) {
    if (!in_episode) begin_episode();
    std::vector<Cell> row;
    for (const WriterFeature& feature : options.features) {
      if (feature.dtype == "float32") row.push_back(number_cell(feature, frame));
      if (feature.dtype == "image") row.emplace_back(encode_png(picture(feature, frame)));
    }
    for (VideoTrack& track : tracks) track.writer->add(picture(*track.feature, frame), !in_episode);
    const std::int64_t task_number = task_index(task);
    const double timestamp = static_cast<float>(static_cast<double>(length) / options.fps);
    const std::array indices{length, episodes->rows(), frames, task_number};
    row.emplace_back(timestamp);
    numbers.at("timestamp").add(std::array{timestamp});
    for (std::size_t i = 0; i < indices.size(); ++i) {
      row.emplace_back(indices[i]);
      numbers.at(kIndexFeatures[i + 1]).add(std::array{static_cast<double>(indices[i])});
    }
    data->add(row);
    in_episode = true;
    ++length;
    ++frames;
    // Each once, as LeRobot lists them, also where an episode comes back to a task.
    if (std::find(episode_tasks.begin(), episode_tasks.end(), task) == episode_tasks.end())
      episode_tasks.push_back(task);
  }

  void end_episode() {
    if (!in_episode) fail(ExitCode::kUsage, "{}: episode {} has no frame", root, episodes->rows());
    std::vector<Cell> row{episodes->rows(), episode_tasks,   length, data_file.chunk(),
                          data_file.file(), frames - length, frames};
    for (const VideoTrack& track : tracks) {
      row.emplace_back(track.file.chunk());
      row.emplace_back(track.file.file());
      row.emplace_back(static_cast<double>(track.episode_start) / options.fps);
      row.emplace_back(static_cast<double>(track.episode_start + length) / options.fps);
    }
    add_episode_statistics(row);
    row.emplace_back(std::int64_t{0});
    row.emplace_back(std::int64_t{0});
    episodes->add(row);
    episode_tasks.clear();
    in_episode = false;
  }

  void add_episode_statistics(std::vector<Cell>& row) {
    const auto add_numbers = [&](const std::string& name) {
      NumberSummary& summary = numbers.at(name).episode;
      append_statistics_cells(summary.summary(), row);
      summary.clear();
    };
    for (const WriterFeature& feature : options.features) {
      if (feature.dtype == "float32") {
        add_numbers(feature.name);
      } else {
        append_statistics_cells(pictures[feature.name].episode.summary(), row);
        pictures[feature.name].episode.clear();
      }
    }
    for (const char* name : kIndexFeatures) add_numbers(name);
  }

  void finish() {
    if (in_episode) end_episode();
    if (episodes->rows() == 0) fail(ExitCode::kUsage, "{}: no episode was written", root);
    data->finish();
    for (VideoTrack& track : tracks) track.writer->finish();
    const DatasetTotals totals{episodes->rows(), frames, static_cast<std::int64_t>(tasks.size())};
    episodes->finish();
    write_tasks();
    write_statistics();
    write_file_durably(prepared("meta/info.json"), info_json(options, totals).dump(4) + "\n", ExitCode::kData);
  }

  void write_tasks() const {
    ParquetWriter writer(prepared("meta/tasks.parquet"), {{"task_index"}, {"__index_level_0__", ColumnType::kText}},
                         1 << 16, tasks_metadata());
    for (std::size_t i = 0; i < tasks.size(); ++i) writer.add({static_cast<std::int64_t>(i), tasks[i]});
    writer.finish();
  }

  void write_statistics() const {
    nlohmann::ordered_json json = nlohmann::ordered_json::object();
    for (const auto& [name, statistics] : numbers) json[name] = statistics_json(statistics.all.summary(), false);
    for (const auto& [name, statistics] : pictures) json[name] = statistics_json(statistics.all.summary(), true);
    write_file_durably(prepared("meta/stats.json"), json.dump(4) + "\n", ExitCode::kData);
  }

  std::string root;
  LeRobotWriterOptions options;
  std::map<std::string, NumberStatistics> numbers;
  std::map<std::string, PictureStatistics> pictures;
  std::vector<VideoTrack> tracks;
  std::unique_ptr<ParquetWriter> data, episodes;
  FileNumber data_file{-1};
  std::vector<std::string> tasks, episode_tasks;
  std::unordered_map<std::string, std::int64_t> task_numbers;
  std::int64_t frames = 0, length = 0;
  bool in_episode = false;
};

LeRobotWriter::LeRobotWriter(const std::string& root, const LeRobotWriterOptions& options)
    : parts_(std::make_unique<Parts>(root, options)) {}
LeRobotWriter::~LeRobotWriter() = default;
void LeRobotWriter::add(const Frame& frame, const std::string& task) { parts_->add(frame, task); }
void LeRobotWriter::end_episode() { parts_->end_episode(); }
void LeRobotWriter::finish() { parts_->finish(); }
std::int64_t LeRobotWriter::episodes() const { return parts_->episodes->rows(); }
std::int64_t LeRobotWriter::frames() const { return parts_->frames; }

}  // namespace plimsoll::data
