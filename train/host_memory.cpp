#include "train/host_memory.h"

#include <algorithm>
#include <charconv>
#include <fstream>
#include <iterator>
#include <optional>
#include <sstream>
#include <system_error>

#include "core/error.h"

namespace plimsoll::train {
namespace {

std::string whole_text(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// The number that follows a word.
std::optional<std::int64_t> number_after(std::string_view text, std::string_view name) {
  std::istringstream words{std::string(text)};
  for (std::string word; words >> word;) {
    std::int64_t value = 0;
    if (word == name && words >> value) return value;
  }
  return std::nullopt;
}

std::int64_t meminfo_bytes(std::string_view meminfo, std::string_view name) {
  if (const auto kilobytes = number_after(meminfo, name)) return *kilobytes * 1024;
  fail(ExitCode::kMemory, "/proc/meminfo has no line {}: this machine does not say what memory it has", name);
}

/// Nothing for "max", which is no limit.
std::optional<std::int64_t> whole_number(std::string_view text) {
  std::int64_t value = 0;
  const auto read = std::from_chars(text.data(), text.data() + text.size(), value);
  return read.ec == std::errc() ? std::optional(value) : std::nullopt;
}

/// Of version 1 those of the groups below are in lines of their own.
std::int64_t file_pages(std::string_view statistics) {
  std::int64_t bytes = 0;
  for (const std::string name : {"inactive_file", "active_file"}) {
    auto found = number_after(statistics, "total_" + name);
    if (!found) found = number_after(statistics, name);
    bytes += std::max<std::int64_t>(0, found.value_or(0));
  }
  return bytes;
}

bool lists_memory(const std::string& controllers) {
  std::istringstream names(controllers);
  for (std::string name; std::getline(names, name, ',');) {
    if (name == "memory") return true;
  }
  return false;
}

ControlGroup read_control_group(const std::string& folder) {
  ControlGroup group{whole_text(folder + "/memory.max"), whole_text(folder + "/memory.current"), ""};
  if (group.most.empty())
    group = {whole_text(folder + "/memory.limit_in_bytes"), whole_text(folder + "/memory.usage_in_bytes"), ""};
  if (whole_number(group.most)) group.statistics = whole_text(folder + "/memory.stat");
  return group;
}

}  // namespace

// Lines are "number:controllers:path"; that of version 2 names no controllers.
std::vector<std::string> control_group_folders(std::string_view proc_self_cgroup) {
  std::vector<std::string> folders;
  std::istringstream lines{std::string(proc_self_cgroup)};
  for (std::string line; std::getline(lines, line);) {
    const auto first = line.find(':');
    const auto second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    if (!controllers.empty() && !lists_memory(controllers)) continue;
    const std::string mount = controllers.empty() ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory";
    std::string path = line.substr(second + 1);
    if (!path.starts_with('/')) continue;
    for (; path.size() > 1; path.resize(path.rfind('/'))) folders.push_back(mount + path);
    folders.push_back(mount);
  }
  return folders;
}

HostMemory host_memory(std::string_view meminfo, std::span<const ControlGroup> groups) {
  HostMemory memory{meminfo_bytes(meminfo, "MemTotal:"), meminfo_bytes(meminfo, "MemAvailable:")};
  for (const ControlGroup& group : groups) {
    const std::int64_t most = whole_number(group.most).value_or(0);
    if (most <= 0) continue;
    const std::int64_t used = std::max<std::int64_t>(0, whole_number(group.used).value_or(0));
    const std::int64_t needed = used - std::min(used, file_pages(group.statistics));
    memory.total = std::min(memory.total, most);
    memory.available = std::min(memory.available, std::max<std::int64_t>(0, most - needed));
  }
  return memory;
}

HostMemory read_host_memory() {
  std::vector<ControlGroup> groups;
  for (const std::string& folder : control_group_folders(whole_text("/proc/self/cgroup")))
    groups.push_back(read_control_group(folder));
  return host_memory(whole_text("/proc/meminfo"), groups);
}

}  // namespace plimsoll::train
