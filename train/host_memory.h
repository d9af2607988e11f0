#pragma once
// What memory this process may use on its machine: what the machine has, or what its control groups (a container's, a
// batch job's) let it have, if that is less.

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace plimsoll::train {

struct HostMemory {
  std::int64_t total = 0;
  std::int64_t available = 0;  ///< what could be taken now without swapping
};

/// Texts of a control group's files; empty where there is no such file.
struct ControlGroup {
  std::string most;        ///< memory.max; version 1: memory.limit_in_bytes
  std::string used;        ///< memory.current; version 1: memory.usage_in_bytes
  std::string statistics;  ///< memory.stat
};

/// Of the text of /proc/self/cgroup: folders of the groups that may bound the process's memory, from its own up to the
/// one that holds all of them. In a container some of them are not there. Pure.
std::vector<std::string> control_group_folders(std::string_view proc_self_cgroup);

/// Of the text of /proc/meminfo and those groups: the least of all. Pages of files count as available, as they do in
/// MemAvailable: the kernel takes them back before a group reaches its limit, and reading a dataset would seem to fill
/// the memory else. Groups without a limit, or whose texts are not understood, bound nothing. Pure. Throws
/// Error(kMemory) for a meminfo without the two figures.
HostMemory host_memory(std::string_view meminfo, std::span<const ControlGroup> groups);

/// The same of this process, now.
HostMemory read_host_memory();

}  // namespace plimsoll::train
