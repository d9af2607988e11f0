#include "launcher/doctor.h"

#include <sched.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <torch/headeronly/version.h>
#include <unistd.h>

extern "C" {
#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <libavutil/avutil.h>
#include <libswscale/swscale.h>
}

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>

#include "core/bytes.h"
#include "launcher/gpu.h"
#include "launcher/version.h"

namespace plimsoll {
namespace {

constexpr std::int64_t kLittleMemory = 2_GiB, kLittleDisk = 1_GiB;
constexpr rlim_t kFewFiles = 256;

Finding cores() {
  cpu_set_t set;
  const bool known = ::sched_getaffinity(0, sizeof set, &set) == 0;
  const long online = ::sysconf(_SC_NPROCESSORS_ONLN);
  return {"cores", fmt::format("{} of {}", known ? CPU_COUNT(&set) : static_cast<int>(online), online), true, ""};
}

std::int64_t number_in(const std::string& path, const std::string& key, std::int64_t unit) {
  std::ifstream file(path);
  for (std::string word; file >> word;) {
    std::int64_t value = 0;
    if (word == key && file >> value) return value * unit;
  }
  return -1;
}

Finding main_memory() {
  const std::int64_t available = number_in("/proc/meminfo", "MemAvailable:", 1024);
  const std::int64_t total = number_in("/proc/meminfo", "MemTotal:", 1024);
  std::string value = fmt::format("{} free of {}", format_bytes(available), format_bytes(total));
  std::int64_t limit = -1;
  if (std::ifstream("/sys/fs/cgroup/memory.max") >> limit)
    value += fmt::format(", this container may use {}", format_bytes(limit));
  const bool enough = available >= kLittleMemory && (limit < 0 || limit >= kLittleMemory);
  return {"memory", value, enough, "even the demo wants 2 GiB: end other programs or raise the container's limit"};
}

/// First line that `command` prints; empty when it fails.
std::string first_line_of(const char* command) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> pipe(::popen(command, "re"), &::pclose);
  char line[256] = "";
  if (!pipe || std::fgets(line, sizeof line, pipe.get()) == nullptr) return "";
  return std::string(line, std::strcspn(line, "\n"));
}

Finding mpirun() {
  const std::string version = first_line_of("mpirun --version 2>/dev/null");
  if (version.empty())
    return {"mpirun", "not found", false, "install OpenMPI (openmpi-bin), or train with one rank: plimsoll train"};
  const bool open = version.find("Open MPI") != std::string::npos;
  return {"mpirun", version, open, "the program is built against OpenMPI: put OpenMPI's mpirun first in PATH"};
}

Finding gpu() {
  const GpuReport report = ask_gpus();
  if (!report.problem.empty()) return {"gpu", report.problem, true, ""};
  std::string value = "driver " + report.driver;
  for (const Gpu& gpu : report.gpus) {
    value += fmt::format("; {} ({} free of {})", gpu.name, format_bytes(gpu.free), format_bytes(gpu.total));
  }
  return {"gpu", value, true, ""};
}

std::string dotted(unsigned version) {
  return fmt::format("{}.{}.{}", version >> 16, version >> 8 & 0xFF, version & 0xFF);
}

Finding ffmpeg() {
  // A decoder that is missing here shows as a video that cannot be read, hours later.
  std::string missing;
  for (const char* name : {"h264", "png", "mjpeg"}) {
    if (avcodec_find_decoder_by_name(name) == nullptr) missing += std::string(" ") + name;
  }
  return {"ffmpeg",
          fmt::format("{} (avformat {}, avcodec {}, avutil {}, swscale {}){}{}", av_version_info(),
                      dotted(avformat_version()), dotted(avcodec_version()), dotted(avutil_version()),
                      dotted(swscale_version()), missing.empty() ? "" : ", without", missing),
          missing.empty(), "install FFmpeg's libraries with these decoders"};
}

std::filesystem::path nearest_existing(std::filesystem::path path) {
  std::error_code ignored;
  path = std::filesystem::absolute(path, ignored);
  while (!std::filesystem::exists(path, ignored) && path.has_relative_path()) path = path.parent_path();
  return path;
}

Finding disk(const std::filesystem::path& run_dir) {
  const std::filesystem::path folder = nearest_existing(run_dir);
  struct statvfs status {};
  if (::statvfs(folder.c_str(), &status) != 0) {
    return {"disk", fmt::format("{}: {}", folder.string(), std::strerror(errno)), false, "choose another run.dir"};
  }
  const auto free = static_cast<std::int64_t>(status.f_bavail * status.f_frsize);
  const bool writable = ::access(folder.c_str(), W_OK) == 0;
  return {"disk", fmt::format("{} free in {}{}", format_bytes(free), folder.string(), writable ? "" : ", not writable"),
          writable && free >= kLittleDisk, "choose another run.dir, or free space there: a checkpoint needs it"};
}

std::string limit_text(rlim_t limit) { return limit == RLIM_INFINITY ? "unlimited" : std::to_string(limit); }

Finding limits() {
  rlimit files{}, locked{}, processes{};
  ::getrlimit(RLIMIT_NOFILE, &files);
  ::getrlimit(RLIMIT_MEMLOCK, &locked);
  ::getrlimit(RLIMIT_NPROC, &processes);
  return {"limits",
          fmt::format("open files {}, processes {}, locked memory {}", limit_text(files.rlim_cur),
                      limit_text(processes.rlim_cur), limit_text(locked.rlim_cur)),
          files.rlim_cur >= kFewFiles, "raise it: ulimit -n 1024"};
}

}  // namespace

std::vector<Finding> examine(const std::filesystem::path& run_dir) {
  return {
      {"plimsoll", kVersion, true, ""},
      cores(),
      main_memory(),
      gpu(),
      {"libtorch", fmt::format("{}.{}.{}", TORCH_VERSION_MAJOR, TORCH_VERSION_MINOR, TORCH_VERSION_PATCH), true, ""},
      mpirun(),
      ffmpeg(),
      disk(run_dir),
      limits()};
}

std::string findings_as_text(const std::vector<Finding>& findings) {
  std::string text;
  for (const Finding& finding : findings) {
    text += fmt::format("{:<4} {:<9} {}\n", finding.ok ? "ok" : "BAD", finding.name, finding.value);
    if (!finding.ok) text += fmt::format("     {:<9} -> {}\n", "", finding.advice);
  }
  return text;
}

std::string findings_as_json(const std::vector<Finding>& findings) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  bool ok = true;
  for (const Finding& finding : findings) {
    list.push_back({{"name", finding.name},
                    {"value", finding.value},
                    {"ok", finding.ok},
                    {"advice", finding.ok ? "" : finding.advice}});
    ok = ok && finding.ok;
  }
  return nlohmann::ordered_json{{"ok", ok}, {"findings", list}}.dump(2, ' ', false,
                                                                     nlohmann::json::error_handler_t::replace) +
         "\n";
}

}  // namespace plimsoll
