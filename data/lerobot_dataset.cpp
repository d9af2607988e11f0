#include "data/lerobot_dataset.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <set>
#include <utility>

#include "core/error.h"
#include "core/hash.h"
#include "data/frame_cache.h"
#include "data/image_places.h"
#include "data/lease_pool.h"
#include "data/lerobot_consistency.h"
#include "data/parquet_table.h"
#include "data/video.h"

namespace plimsoll::data {
namespace {

/// A feature of numbers, all rows one after another.
struct Numbers {
  std::string name;
  std::size_t width = 0;
  std::vector<float> values;
};

/// Sizes of a camera's pictures: one for a video feature, else one a row, stored as 32 bits a side.
struct Camera {
  const LeRobotFeature* feature = nullptr;
  std::size_t slot = 0;  // in LeRobotEpisode::videos
  std::vector<std::array<std::int32_t, 2>> sizes;
  std::vector<std::optional<ImagePlaces>> places{};  // of an image column, by data file
};

/// Rows of one data file, [begin, begin + rows).
struct DataFile {
  std::string path;
  std::int64_t begin = 0;
};

}  // namespace

struct LeRobotDataset::Parts {
  Parts(const std::string& root, const LeRobotOptions& chosen)
      : info(read_lerobot_info(root)),
        options(chosen),
        decoders(chosen.idle_decoders),
        tables(chosen.idle_decoders),
        opened(chosen.idle_decoders) {
    refuse_contradictions(info);
    notes = info.depth_notes();
    if (std::string difference = task_total_difference(info); !difference.empty())
      notes.push_back(std::move(difference));
    choose_features();
    for (const LeRobotDataFile& file : info.data_files()) read_data_file(file);
    check_rows();
    for (Camera& camera : cameras) {
      if (camera.feature->kind == FeatureKind::kVideo) check_videos(camera);
    }
  }

  bool wanted(const std::string& name) const {
    return !options.features ||
           std::find(options.features->begin(), options.features->end(), name) != options.features->end();
  }

  void choose_features() {
    for (const std::string& name : options.features.value_or(std::vector<std::string>())) {
      if (!info.find(name)) no_feature(name);
    }
    for (const LeRobotFeature& feature : info.features) {
      if (feature.kind == FeatureKind::kNumbers && wanted(feature.name))
        numbers.push_back({feature.name, static_cast<std::size_t>(feature.width()), {}});
    }
    const auto names = info.cameras();
    for (std::size_t slot = 0; slot < names.size(); ++slot) {
      if (wanted(names[slot])) cameras.push_back({info.find(names[slot]), slot, {}});
    }
  }

  [[noreturn]] void no_feature(const std::string& name) const {
    if (const auto depth = info.depth.find(name); depth != info.depth.end())
      fail(ExitCode::kData,
           "{}/meta/info.json: feature \"{}\" is depth ({}), which is not read as a picture; leave it out of "
           "data.cameras",
           info.root, name, depth->second);
    std::vector<std::string> known;
    for (const LeRobotFeature& feature : info.features) known.push_back(feature.name);
    fail(ExitCode::kData, "{}/meta/info.json: has no feature \"{}\" of that kind; its features are: {}", info.root,
         name, fmt::join(known, ", "));
  }

  void read_data_file(const LeRobotDataFile& file) {
    const ParquetTable table(file.path);
    if (table.rows() != file.rows)
      fail(ExitCode::kData, "{}: has {} rows, but {} says {}; the file is damaged or of another dataset", file.path,
           table.rows(), info.episodes_file, file.rows);
    files.push_back({file.path, info.episodes[file.first].begin});
    table.append("timestamp", 1, timestamps);
    table.append("frame_index", 1, frame_indices);
    table.append("episode_index", 1, episode_indices);
    table.append("index", 1, indices);
    table.append("task_index", 1, task_indices);
    for (Numbers& feature : numbers)
      table.append(feature.name, static_cast<std::int64_t>(feature.width), feature.values);
    note_types(table);
    for (Camera& camera : cameras) {
      if (camera.feature->kind == FeatureKind::kImage) read_sizes(table, camera);
    }
  }

  /// Of each column the first file.
  void note_types(const ParquetTable& table) {
    const auto note = [&](const std::string& column, const std::string& declared) {
      const std::string difference = type_difference(table, column, declared);
      if (difference.empty() || !columns_noted.insert(column).second) return;
      notes.push_back(difference + "; it is read as it is");
    };
    for (const char* column : kIndexFeatures) note(column, info.index_dtype(column));
    for (const Numbers& feature : numbers) note(feature.name, info.find(feature.name)->dtype);
  }

  /// Of every picture in a data file, and where the file has them. Only a part of the file is read, as a rule.
  static void read_sizes(const ParquetTable& table, Camera& camera) {
    const std::string& column = camera.feature->name;
    const auto add = [&](const ImageSize& size) {
      camera.sizes.push_back({static_cast<std::int32_t>(size.height), static_cast<std::int32_t>(size.width)});
    };
    const auto read = [&](std::int64_t row, std::span<const std::uint8_t> bytes) {
      add(encoded_image_size(bytes, picture_name(table.path(), column, row)));
    };
    auto found = find_images(table, column);
    if (!found) {
      camera.places.emplace_back();
      return table.for_each_image(column, read);
    }
    const FileBytes file(table.path());
    for (std::int64_t row = 0; row < found->places.rows(); ++row) {
      const auto size = size_in_head(found->heads[static_cast<std::size_t>(row)]);
      if (size) {
        add(*size);
      } else {
        read(row, found->places.read(file, row));
      }
    }
    camera.places.emplace_back(std::move(found->places));
  }

  static std::string picture_name(const std::string& path, const std::string& column, std::int64_t row) {
    return fmt::format("{}: column {}: row {}", path, column, row);
  }

  const DataFile& file_of(std::int64_t index) const {
    return *std::prev(std::upper_bound(files.begin(), files.end(), index,
                                       [](std::int64_t i, const DataFile& file) { return i < file.begin; }));
  }

  RowIndex row(std::int64_t index) const {
    const auto i = static_cast<std::size_t>(index);
    return {timestamps.at(i), indices[i], frame_indices[i], episode_indices[i], task_indices[i]};
  }

  void check_rows() const {
    std::int64_t index = 0;
    const TellRow refuse = [&](const char* column, std::int64_t found, const std::string& due) {
      const DataFile& file = file_of(index);
      fail(ExitCode::kData, "{}: column {}: row {} is {}, but {}", file.path, column, index - file.begin, found, due);
    };
    for (std::size_t e = 0; e < info.episodes.size(); ++e) {
      for (index = info.episodes[e].begin; index < info.episodes[e].end; ++index)
        check_row(row(index), index, static_cast<std::int64_t>(e), info, refuse);
    }
  }

  const std::string& name(const Camera& camera) const { return camera.feature->name; }

  /// Every file exists, is of the declared size and reaches to the last frame that an episode wants of it.
  void check_videos(Camera& camera) {
    for (const auto& [path, episodes] : info.video_files(camera.slot)) {
      std::pair<double, std::size_t> last;  // seconds of the last frame, and its episode
      for (const std::size_t e : episodes) last = std::max(last, {info.last_frame(info.episodes[e], camera.slot), e});
      check_video(camera, path, last.first, last.second);
    }
  }

  void check_video(Camera& camera, const std::string& path, double seconds, std::size_t episode) {
    const VideoInfo video = decoders.with(path, [](VideoDecoder& decoder) { return decoder.info(); });
    const std::int64_t needed = std::llround(seconds * video.average_fps) + 1;
    if (video.frames > 0 && needed > video.frames)
      fail(ExitCode::kData,
           "{}: has {} frames, but episode {} needs {}: the video is shorter than its parquet; copy or record it again",
           path, video.frames, episode, needed);
    if (!camera.feature->declares(video.height, video.width))
      fail(ExitCode::kData,
           "{}: is {} x {} pixels, but {}/meta/info.json says [{}] of \"{}\"; copy the right video, or correct the "
           "shape",
           path, video.height, video.width, info.root, fmt::join(camera.feature->shape, ", "), name(camera));
    if (camera.sizes.empty())
      camera.sizes.push_back({static_cast<std::int32_t>(video.height), static_cast<std::int32_t>(video.width)});
    picture_files.insert(path);
  }

  const LeRobotEpisode& episode_of(std::int64_t index) const {
    return info.episodes[static_cast<std::size_t>(episode_indices[static_cast<std::size_t>(index)])];
  }

  Image video_frame(const Camera& camera, std::int64_t index) {
    return kept_frames.get(camera.slot, index, [&] { return decoded_frame(camera, index); });
  }

  Image decoded_frame(const Camera& camera, std::int64_t index) {
    const VideoSpan& span = episode_of(index).videos[camera.slot];
    const auto time = static_cast<double>(timestamps[static_cast<std::size_t>(index)]);
    const double tolerance = time_tolerance(time, options.tolerance);
    return decoders.with(info.video_file(name(camera), span),
                         [&](VideoDecoder& decoder) { return decoder.frame_at(span.from + time, tolerance); });
  }

  Image column_picture(const Camera& camera, std::int64_t index) {
    const DataFile& file = file_of(index);
    const std::int64_t row = index - file.begin;
    return decode_image(encoded_picture(camera, file, row), picture_name(file.path, name(camera), row));
  }

  std::vector<std::uint8_t> encoded_picture(const Camera& camera, const DataFile& file, std::int64_t row) {
    const auto& places = camera.places[static_cast<std::size_t>(&file - files.data())];
    if (!places) return tables.with(file.path, [&](ParquetTable& table) { return table.image(name(camera), row); });
    return opened.with(file.path, [&](const FileBytes& bytes) { return places->read(bytes, row); });
  }

  LeRobotInfo info;
  LeRobotOptions options;
  std::vector<Numbers> numbers;
  std::vector<Camera> cameras;
  std::vector<DataFile> files;
  std::set<std::string> picture_files, columns_noted;
  std::vector<std::string> notes;
  std::vector<float> timestamps;
  std::vector<std::int64_t> frame_indices, episode_indices, indices, task_indices;
  DatasetFrames kept_frames{decoded_frames()};
  LeasePool<VideoDecoder> decoders;
  LeasePool<ParquetTable> tables;
  LeasePool<FileBytes> opened;
};

LeRobotDataset::LeRobotDataset(const std::string& root, const LeRobotOptions& options)
    : parts_(std::make_unique<Parts>(root, options)) {}
LeRobotDataset::~LeRobotDataset() = default;
LeRobotDataset::LeRobotDataset(LeRobotDataset&&) noexcept = default;

const LeRobotInfo& LeRobotDataset::info() const { return parts_->info; }

const std::vector<std::string>& LeRobotDataset::notes() const { return parts_->notes; }

RowIndex LeRobotDataset::row(std::int64_t index) const { return parts_->row(index); }

const LeRobotEpisode& LeRobotDataset::episode_of(std::int64_t index) const { return parts_->episode_of(index); }

const std::string& LeRobotDataset::task(std::int64_t index) const {
  return parts_->info.tasks[static_cast<std::size_t>(parts_->task_indices[static_cast<std::size_t>(index)])];
}

std::size_t LeRobotDataset::numbers(const std::string& feature) const {
  for (std::size_t i = 0; i < parts_->numbers.size(); ++i) {
    if (parts_->numbers[i].name == feature) return i;
  }
  parts_->no_feature(feature);
}

std::span<const float> LeRobotDataset::values(std::size_t numbers, std::int64_t index) const {
  const Numbers& feature = parts_->numbers[numbers];
  return std::span(feature.values).subspan(static_cast<std::size_t>(index) * feature.width, feature.width);
}

std::size_t LeRobotDataset::camera(const std::string& feature) const {
  for (std::size_t i = 0; i < parts_->cameras.size(); ++i) {
    if (parts_->cameras[i].feature->name == feature) return i;
  }
  parts_->no_feature(feature);
}

Image LeRobotDataset::image(std::size_t camera, std::int64_t index) const {
  const Camera& wanted = parts_->cameras[camera];
  return wanted.feature->kind == FeatureKind::kVideo ? parts_->video_frame(wanted, index)
                                                     : parts_->column_picture(wanted, index);
}

ImageSize LeRobotDataset::image_size(std::size_t camera, std::int64_t index) const {
  const Camera& wanted = parts_->cameras[camera];
  const auto size =
      wanted.feature->kind == FeatureKind::kVideo ? wanted.sizes[0] : wanted.sizes[static_cast<std::size_t>(index)];
  return {size[0], size[1]};
}

std::uint64_t LeRobotDataset::hash() const {
  Hasher hasher;
  const auto add = [&](const auto& values) { hasher.update(std::as_bytes(std::span(values))); };
  add(parts_->timestamps);
  add(parts_->task_indices);
  for (const Numbers& feature : parts_->numbers) add(feature.name), add(feature.values);
  for (const std::string& task : parts_->info.tasks) add(task);
  std::set<std::string> paths = parts_->picture_files;
  for (const DataFile& file : parts_->files) paths.insert(file.path);
  for (const std::string& path : paths) {
    add(path.substr(parts_->info.root.size()));
    add(std::array{static_cast<std::uint64_t>(std::filesystem::file_size(path))});
  }
  return hasher.digest_64();
}

std::uint64_t LeRobotDataset::pictures_hash() const {
  Hasher hasher;
  const auto add = [&](const auto& values) { hasher.update(std::as_bytes(std::span(values))); };
  const LeRobotInfo& info = parts_->info;
  for (const Camera& camera : parts_->cameras) add(camera.feature->name);
  add(parts_->timestamps);
  add(std::array{info.fps});
  for (const LeRobotEpisode& episode : info.episodes) {
    add(std::array{episode.begin, episode.end, episode.data_chunk, episode.data_file});
    for (const VideoSpan& video : episode.videos) {
      add(std::array{video.chunk, video.file});
      add(std::array{video.from});
    }
  }
  std::set<std::string> paths = parts_->picture_files;
  for (const DataFile& file : parts_->files) paths.insert(file.path);  // pictures may be columns
  for (const std::string& path : paths) {
    add(path.substr(info.root.size()));
    const auto changed = std::filesystem::last_write_time(path).time_since_epoch().count();
    add(std::array{static_cast<std::int64_t>(std::filesystem::file_size(path)), static_cast<std::int64_t>(changed)});
  }
  return hasher.digest_64();
}

}  // namespace plimsoll::data
