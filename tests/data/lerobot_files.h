#pragma once
// Small LeRobot datasets whose every value follows from its global index, for tests of what reads them.

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include "core/file.h"
#include "data/lerobot_source.h"
#include "data/lerobot_writer.h"
#include "data/parquet_writer.h"
#include "data/video_writer.h"

namespace plimsoll::data {

/// A grey level per global index, apart enough to survive H.264.
inline std::uint8_t level_of(std::int64_t index) { return static_cast<std::uint8_t>(20 + 30 * (index % 8)); }

inline Image grey(std::int64_t height, std::int64_t width, std::uint8_t level) {
  return {height, width, std::vector<std::uint8_t>(static_cast<std::size_t>(height * width * 3), level)};
}

inline std::array<double, 2> state_of(std::int64_t index) {
  const auto i = static_cast<double>(index);
  return {i, 100 - 2 * i};
}

inline LeRobotWriterOptions counting_options() {
  LeRobotWriterOptions options;
  options.features = {{"observation.images.top", "video", {32, 48, 3}, {}},
                      {"observation.images.wrist", "image", {28, 28, 3}, {}},
                      {"observation.state", "float32", {2}, {}},
                      {"observation.force", "float32", {1}, {}},
                      {"action", "float32", {2}, {}}};
  options.rows_per_group = 4;
  return options;
}

/// Frame `index`: both pictures have level_of(index), the PNG 28 + 2 * (index % 3) rows; action = -state; force =
/// index.
inline Frame counting_frame(std::int64_t index) {
  const auto state = state_of(index);
  Frame frame;
  frame.images["observation.images.top"] = grey(32, 48, level_of(index));
  frame.images["observation.images.wrist"] = grey(28 + 2 * (index % 3), 28, level_of(index));
  frame.numbers["observation.state"] = {state[0], state[1]};
  frame.numbers["observation.force"] = {static_cast<double>(index)};
  frame.numbers["action"] = {-state[0], -state[1]};
  return frame;
}

/// The dataset at `root` in chunks of three actions, with windows of four rows of its force sensor.
inline LeRobotSourceOptions force_source_options(const std::string& root) {
  LeRobotSourceOptions options;
  options.paths = {root};
  options.chunk = 3;
  options.sensor = "observation.force";
  options.sensor_window = 4;
  return options;
}

/// Writes episodes of the given lengths; the task of episode e is "task <e % 2>".
inline void write_counting_dataset(const std::string& root, const std::vector<std::int64_t>& lengths,
                                   const LeRobotWriterOptions& options = counting_options()) {
  LeRobotWriter writer(root, options);
  std::int64_t index = 0;
  for (std::size_t episode = 0; episode < lengths.size(); ++episode) {
    for (std::int64_t i = 0; i < lengths[episode]; ++i)
      writer.add(counting_frame(index++), "task " + std::to_string(episode % 2));
    writer.end_episode();
  }
  writer.finish();
}

/// A row of meta/episodes.
struct ListedEpisode {
  std::int64_t index = 0, length = 0, from = 0, to = 0;
  std::string task = "task 0";
};

/// Replaces the list of episodes of write_counting_dataset() by one that says `episodes`, all in the first files.
inline void write_episode_list(const std::string& root, const std::vector<ListedEpisode>& episodes) {
  const std::string top = "videos/observation.images.top/";
  ParquetWriter writer(root + "/meta/episodes/chunk-000/file-000.parquet",
                       {{"episode_index"},
                        {"tasks", ColumnType::kTexts},
                        {"length"},
                        {"data/chunk_index"},
                        {"data/file_index"},
                        {"dataset_from_index"},
                        {"dataset_to_index"},
                        {top + "chunk_index"},
                        {top + "file_index"},
                        {top + "from_timestamp", ColumnType::kDouble}},
                       8);
  constexpr std::int64_t kFirst = 0;
  for (const ListedEpisode& episode : episodes)
    writer.add({episode.index, std::vector<std::string>{episode.task}, episode.length, kFirst, kFirst, episode.from,
                episode.to, kFirst, kFirst, static_cast<double>(episode.from) / 10});
  writer.finish();
}

/// A grey video in place of the one at `path`.
inline void write_grey_video(const std::string& path, std::int64_t height, std::int64_t width, std::int64_t frames) {
  std::filesystem::remove(path);
  VideoOptions options;
  options.height = height;
  options.width = width;
  VideoWriter video(path, options);
  for (std::int64_t i = 0; i < frames; ++i) video.add(grey(height, width, level_of(i)), i == 0);
  video.finish();
}

/// A statistic of an episode's frames [begin, end) of write_counting_dataset(), as lerobot 0.3.3 writes it.
inline nlohmann::json episode_statistics(std::int64_t begin, std::int64_t end) {
  const auto of = [&](std::size_t width, const std::function<double(std::int64_t, std::size_t)>& value) {
    nlohmann::json json = {{"count", {end - begin}}};
    for (std::size_t i = 0; i < width; ++i) {
      double sum = 0, squares = 0, least = value(begin, i), most = least;
      for (std::int64_t index = begin; index < end; ++index) {
        const double one = value(index, i);
        sum += one, squares += one * one, least = std::min(least, one), most = std::max(most, one);
      }
      const double mean = sum / static_cast<double>(end - begin);
      json["mean"].push_back(mean);
      json["std"].push_back(std::sqrt(std::max(0.0, squares / static_cast<double>(end - begin) - mean * mean)));
      json["min"].push_back(least);
      json["max"].push_back(most);
    }
    return json;
  };
  return {{"observation.state", of(2, [](auto index, auto i) { return state_of(index)[i]; })},
          {"action", of(2, [](auto index, auto i) { return -state_of(index)[i]; })},
          {"observation.force", of(1, [](auto index, auto) { return static_cast<double>(index); })}};
}

/// The same dataset in format v2.1: a parquet and an mp4 file an episode, and the texts of meta/ as JSON lines.
inline void write_counting_dataset_v2(const std::string& root, const std::vector<std::int64_t>& lengths) {
  namespace fs = std::filesystem;
  auto options = counting_options();
  options.frames_per_data_file = options.frames_per_video_file = 1;
  write_counting_dataset(root, lengths, options);
  const std::string top = "observation.images.top";
  fs::create_directories(root + "/videos/chunk-000/" + top);
  std::ofstream tasks(root + "/meta/tasks.jsonl"), episodes(root + "/meta/episodes.jsonl"),
      statistics(root + "/meta/episodes_stats.jsonl");
  for (int task = std::min<int>(2, static_cast<int>(lengths.size())) - 1; task >= 0; --task)
    tasks << nlohmann::json{{"task_index", task}, {"task", "task " + std::to_string(task)}} << "\n";
  std::int64_t begin = 0;
  for (std::size_t e = 0; e < lengths.size(); ++e, begin += lengths[e - 1]) {
    fs::rename(fmt::format("{}/data/chunk-000/file-{:03d}.parquet", root, e),
               fmt::format("{}/data/chunk-000/episode_{:06d}.parquet", root, e));
    fs::rename(fmt::format("{}/videos/{}/chunk-000/file-{:03d}.mp4", root, top, e),
               fmt::format("{}/videos/chunk-000/{}/episode_{:06d}.mp4", root, top, e));
    const std::vector<std::string> of_episode = {"task " + std::to_string(e % 2)};
    episodes << nlohmann::json{{"episode_index", e}, {"tasks", of_episode}, {"length", lengths[e]}} << "\n";
    statistics << nlohmann::json{{"episode_index", e}, {"stats", episode_statistics(begin, begin + lengths[e])}}
               << "\n";
  }
  fs::remove_all(root + "/meta/episodes");
  fs::remove(root + "/meta/tasks.parquet");
  fs::rename(root + "/meta/stats.json", root + "/stats-of-v3.json");
  auto info = nlohmann::json::parse(read_file(root + "/meta/info.json"));
  info["codebase_version"] = "v2.1";
  info["data_path"] = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet";
  info["video_path"] = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4";
  std::ofstream(root + "/meta/info.json") << info;
}

}  // namespace plimsoll::data
