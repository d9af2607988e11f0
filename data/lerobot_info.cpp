#include "data/lerobot_info.h"

#include <fmt/args.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <iterator>
#include <nlohmann/json.hpp>
#include <numeric>

#include "core/error.h"
#include "data/faults.h"
#include "data/lerobot_json.h"
#include "data/lerobot_row.h"
#include "data/lerobot_tasks.h"
#include "data/lerobot_v2.h"
#include "data/parquet_table.h"

namespace plimsoll::data {
namespace {

using Json = nlohmann::json;

std::string read_version(const Json& info, const std::string& path) {
  auto version = entry<std::string>(info, path, "codebase_version");
  if (version.starts_with("v2.") || version.starts_with("v3.")) return version;
  fail(ExitCode::kData,
       "{}: codebase_version is \"{}\", but Plimsoll reads v2.0, v2.1 and v3.0; convert it with LeRobot's own scripts",
       path, version);
}

FeatureKind kind_of(const std::string& dtype, const std::string& name, const std::string& path) {
  if (dtype == "video") return FeatureKind::kVideo;
  if (dtype == "image") return FeatureKind::kImage;
  if (!is_number_dtype(dtype))
    fail(ExitCode::kData, "{}: feature \"{}\" has dtype \"{}\"; known are image, video and number types", path, name,
         dtype);
  return FeatureKind::kNumbers;
}

/// Datasets name the values of a row in a list, or in a list under one word such as "motors". Names that are not one a
/// value (of axes, or of several groups, whose order JSON does not keep) are left out: nothing needs them.
std::vector<std::string> names_of(const Json& json, std::int64_t width) {
  Json names = json.value("names", Json());
  if (names.is_object() && names.size() == 1) names = Json(names.front());
  const bool fits = names.is_array() && std::ssize(names) == width &&
                    std::all_of(names.begin(), names.end(), [](const Json& name) { return name.is_string(); });
  return fits ? names.get<std::vector<std::string>>() : std::vector<std::string>();
}

LeRobotFeature read_feature(const std::string& name, const Json& json, const std::string& path) {
  const std::string where = path + ": feature \"" + name + "\"";
  LeRobotFeature feature{
      name, entry<std::string>(json, where, "dtype"), entry<std::vector<std::int64_t>>(json, where, "shape"), {}, {}};
  feature.kind = kind_of(feature.dtype, name, path);
  constexpr std::int64_t kMost = 1 << 24;
  std::int64_t width = 1;
  for (const std::int64_t side : feature.shape) {
    if (side < 1 || side > kMost || (width *= side) > kMost)
      fail(ExitCode::kData, "{}: has the shape [{}]", where, fmt::join(feature.shape, ", "));
  }
  if (feature.kind != FeatureKind::kNumbers && feature.shape.size() != 3)
    fail(ExitCode::kData, "{}: pictures need a shape of height, width, channels, not [{}]", where,
         fmt::join(feature.shape, ", "));
  if (feature.kind == FeatureKind::kNumbers) feature.names = names_of(json, width);
  return feature;
}

/// The entry that says whether a feature is depth: where it is differs between LeRobot's versions. Of several that
/// contradict each other, the one that says it is.
struct DepthEntry {
  bool depth = false;
  std::string words;
};
std::optional<DepthEntry> depth_entry(const Json& feature) {
  std::optional<DepthEntry> says;
  for (const char* place : {"info", "video_info"}) {
    const auto found = feature.find(place);
    if (found == feature.end() || !found->is_object()) continue;
    for (const char* key : {"video.is_depth_map", "is_depth_map"}) {
      const Json flag = found->value(key, Json());
      if (flag.is_boolean() && !(says && says->depth))
        says = {flag.get<bool>(), fmt::format("its {} says {}", place, key)};
    }
  }
  return says;
}

/// Distances, trained on as if they were colours, would be noise. One channel is taken for distances unless an entry
/// says that they are none; whether it is the first or the last is not asked, as no picture has one row.
std::optional<std::string> why_depth(const Json& feature, const Json& dtype) {
  if (!(dtype == "video" || dtype == "image")) return std::nullopt;
  if (const auto found = depth_entry(feature)) return found->depth ? std::optional(found->words) : std::nullopt;
  const Json shape = feature.value("shape", Json());
  const bool one_channel = shape.is_array() && shape.size() == 3 && (shape.front() == 1 || shape.back() == 1);
  return one_channel ? std::optional(fmt::format(
                           "its shape {} has one channel, and no \"is_depth_map\": false in its info says otherwise",
                           shape.dump()))
                     : std::nullopt;
}

void read_features(const Json& info, const std::string& path, LeRobotInfo& out, Faults& faults) {
  const auto features = entry<Json>(info, path, "features");
  if (!features.is_object()) fail(ExitCode::kData, "{}: \"features\" is no object", path);
  for (const auto& [name, json] : features.items()) {
    const Json dtype = json.is_object() ? json.value("dtype", Json()) : Json();
    if (std::find(std::begin(kIndexFeatures), std::end(kIndexFeatures), name) != std::end(kIndexFeatures)) {
      if (dtype.is_string()) out.index_dtypes[name] = dtype.get<std::string>();
      continue;
    }
    // Text beside the tasks' (notes, sources) is no input of a model: it is there, and nothing reads it.
    if (dtype == "string") continue;
    if (const auto why = why_depth(json, dtype)) {
      out.depth[name] = *why;
      continue;
    }
    faults.run([&, &name = name, &json = json] { out.features.push_back(read_feature(name, json, path)); });
  }
}

void read_totals(const Json& info, LeRobotInfo& out) {
  for (const char* key : {"total_episodes", "total_frames", "total_tasks"}) {
    const auto found = info.find(key);
    if (found == info.end()) continue;
    out.totals[key] = found->is_number_float() ? fmt::format("{:.0f}", found->get<double>()) : found->dump();
  }
}

void read_info(const Json& info, const std::string& path, LeRobotInfo& out, Faults& faults) {
  out.version = read_version(info, path);
  read_totals(info, out);
  out.fps = entry<double>(info, path, "fps");
  if (!(out.fps > 0)) fail(ExitCode::kData, "{}: fps is {}, but must be above 0", path, out.fps);
  out.data_path = entry<std::string>(info, path, "data_path");
  read_features(info, path, out, faults);
  const bool videos = std::any_of(out.features.begin(), out.features.end(),
                                  [](const auto& f) { return f.kind == FeatureKind::kVideo; });
  if (videos) out.video_path = entry<std::string>(info, path, "video_path");
}

void read_tasks(LeRobotInfo& out, Faults& faults) {
  const ParquetTable table(out.root + "/" + out.tasks_file);
  std::vector<std::int64_t> indices;
  table.append("task_index", 1, indices);
  const std::string column = table.has("task") ? "task" : "__index_level_0__";
  auto texts = table.texts(column);
  place_tasks(
      indices, std::move(texts),
      [&](std::size_t row) { return fmt::format("{}: column task_index: row {}", table.path(), row); }, out, faults);
}

std::vector<std::string> episode_files(const std::filesystem::path& folder) {
  std::vector<std::string> files;
  std::error_code error;
  for (std::filesystem::recursive_directory_iterator item(folder, error), end; !error && item != end;
       item.increment(error)) {
    if (item->path().extension() == ".parquet") files.push_back(item->path().string());
  }
  if (files.empty())
    fail(ExitCode::kData, "{}: holds no parquet file; a LeRobot v3.0 dataset lists its episodes there",
         folder.string());
  std::sort(files.begin(), files.end());
  return files;
}

std::vector<std::int64_t> integers(const ParquetTable& table, const std::string& column) {
  std::vector<std::int64_t> values;
  table.append(column, 1, values);
  return values;
}

void read_video_spans(const ParquetTable& table, const std::string& camera, std::size_t slot,
                      std::span<LeRobotEpisode> episodes) {
  const std::string prefix = "videos/" + camera + "/";
  const auto chunks = integers(table, prefix + "chunk_index");
  const auto files = integers(table, prefix + "file_index");
  std::vector<double> from;
  table.append(prefix + "from_timestamp", 1, from);
  for (std::size_t i = 0; i < episodes.size(); ++i) episodes[i].videos[slot] = {chunks[i], files[i], from[i]};
}

void read_episode_file(const std::string& path, const std::vector<std::string>& cameras, LeRobotInfo& out,
                       Faults& faults) {
  const ParquetTable table(path);
  out.episode_lists.push_back(path);
  const auto index = integers(table, "episode_index"), length = integers(table, "length");
  const auto chunk = integers(table, "data/chunk_index"), file = integers(table, "data/file_index");
  const auto from = integers(table, "dataset_from_index"), to = integers(table, "dataset_to_index");
  const std::size_t first = out.episodes.size();
  for (std::size_t row = 0; row < index.size(); ++row) {
    if (index[row] != static_cast<std::int64_t>(out.episodes.size()))
      faults.add(fmt::format("{}: column episode_index: row {} is {}, but the next episode is {}", path, row,
                             index[row], out.episodes.size()));
    if (length[row] > kMostFrames || from[row] < 0 || from[row] > to[row] || to[row] > kMostFrames) {
      faults.add(fmt::format(
          "{}: columns dataset_from_index, dataset_to_index: row {}: episode {} of length {} has frames {} to {}; they "
          "must ascend from 0 on, and at most {} are read",
          path, row, index[row], length[row], from[row], to[row], kMostFrames));
      // Without frames, so that the episodes after it keep their numbers.
      out.episodes.push_back({out.frames, out.frames, chunk[row], file[row], std::vector<VideoSpan>(cameras.size())});
      continue;
    }
    if (from[row] != out.frames || length[row] < 1 || to[row] != from[row] + length[row])
      faults.add(fmt::format(
          "{}: row {}: episode {} of length {} has frames {} to {}, but must begin at {} and have at least one", path,
          row, index[row], length[row], from[row], to[row], out.frames));
    out.episodes.push_back({from[row], to[row], chunk[row], file[row], std::vector<VideoSpan>(cameras.size())});
    out.frames = to[row];
  }
  for (std::size_t slot = 0; slot < cameras.size(); ++slot) {
    if (out.find(cameras[slot])->kind == FeatureKind::kVideo)
      faults.run([&] { read_video_spans(table, cameras[slot], slot, std::span(out.episodes).subspan(first)); });
  }
}

void read_episodes(LeRobotInfo& out, Faults& faults) {
  const auto cameras = out.cameras();
  const std::string folder = out.root + "/" + out.episodes_file;
  for (const std::string& file : episode_files(folder))
    faults.run([&] { read_episode_file(file, cameras, out, faults); });
  if (out.episodes.empty()) fail(ExitCode::kData, "{}: lists no episode; the dataset is empty", folder);
}

// lerobot 0.4.4 takes those of a feature of shape [2, 3] over its rows too: one for each of the 3, which then holds for
// both rows. 0.3.3 has 6.
void repeat_over_leading_axes(const LeRobotFeature& feature, std::vector<double>& values) {
  if (feature.kind != FeatureKind::kNumbers || feature.shape.size() < 2) return;
  if (std::ssize(values) != feature.shape.back()) return;
  const std::vector<double> last = values;
  while (std::ssize(values) < feature.width()) values.insert(values.end(), last.begin(), last.end());
}

FeatureStatistics read_feature_statistics(const Json& json, const LeRobotFeature& feature, const std::string& where) {
  FeatureStatistics statistics;
  for (const auto& [name, values] : kStatistics) {
    const auto part = json.find(name);
    if (part == json.end()) continue;
    flatten(*part, statistics.*values, where + "." + name);
    repeat_over_leading_axes(feature, statistics.*values);
  }
  return statistics;
}

void read_statistics(LeRobotInfo& out, Faults& faults) {
  const std::string path = out.root + "/meta/stats.json";
  if (!std::filesystem::exists(path)) return;  // an error only for those who normalise by them
  out.statistics_file = "meta/stats.json";
  const Json json = read_json(path);
  for (const LeRobotFeature& feature : out.features) {
    const auto found = json.find(feature.name);
    if (found == json.end()) continue;
    faults.run(
        [&] { out.statistics[feature.name] = read_feature_statistics(*found, feature, path + ": " + feature.name); });
  }
}

std::string fill_template(const std::string& root, const std::string& pattern, const std::string& camera,
                          std::int64_t chunk, std::int64_t file) {
  try {
    return root + "/" +
           fmt::format(fmt::runtime(pattern), fmt::arg("chunk_index", chunk), fmt::arg("file_index", file),
                       fmt::arg("video_key", camera), fmt::arg("episode_chunk", chunk),
                       fmt::arg("episode_index", file));
  } catch (const fmt::format_error& error) {
    fail(ExitCode::kData,
         "{}/meta/info.json: the path \"{}\" is no template of chunk_index, file_index and video_key, or in format v2 "
         "of episode_chunk, episode_index and video_key: {}",
         root, pattern, error.what());
  }
}

}  // namespace

bool is_number_dtype(const std::string& dtype) {
  static const std::array numbers{"float16", "float32", "float64", "int8",   "int16",  "int32",
                                  "int64",   "uint8",   "uint16",  "uint32", "uint64", "bool"};
  return std::find(numbers.begin(), numbers.end(), dtype) != numbers.end();
}

std::int64_t LeRobotFeature::width() const {
  return std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>());
}

bool LeRobotFeature::declares(std::int64_t rows, std::int64_t columns) const {
  return (shape[0] == rows && shape[1] == columns) || (shape[1] == rows && shape[2] == columns);
}

std::string LeRobotInfo::index_dtype(const std::string& column) const {
  const auto found = index_dtypes.find(column);
  return found == index_dtypes.end() ? "" : found->second;
}

const LeRobotFeature* LeRobotInfo::find(const std::string& name) const {
  const auto found =
      std::find_if(features.begin(), features.end(), [&](const auto& feature) { return feature.name == name; });
  return found == features.end() ? nullptr : &*found;
}

std::vector<std::string> LeRobotInfo::cameras() const {
  std::vector<std::string> names;
  for (const LeRobotFeature& feature : features) {
    if (feature.kind != FeatureKind::kNumbers) names.push_back(feature.name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::vector<std::string> LeRobotInfo::depth_notes() const {
  std::vector<std::string> notes;
  for (const auto& [name, why] : depth)
    notes.push_back(fmt::format("{}/meta/info.json: feature \"{}\" is depth ({}); it is left out", root, name, why));
  return notes;
}

std::string LeRobotInfo::data_file(std::int64_t chunk, std::int64_t file) const {
  return fill_template(root, data_path, "", chunk, file);
}

std::string LeRobotInfo::video_file(const std::string& camera, const VideoSpan& span) const {
  return fill_template(root, video_path, camera, span.chunk, span.file);
}

std::vector<LeRobotDataFile> LeRobotInfo::data_files() const {
  std::vector<LeRobotDataFile> files;
  for (std::size_t e = 0; e < episodes.size(); ++e) {
    const LeRobotEpisode& episode = episodes[e];
    std::string path = data_file(episode.data_chunk, episode.data_file);
    if (files.empty() || files.back().path != path) files.push_back({std::move(path), e, e, 0});
    files.back().last = e + 1;
    // Episodes that lie about their frames, of which a check goes on to read the next, must not overflow their sum.
    files.back().rows = std::min(kMostFrames, files.back().rows + episode.end - episode.begin);
  }
  return files;
}

std::map<std::string, std::vector<std::size_t>> LeRobotInfo::video_files(std::size_t slot) const {
  const std::string camera = cameras().at(slot);
  std::map<std::string, std::vector<std::size_t>> files;
  for (std::size_t e = 0; e < episodes.size(); ++e) files[video_file(camera, episodes[e].videos[slot])].push_back(e);
  return files;
}

double LeRobotInfo::last_frame(const LeRobotEpisode& episode, std::size_t slot) const {
  return episode.videos[slot].from + static_cast<double>(episode.end - episode.begin - 1) / fps;
}

const FeatureStatistics& LeRobotInfo::statistics_of(const LeRobotFeature& feature) const {
  const auto found = statistics.find(feature.name);
  if (found == statistics.end())
    fail(ExitCode::kData, "{}/{}: has no statistics of \"{}\", which normalisation needs", root, statistics_file,
         feature.name);
  const auto width = static_cast<std::size_t>(feature.width());
  for (const auto& [name, values] : kStatistics) {
    const std::size_t size = (found->second.*values).size();
    if (size != 0 && size != width)
      fail(ExitCode::kData, "{}/{}: {} of \"{}\" has {} values, but the feature has {}", root, statistics_file, name,
           feature.name, size, width);
  }
  return found->second;
}

LeRobotInfo read_lerobot_info(const std::string& root) {
  Faults first;
  return read_lerobot_info(root, first);
}

LeRobotInfo read_lerobot_info(const std::string& root, Faults& faults) {
  LeRobotInfo info;
  info.root = root;
  const std::string path = root + "/meta/info.json";
  const Json json = read_json(path);
  read_info(json, path, info, faults);
  if (info.is_v2()) {
    read_lerobot_v2(json, info, faults);
  } else {
    faults.run([&] { read_tasks(info, faults); });
    faults.run([&] { read_episodes(info, faults); });
  }
  if (info.statistics.empty()) faults.run([&] { read_statistics(info, faults); });
  return info;
}

}  // namespace plimsoll::data
