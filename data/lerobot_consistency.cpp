#include "data/lerobot_consistency.h"

#include <fmt/format.h>

#include <iterator>
#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "data/lerobot_json.h"
#include "data/unicode_text.h"

namespace plimsoll::data {
namespace {

constexpr std::size_t kQuoted = 200;  // bytes of a text that are repeated where it is wrong

std::string total_difference(const LeRobotInfo& info, const std::string& key, const std::string& file,
                             std::int64_t listed) {
  const auto said = info.totals.find(key);
  if (said == info.totals.end() || said->second == std::to_string(listed)) return "";
  return fmt::format("{}/meta/info.json: {} is {}, but {} lists {}; one of them is of another recording or incomplete",
                     info.root, key, said->second, file, listed);
}

/// One text, or several, as older tools and newer ones write them.
std::vector<std::string> texts_of(const nlohmann::json& line, const std::string& where) {
  if (line.at("tasks").is_string()) return {line.at("tasks").get<std::string>()};
  return entry<std::vector<std::string>>(line, where, "tasks");
}

/// Calls `compare` with the texts of each entry, and where that is.
template <class Compare>
void read_task_lines(const std::string& path, const Compare& compare, const Faults& faults, const Faults& missing) {
  std::int64_t number = 0;
  for (const nlohmann::json& line : read_json_lines(path)) {
    const std::string where = fmt::format("{}: entry {}", path, ++number);
    if (line.contains("tasks")) {
      faults.run([&] { compare(texts_of(line, where), where + ": tasks"); });
    } else {
      missing.add(where + " lacks \"tasks\"; LeRobot lists each episode's there");
    }
  }
}

template <class Compare>
void read_task_column(const std::string& path, const Compare& compare, const Faults& missing) {
  const ParquetTable table(path);
  if (!table.has("tasks")) {
    missing.add(path + ": column tasks is missing; LeRobot lists each episode's there");
    return;
  }
  std::int64_t row = 0;
  for (const auto& texts : table.text_lists("tasks"))
    compare(texts, fmt::format("{}: column tasks: row {}", path, row++));
}

}  // namespace

void compare_totals(const LeRobotInfo& info, const Faults& faults) {
  const auto compare = [&](const char* key, std::int64_t listed) {
    const std::string difference = total_difference(info, key, info.episodes_file, listed);
    if (!difference.empty()) faults.add(difference);
  };
  if (!info.is_v2()) compare("total_episodes", std::ssize(info.episodes));
  compare("total_frames", info.frames);
}

std::string task_total_difference(const LeRobotInfo& info) {
  return total_difference(info, "total_tasks", info.tasks_file, std::ssize(info.tasks));
}

void check_task_texts(const LeRobotInfo& info, const Faults& faults) {
  for (std::size_t i = 0; i < info.tasks.size(); ++i) {
    if (valid_utf8(info.tasks[i]) != info.tasks[i])
      faults.add(fmt::format("{}/{}: task {} (its task_index) is no valid UTF-8: \"{}\"; write the text as UTF-8",
                             info.root, info.tasks_file, i, valid_utf8(info.tasks[i].substr(0, kQuoted))));
  }
}

void compare_episode_tasks(const LeRobotInfo& info, const std::string& list, const Faults& foreign,
                           const Faults& missing) {
  if (info.tasks.empty()) return;  // said already
  const std::set<std::string> known(info.tasks.begin(), info.tasks.end());
  const auto compare = [&](const std::vector<std::string>& texts, const std::string& where) {
    for (const std::string& text : texts) {
      if (!known.contains(text))
        foreign.add(fmt::format("{} is \"{}\", which is no task of {}/{}; add it there or correct it", where,
                                valid_utf8(text.substr(0, kQuoted)), info.root, info.tasks_file));
    }
  };
  foreign.run([&] {
    info.is_v2() ? read_task_lines(list, compare, foreign, missing) : read_task_column(list, compare, missing);
  });
}

void refuse_contradictions(const LeRobotInfo& info) {
  const Faults first{};
  const Faults unheeded([](const std::string&) {});
  compare_totals(info, first);
  check_task_texts(info, first);
  for (const std::string& list : info.episode_lists) compare_episode_tasks(info, list, first, unheeded);
}

std::string type_difference(const ParquetTable& table, const std::string& column, const std::string& declared) {
  if (declared.empty()) return "";
  const std::string dtype = table.dtype(column);
  if (dtype == declared) return "";
  return fmt::format(
      "{}: column {}: holds values of type {}, but meta/info.json says {}; convert the column, or correct the dtype "
      "there",
      table.path(), column, dtype, declared);
}

}  // namespace plimsoll::data
