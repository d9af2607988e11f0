#include "data/lerobot_check.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <utility>

#include "data/faults.h"
#include "data/image_file.h"
#include "data/lerobot_consistency.h"
#include "data/lerobot_info.h"
#include "data/lerobot_row.h"
#include "data/parquet_table.h"
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

class Check {
 public:
  explicit Check(const std::string& root) : info_(read_lerobot_info(root, faults_)) {}

  DatasetReport run() {
    for (std::string& note : info_.depth_notes()) warn(std::move(note));
    check_totals();
    check_tasks();
    check_episode_tasks();
    for (const LeRobotFeature& feature : info_.features)
      if (feature.kind == FeatureKind::kNumbers) check_statistics(feature);
    attempt([&] {
      for (const LeRobotDataFile& file : info_.data_files()) check_data_file(file);
    });
    const auto cameras = info_.cameras();
    for (std::size_t slot = 0; slot < cameras.size(); ++slot)
      if (info_.find(cameras[slot])->kind == FeatureKind::kVideo) attempt([&] { check_videos(cameras[slot], slot); });
    report_.episodes = std::ssize(info_.episodes);
    report_.frames = info_.frames;
    report_.tasks = std::ssize(info_.tasks);
    return std::move(report_);
  }

 private:
  void fault(std::string what) { report_.faults.push_back(std::move(what)); }
  void warn(std::string what) { report_.warnings.push_back(std::move(what)); }
  template <class Part>
  bool attempt(Part&& part) {
    return faults_.run(std::forward<Part>(part));
  }

  void check_totals() {
    compare_totals(info_, faults_);
    if (std::string difference = task_total_difference(info_); !difference.empty()) fault(std::move(difference));
  }

  void check_tasks() {
    check_task_texts(info_, faults_);
    for (std::size_t i = 0; i < info_.tasks.size(); ++i) {
      const std::string& text = info_.tasks[i];
      const std::string where = fmt::format("{}/{}: task {}", info_.root, info_.tasks_file, i);
      if (text.empty()) warn(where + " is an empty text");
      if (text.size() > kLongInstruction)
        warn(fmt::format("{} has {} bytes; so long an instruction takes more tokens than a picture", where,
                         text.size()));
    }
  }

  void check_episode_tasks() {
    for (const std::string& list : info_.episode_lists) {
      RowFaults foreign(report_.faults), missing(report_.warnings);
      compare_episode_tasks(info_, list, Faults([&](const std::string& what) { foreign.add(what); }),
                            Faults([&](const std::string& what) { missing.add(what); }));
    }
  }

  void check_statistics(const LeRobotFeature& feature) {
    attempt([&] {
      const FeatureStatistics& found = info_.statistics_of(feature);
      for (const auto& [name, part] : kStatistics) {
        const std::vector<double>& values = found.*part;
        for (std::size_t i = 0; i < values.size(); ++i) {
          if (!std::isfinite(values[i]))
            fault(fmt::format("{}: element {} of {} is {}, which is not finite", statistics_name(feature), i, name,
                              values[i]));
        }
      }
      check_ranges(feature, found);
    });
  }

  std::string statistics_name(const LeRobotFeature& feature) const {
    return fmt::format("{}/{}: statistics of \"{}\"", info_.root, info_.statistics_file, feature.name);
  }

  /// Where a range is zero, normalisation only shifts (data/normaliser.h).
  void check_ranges(const LeRobotFeature& feature, const FeatureStatistics& found) {
    for (std::size_t i = 0; i < static_cast<std::size_t>(feature.width()); ++i) {
      const std::string where = fmt::format("{}: element {}", statistics_name(feature), i);
      std::vector<std::string> zero;
      if (i < found.std.size() && found.std[i] == 0) zero.emplace_back("std is 0 (mean_std makes the mean 0)");
      check_range(where, {"min", "max", "min_max"}, i, found.min, found.max, zero);
      check_range(where, {"q01", "q99", "quantiles"}, i, found.q01, found.q99, zero);
      if (!zero.empty())
        warn(fmt::format("{} has zero range: {}; it is shifted, not scaled", where, fmt::join(zero, ", ")));
    }
  }

  /// Both ends of the range that a normalisation goes by.
  struct RangeNames {
    const char *low, *high, *normalisation;
  };
  void check_range(const std::string& where, const RangeNames& names, std::size_t i, const std::vector<double>& low,
                   const std::vector<double>& high, std::vector<std::string>& zero) {
    if (i >= std::min(low.size(), high.size())) return;
    if (low[i] > high[i]) fault(fmt::format("{} has {} {} and {} {}", where, names.low, low[i], names.high, high[i]));
    if (low[i] == high[i])
      zero.push_back(
          fmt::format("{} and {} are {} ({} makes that -1)", names.low, names.high, low[i], names.normalisation));
  }

  void check_data_file(const LeRobotDataFile& file) {
    attempt([&] {
      const ParquetTable table(file.path);
      if (table.rows() != file.rows)
        fault(fmt::format("{}: has {} rows, but {} says {}", file.path, table.rows(), info_.episodes_file, file.rows));
      check_index(table, file);
      for (const LeRobotFeature& feature : info_.features) {
        if (feature.kind == FeatureKind::kNumbers) check_numbers(table, feature);
        if (feature.kind == FeatureKind::kImage) check_images(table, feature);
      }
    });
  }

  /// The five columns that every row has.
  void check_index(const ParquetTable& table, const LeRobotDataFile& file) {
    std::vector<float> timestamps;
    std::map<std::string, std::vector<std::int64_t>> columns;
    bool read = read_column(table, "timestamp", info_.index_dtype("timestamp"), 1, timestamps);
    for (const char* name : {"frame_index", "episode_index", "index", "task_index"})
      read = read_column(table, name, info_.index_dtype(name), 1, columns[name]) && read;
    if (!read) return;
    std::map<std::string, RowFaults> faults;
    std::size_t row = 0;
    const TellRow tell = [&](const char* column, std::int64_t value, const std::string& due) {
      if (column == std::string_view("task_index") && info_.tasks.empty()) return;  // said already
      faults.try_emplace(column, report_.faults)
          .first->second.add(fmt::format("{}: column {}: row {} is {}, but {}", table.path(), column, row, value, due));
    };
    for (std::size_t e = file.first; e < file.last; ++e) {
      const LeRobotEpisode& episode = info_.episodes[e];
      for (std::int64_t i = episode.begin; i < episode.end && row < timestamps.size(); ++i, ++row) {
        const RowIndex found{timestamps[row], columns["index"][row], columns["frame_index"][row],
                             columns["episode_index"][row], columns["task_index"][row]};
        check_row(found, i, static_cast<std::int64_t>(e), info_, tell);
        const double due = static_cast<double>(i - episode.begin) / info_.fps;
        if (!(std::abs(found.timestamp - due) <= time_tolerance(due, kTolerance)))  // nan neither
          faults.try_emplace("timestamp", report_.faults)
              .first->second.add(
                  fmt::format("{}: column timestamp: row {} is {} s, but {} s are due at {} frames a second",
                              table.path(), row, found.timestamp, due, info_.fps));
      }
    }
  }

  /// Appends a column's values. Of another type than `declared` they are a fault, and are read all the same if they are
  /// numbers. False, and said, where they cannot be read.
  template <class T>
  bool read_column(const ParquetTable& table, const std::string& column, const std::string& declared,
                   std::int64_t width, std::vector<T>& out) {
    bool read = false;
    attempt([&] {
      if (std::string difference = type_difference(table, column, declared); !difference.empty()) {
        fault(std::move(difference));
        if (!is_number_dtype(table.dtype(column))) return;
      }
      table.append(column, width, out);
      read = true;
    });
    return read;
  }

  void check_numbers(const ParquetTable& table, const LeRobotFeature& feature) {
    std::vector<float> values;
    if (!read_column(table, feature.name, feature.dtype, feature.width(), values)) return;
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
        const Faults here([&](const std::string& what) { broken.add(what); });
        here.run([&] {
          if (const ImageSize size = encoded_image_size(bytes, name); !feature.declares(size.height, size.width))
            sizes.add(fmt::format("{} is {} x {} pixels, but info.json says [{}]", name, size.height, size.width,
                                  fmt::join(feature.shape, ", ")));
        });
      });
    });
  }

  void check_videos(const std::string& camera, std::size_t slot) {
    for (const auto& [path, episodes] : info_.video_files(slot)) {
      attempt([&, &path = path, &episodes = episodes] { check_video(camera, slot, path, episodes); });
    }
  }

  void check_video(const std::string& camera, std::size_t slot, const std::string& path,
                   const std::vector<std::size_t>& episodes) {
    VideoDecoder decoder(path);
    const VideoInfo& video = decoder.info();
    const LeRobotFeature& feature = *info_.find(camera);
    if (!feature.declares(video.height, video.width))
      fault(fmt::format("{}: is {} x {} pixels, but info.json says [{}]", path, video.height, video.width,
                        fmt::join(feature.shape, ", ")));
    RowFaults short_of(report_.faults);
    for (const std::size_t e : episodes) {
      const LeRobotEpisode& episode = info_.episodes[e];
      if (episode.begin == episode.end) continue;  // said already
      const Faults here([&](const std::string& what) { short_of.add(fmt::format("{} (episode {})", what, e)); });
      here.run([&] {
        decoder.frame_at(episode.videos[slot].from, kTolerance);
        decoder.frame_at(info_.last_frame(episode, slot), kTolerance);
      });
    }
  }

  DatasetReport report_;
  Faults faults_{[this](const std::string& what) { fault(what); }};
  LeRobotInfo info_;
};

}  // namespace

DatasetReport check_lerobot_dataset(const std::string& root) { return Check(root).run(); }

}  // namespace plimsoll::data
