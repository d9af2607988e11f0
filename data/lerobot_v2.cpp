#include "data/lerobot_v2.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <span>

#include "data/faults.h"
#include "data/feature_statistics.h"
#include "data/lerobot_json.h"
#include "data/lerobot_tasks.h"

namespace plimsoll::data {
namespace {

using Json = nlohmann::json;

constexpr const char* kStatisticsFile = "meta/episodes_stats.jsonl";

std::string line_of(const std::string& path, std::size_t line) { return fmt::format("{}: entry {}", path, line + 1); }

void read_tasks(LeRobotInfo& out, Faults& faults) {
  const std::string path = out.root + "/" + out.tasks_file;
  const auto lines = read_json_lines(path);
  std::vector<std::int64_t> indices;
  std::vector<std::string> texts;
  for (std::size_t i = 0; i < lines.size(); ++i) {
    const std::string where = line_of(path, i);
    indices.push_back(entry<std::int64_t>(lines[i], where, "task_index"));
    texts.push_back(entry<std::string>(lines[i], where, "task"));
  }
  place_tasks(
      indices, std::move(texts), [&](std::size_t i) { return line_of(path, i) + ": task_index"; }, out, faults);
}

void read_episodes(const Json& info, LeRobotInfo& out, Faults& faults) {
  const std::string path = out.root + "/" + out.episodes_file, of_info = out.root + "/meta/info.json";
  const auto per_chunk = entry<std::int64_t>(info, of_info, "chunks_size");
  if (per_chunk < 1) fail(ExitCode::kData, "{}: chunks_size is {}, but must be above 0", of_info, per_chunk);
  const auto cameras = out.cameras().size();
  const auto lines = read_json_lines(path);
  out.episode_lists = {path};
  for (std::size_t i = 0; i < lines.size(); ++i) {
    const std::string where = line_of(path, i);
    const auto index = entry<std::int64_t>(lines[i], where, "episode_index");
    const auto length = entry<std::int64_t>(lines[i], where, "length");
    if (index != static_cast<std::int64_t>(i))
      faults.add(fmt::format("{}: episode_index is {}, but the next episode is {}", where, index, i));
    if (length > kMostFrames || out.frames > kMostFrames)
      fail(ExitCode::kData, "{}: episode {} has {} frames; at most {} are read", where, i, length, kMostFrames);
    if (length < 1)
      faults.add(fmt::format("{}: episode {} has {} frames, but must have at least one", where, i, length));
    // A file an episode: its number is the episode's, and every video begins with it.
    const std::int64_t chunk = index / per_chunk, end = out.frames + std::max<std::int64_t>(0, length);
    out.episodes.push_back(
        {out.frames, end, chunk, index, std::vector<VideoSpan>(cameras, VideoSpan{chunk, index, 0.0})});
    out.frames = end;
  }
  const auto said = entry<std::int64_t>(info, of_info, "total_episodes");
  if (said != std::ssize(lines))
    faults.add(fmt::format(
        "{}: lists {} episodes, but info.json says {} (total_episodes); one of them is of another recording", path,
        lines.size(), said));
  if (lines.empty()) fail(ExitCode::kData, "{}: lists no episode; the dataset is empty", path);
}

/// One episode's statistics of a feature.
CountedStatistics read_part(const Json& json, const std::string& where) {
  CountedStatistics part;
  std::vector<double> count;
  const auto read = [&](const std::string& name, std::vector<double>& values) {
    flatten(entry<Json>(json, where, name), values, where + "." + name);
  };
  for (const auto& [name, values] : std::span(kStatistics).first(kStatisticsOfV2)) read(name, part.values.*values);
  read("count", count);
  const std::size_t width = part.values.mean.size();
  if (count.size() != 1 || !(count[0] >= 1)) fail(ExitCode::kData, "{}.count is no number above 0", where);
  for (const auto* values : {&part.values.std, &part.values.min, &part.values.max})
    if (values->size() != width)
      fail(ExitCode::kData, "{}: its statistics have {} and {} values", where, width, values->size());
  part.count = count[0];
  return part;
}

void read_episode_statistics(const Json& line, const std::string& at, const std::vector<LeRobotFeature>& features,
                             std::map<std::string, std::vector<CountedStatistics>>& parts) {
  const auto statistics = entry<Json>(line, at, "stats");
  for (const LeRobotFeature& feature : features) {
    const auto found = statistics.find(feature.name);
    if (found == statistics.end()) continue;
    auto& those = parts[feature.name];
    const std::string where = at + ": " + feature.name;
    those.push_back(read_part(*found, where));
    if (those.back().values.mean.size() != those.front().values.mean.size())
      fail(ExitCode::kData, "{}: has {} values, and {} in the first episode", where, those.back().values.mean.size(),
           those.front().values.mean.size());
  }
}

/// Puts those of the episodes together as aggregate_feature_stats in compute_stats.py does.
void read_statistics(LeRobotInfo& out, Faults& faults) {
  const std::string path = out.root + "/" + kStatisticsFile;
  if (!std::filesystem::exists(path)) return;  // v2.0; or an error only for those who normalise by them
  out.statistics_file = kStatisticsFile;
  std::map<std::string, std::vector<CountedStatistics>> parts;
  const auto lines = read_json_lines(path);
  bool whole = true;
  for (std::size_t i = 0; i < lines.size(); ++i)
    whole = faults.run([&] { read_episode_statistics(lines[i], line_of(path, i), out.features, parts); }) && whole;
  if (!whole) return;
  for (const auto& [name, those] : parts) out.statistics[name] = pooled(those).values;
}

}  // namespace

void read_lerobot_v2(const Json& info, LeRobotInfo& out, Faults& faults) {
  out.tasks_file = "meta/tasks.jsonl";
  out.episodes_file = "meta/episodes.jsonl";
  if (out.version != "v2.0") out.statistics_file = kStatisticsFile;
  faults.run([&] { read_tasks(out, faults); });
  faults.run([&] { read_episodes(info, out, faults); });
  faults.run([&] { read_statistics(out, faults); });
}

}  // namespace plimsoll::data
