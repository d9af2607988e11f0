#include "data/lerobot_check.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "data/faults.h"
#include "data/image_file.h"
#include "data/lerobot_info.h"
#include "data/lerobot_json.h"
#include "data/lerobot_row.h"
#include "data/parquet_table.h"
#include "data/unicode_text.h"
#include "data/video.h"

namespace plimsoll::data {
namespace {

constexpr std::size_t kNamed = 3;               // rows of one kind that are named one by one
constexpr std::size_t kLongInstruction = 2000;  // bytes: some five hundred tokens, more than a picture's
constexpr double kTolerance = 1e-4;             // seconds, as the reader of videos has it

/// Rows of one column that are wrong in the same way.
class RowFaults {
 public:
  explicit RowFaults(std::vector<std::string>& out) : out_(out) {}
  ~RowFaults() {
    if (more_ > 0) out_.push_back(fmt::format("{} ({} more rows like these)", first_, more_));
  }
  RowFaults(const RowFaults&) = delete;
  RowFaults& operator=(const RowFaults&) = delete;

  void add(const std::string& what) {
    if (named_ == 0) first_ = what;
    if (named_ < kNamed) {
      ++named_;
      out_.push_back(what);
    } else {
      ++more_;
    }
  }

 private:
  std::vector<std::string>& out_;
  std::string first_;
  std::size_t named_ = 0;
  std::int64_t more_ = 0;
};

/// Episodes [first, last) that one data file holds, and the global index of its first row.
struct DataPart {
  std::string path;
  std::size_t first = 0, last = 0;
  std::int64_t begin = 0, rows = 0;
};

class Check {
 public:
  explicit Check(const std::string& root) : faults_(true), info_(read_lerobot_info(root, faults_)) {}

  DatasetReport run() {
    check_totals();
    check_tasks();
    for (const LeRobotFeature& feature : info_.features)
      if (feature.kind == FeatureKind::kNumbers) check_statistics(feature);
    attempt([&] {
      for (const DataPart& part : data_parts()) check_data_file(part);
    });
    const auto cameras = info_.cameras();
    for (std::size_t slot = 0; slot < cameras.size(); ++slot)
      if (info_.find(cameras[slot])->kind == FeatureKind::kVideo) attempt([&] { check_videos(cameras[slot], slot); });
    report_.faults.insert(report_.faults.begin(), faults_.list().begin(), faults_.list().end());
    report_.episodes = std::ssize(info_.episodes);
    report_.frames = info_.frames;
    report_.tasks = std::ssize(info_.tasks);
    return std::move(report_);
  }

 private:
  void fault(std::string what) { report_.faults.push_back(std::move(what)); }
  void warn(std::string what) { report_.warnings.push_back(std::move(what)); }
  /// An error of `part` is a fault, in its place among the others.
  template <class Part>
  bool attempt(Part&& part) {
    Faults own(true);
    const bool fine = own.run(std::forward<Part>(part));
    for (const auto& what : own.list()) fault(what);
    return fine;
  }

  // info.json counts what the other files list.
  void check_totals() {
    const std::string path = info_.root + "/meta/info.json";
    const auto json = read_json(path);
    const std::pair<const char*, std::int64_t> totals[] = {{"total_episodes", std::ssize(info_.episodes)},
                                                           {"total_frames", info_.frames},
                                                           {"total_tasks", std::ssize(info_.tasks)}};
    for (const auto& [key, listed] : totals) {
      if (!json.contains(key)) continue;
      attempt([&, key = key, listed = listed] {
        if (const auto said = entry<std::int64_t>(json, path, key); said != listed)
          fail(ExitCode::kData, "{}: {} is {}, but the files beside it list {}", path, key, said, listed);
      });
    }
  }

  void check_tasks() {
    for (std::size_t i = 0; i < info_.tasks.size(); ++i) {
      const std::string& text = info_.tasks[i];
      if (valid_utf8(text) != text) fault(fmt::format("{}/meta: task {} is no valid UTF-8", info_.root, i));
      if (text.empty()) warn(fmt::format("{}/meta: task {} is an empty text", info_.root, i));
      if (text.size() > kLongInstruction)
        warn(fmt::format("{}/meta: task {} has {} bytes; so long an instruction takes more tokens than a picture",
                         info_.root, i, text.size()));
    }
  }

  void check_statistics(const LeRobotFeature& feature) {
    attempt([&] {
      const FeatureStatistics& found = info_.statistics_of(feature);
      for (const auto& [name, part] : kStatistics) {
        const std::vector<double>& values = found.*part;
        for (std::size_t i = 0; i < values.size(); ++i) {
          if (!std::isfinite(values[i]))
            fault(fmt::format("{}/meta: statistics of \"{}\": element {} of {} is {}, which is not finite", info_.root,
                              feature.name, i, name, values[i]));
        }
      }
      check_ranges(feature, found);
    });
  }

  void check_ranges(const LeRobotFeature& feature, const FeatureStatistics& found) {
    for (std::size_t i = 0; i < std::min(found.min.size(), found.max.size()); ++i) {
      if (found.min[i] > found.max[i])
        fault(fmt::format("{}/meta: statistics of \"{}\": element {} has min {} and max {}", info_.root, feature.name,
                          i, found.min[i], found.max[i]));
      if (found.min[i] == found.max[i])
        warn(fmt::format("{}/meta: \"{}\": element {} is {} in every row; it is left as it is, less its mean",
                         info_.root, feature.name, i, found.min[i]));
    }
  }

  std::vector<DataPart> data_parts() const {
    std::vector<DataPart> parts;
    for (std::size_t e = 0; e < info_.episodes.size(); ++e) {
      const LeRobotEpisode& episode = info_.episodes[e];
      const std::string path = info_.data_file(episode.data_chunk, episode.data_file);
      if (parts.empty() || parts.back().path != path) parts.push_back({path, e, e, episode.begin, 0});
      parts.back().last = e + 1;
      parts.back().rows += episode.end - episode.begin;
    }
    return parts;
  }

  void check_data_file(const DataPart& part) {
    attempt([&] {
      const ParquetTable table(part.path);
      if (table.rows() != part.rows)
        fault(fmt::format("{}: has {} rows, but meta/episodes says {}", part.path, table.rows(), part.rows));
      check_index(table, part);
      for (const LeRobotFeature& feature : info_.features) {
        if (feature.kind == FeatureKind::kNumbers) check_numbers(table, feature);
        if (feature.kind == FeatureKind::kImage) check_images(table, feature);
      }
    });
  }

  /// The five columns that every row has.
  void check_index(const ParquetTable& table, const DataPart& part) {
    std::vector<float> timestamps;
    std::map<std::string, std::vector<std::int64_t>> columns;
    bool read = attempt([&] { table.append("timestamp", 1, timestamps); });
    for (const char* name : {"frame_index", "episode_index", "index", "task_index"})
      read = attempt([&] { table.append(name, 1, columns[name]); }) && read;
    if (!read) return;
    std::map<std::string, RowFaults> faults;
    std::size_t row = 0;
    const TellRow tell = [&](const char* column, std::int64_t value, const std::string& due) {
      if (column == std::string_view("task_index") && info_.tasks.empty()) return;  // said already
      faults.try_emplace(column, report_.faults)
          .first->second.add(fmt::format("{}: column {}: row {} is {}, but {}", table.path(), column, row, value, due));
    };
    for (std::size_t e = part.first; e < part.last; ++e) {
      const LeRobotEpisode& episode = info_.episodes[e];
      for (std::int64_t i = episode.begin; i < episode.end && row < timestamps.size(); ++i, ++row) {
        const RowIndex found{timestamps[row], columns["index"][row], columns["frame_index"][row],
                             columns["episode_index"][row], columns["task_index"][row]};
        check_row(found, i, static_cast<std::int64_t>(e), info_, tell);
        const double due = static_cast<double>(i - episode.begin) / info_.fps;
        if (std::abs(found.timestamp - due) > kTolerance)
          faults.try_emplace("timestamp", report_.faults)
              .first->second.add(
                  fmt::format("{}: column timestamp: row {} is {} s, but {} s are due at {} frames a second",
                              table.path(), row, found.timestamp, due, info_.fps));
      }
    }
  }

  void check_numbers(const ParquetTable& table, const LeRobotFeature& feature) {
    std::vector<float> values;
    if (!attempt([&] { table.append(feature.name, feature.width(), values); })) return;
    RowFaults faults(report_.faults);
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (!std::isfinite(values[i]))
        faults.add(fmt::format("{}: column {}: row {} holds {}, which is not finite", table.path(), feature.name,
                               i / static_cast<std::size_t>(feature.width()), values[i]));
    }
  }

  void check_images(const ParquetTable& table, const LeRobotFeature& feature) {
    attempt([&] {
      RowFaults broken(report_.faults), sizes(report_.warnings);
      table.for_each_image(feature.name, [&](std::int64_t row, std::span<const std::uint8_t> bytes) {
        const std::string name = fmt::format("{}: column {}: row {}", table.path(), feature.name, row);
        Faults own(true);
        own.run([&] {
          if (const ImageSize size = encoded_image_size(bytes, name); !declared(feature, size))
            sizes.add(fmt::format("{} is {} x {} pixels, but info.json says [{}]", name, size.height, size.width,
                                  fmt::join(feature.shape, ", ")));
        });
        for (const auto& what : own.list()) broken.add(what);
      });
    });
  }

  /// Some datasets write the channels first.
  static bool declared(const LeRobotFeature& feature, const ImageSize& size) {
    const auto& shape = feature.shape;
    return (shape[0] == size.height && shape[1] == size.width) || (shape[1] == size.height && shape[2] == size.width);
  }

  void check_videos(const std::string& camera, std::size_t slot) {
    std::map<std::string, std::vector<std::size_t>> files;  // episodes of each, in order
    for (std::size_t e = 0; e < info_.episodes.size(); ++e)
      files[info_.video_file(camera, info_.episodes[e].videos[slot])].push_back(e);
    for (const auto& [path, episodes] : files) {
      attempt([&, &path = path, &episodes = episodes] { check_video(camera, slot, path, episodes); });
    }
  }

  void check_video(const std::string& camera, std::size_t slot, const std::string& path,
                   const std::vector<std::size_t>& episodes) {
    VideoDecoder decoder(path);
    const VideoInfo& video = decoder.info();
    const LeRobotFeature& feature = *info_.find(camera);
    if (!declared(feature, {video.height, video.width}))
      fault(fmt::format("{}: is {} x {} pixels, but info.json says [{}]", path, video.height, video.width,
                        fmt::join(feature.shape, ", ")));
    RowFaults short_of(report_.faults);
    for (const std::size_t e : episodes) {
      const LeRobotEpisode& episode = info_.episodes[e];
      const double from = episode.videos[slot].from;
      const double last = from + static_cast<double>(episode.end - episode.begin - 1) / info_.fps;
      Faults own(true);
      own.run([&] {
        decoder.frame_at(from, kTolerance);
        decoder.frame_at(last, kTolerance);
      });
      for (const auto& what : own.list()) short_of.add(fmt::format("{} (episode {})", what, e));
    }
  }

  Faults faults_;
  LeRobotInfo info_;
  DatasetReport report_;
};

}  // namespace

DatasetReport check_lerobot_dataset(const std::string& root) { return Check(root).run(); }

}  // namespace plimsoll::data
