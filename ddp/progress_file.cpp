#include "ddp/progress_file.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "core/error.h"

namespace plimsoll::ddp {
namespace {

constexpr std::size_t kPhaseWords = 3;
constexpr std::size_t kPhaseBytes = kPhaseWords * sizeof(std::uint64_t);

std::int64_t now_ns() {
  timespec time{};
  clock_gettime(CLOCK_MONOTONIC, &time);
  return std::int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

/// Process ids mean the same to two ranks only within one pid namespace (containers have their own).
std::uint64_t pid_namespace() {
  struct stat status {};
  return stat("/proc/self/ns/pid", &status) == 0 ? static_cast<std::uint64_t>(status.st_ino) : 0;
}

/// The fields after the command name of /proc/<pid>/stat: state, ..., start time as the 20th. Empty when the process is
/// gone.
std::string process_status(std::int64_t pid) {
  std::ifstream file(fmt::format("/proc/{}/stat", pid));
  std::string line;
  std::getline(file, line);
  const std::size_t name_end = line.rfind(')');  // the name itself may hold spaces and brackets
  return name_end == std::string::npos || name_end + 2 >= line.size() ? "" : line.substr(name_end + 2);
}

/// When the process began, in clock ticks: tells a rank from a later process with the same number.
std::uint64_t start_time(const std::string& status) {
  std::size_t place = 0;
  for (int field = 0; field < 19 && place != std::string::npos; ++field) place = status.find(' ', place + 1);
  return place == std::string::npos ? 0 : std::strtoull(status.c_str() + place, nullptr, 10);
}

bool is_alive(std::int64_t pid, std::uint64_t started) {
  if (kill(static_cast<pid_t>(pid), 0) != 0 && errno == ESRCH) return false;
  const std::string status = process_status(pid);
  if (status.empty()) return kill(static_cast<pid_t>(pid), 0) == 0 || errno != ESRCH;  // no /proc to read: kill() knows
  return status.front() != 'Z' && status.front() != 'X' && start_time(status) == started;
}

[[noreturn]] void refuse(const char* doing, const std::string& path) {
  fail(ExitCode::kUsage, "cannot {} the progress file {}: {}; give a folder that all ranks of this node can write",
       doing, path, std::strerror(errno));
}

}  // namespace

struct alignas(128) ProgressFile::Record {
  std::atomic<std::int32_t> state;
  std::atomic<std::int32_t> exit_code;
  std::atomic<std::int64_t> pid;
  std::atomic<std::uint64_t> started;
  std::atomic<std::uint64_t> pid_space;
  std::atomic<std::int64_t> step;
  std::atomic<std::int64_t> collectives;
  std::atomic<std::int64_t> time_ns;
  std::array<std::atomic<std::uint64_t>, kPhaseWords> phase;
};

void ProgressFile::create(const std::string& path, int world) {
  std::error_code ignored;  // open() below says what is wrong
  std::filesystem::create_directories(std::filesystem::path(path).parent_path(), ignored);
  const std::string fresh = fmt::format("{}.{}", path, getpid());
  const int file = open(fresh.c_str(), O_CREAT | O_TRUNC | O_RDWR | O_CLOEXEC, 0600);
  if (file < 0) refuse("create", fresh);
  // The blocks must exist: writing to a hole on a full disk would end the process with SIGBUS.
  const int error = posix_fallocate(file, 0, static_cast<off_t>(static_cast<std::size_t>(world) * sizeof(Record)));
  close(file);
  if (error == 0 && rename(fresh.c_str(), path.c_str()) == 0) return;
  if (error != 0) errno = error;
  const int saved = errno;
  unlink(fresh.c_str());
  errno = saved;
  refuse("create", path);
}

ProgressFile::ProgressFile(const std::string& path, int rank, int world) : path_(path), rank_(rank), world_(world) {
  const int file = open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (file < 0) refuse("open", path);
  const std::size_t size = static_cast<std::size_t>(world) * sizeof(Record);
  struct stat status {};
  const bool fits = fstat(file, &status) == 0 && static_cast<std::size_t>(status.st_size) >= size;
  void* mapped = fits ? mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0) : MAP_FAILED;
  if (!fits) errno = EINVAL;
  const int saved = errno;
  close(file);
  errno = saved;
  if (mapped == MAP_FAILED) refuse("map", path);
  records_ = static_cast<Record*>(mapped);  // fresh blocks are zero, which is a record of kElsewhere
  own().pid = getpid();
  own().started = start_time(process_status(getpid()));
  own().pid_space = pid_namespace();
  own().step = -1;
  touch();
  own().state = static_cast<std::int32_t>(RankState::kRunning);
}

ProgressFile::~ProgressFile() { munmap(records_, static_cast<std::size_t>(world_) * sizeof(Record)); }

ProgressFile::Record& ProgressFile::own() const { return records_[rank_]; }

void ProgressFile::touch() const { own().time_ns.store(now_ns(), std::memory_order_relaxed); }

void ProgressFile::enter(std::int64_t step, const char* phase) {
  std::array<char, kPhaseBytes> text{};
  std::strncpy(text.data(), phase, kPhaseBytes - 1);
  std::array<std::uint64_t, kPhaseWords> words{};
  std::memcpy(words.data(), text.data(), kPhaseBytes);
  for (std::size_t i = 0; i < kPhaseWords; ++i) own().phase[i].store(words[i], std::memory_order_relaxed);
  own().step.store(step, std::memory_order_relaxed);
  touch();
}

void ProgressFile::begin_collective(std::int64_t number) {
  touch();
  own().collectives.store(number, std::memory_order_release);
}

void ProgressFile::finish() { own().state = static_cast<std::int32_t>(RankState::kFinished); }

void ProgressFile::leave(int exit_code) {
  own().exit_code = exit_code;
  own().state = static_cast<std::int32_t>(RankState::kLeaving);
}

RankView ProgressFile::look(int rank) const {
  const Record& record = records_[rank];
  RankView view;
  view.state = static_cast<RankState>(record.state.load());
  if (view.state == RankState::kElsewhere) return view;
  view.pid = record.pid;
  view.alive = record.pid_space != own().pid_space || is_alive(view.pid, record.started);
  view.step = record.step;
  view.collectives = record.collectives;
  view.exit_code = record.exit_code;
  view.seconds_ago = static_cast<double>(now_ns() - record.time_ns) * 1e-9;
  std::array<std::uint64_t, kPhaseWords> words{};
  for (std::size_t i = 0; i < kPhaseWords; ++i) words[i] = record.phase[i].load(std::memory_order_relaxed);
  std::array<char, kPhaseBytes + 1> text{};
  std::memcpy(text.data(), words.data(), kPhaseBytes);
  view.phase = text.data();
  return view;
}

bool ProgressFile::node_arrived(std::int64_t number) const {
  return std::all_of(records_, records_ + world_, [number](const Record& record) {
    const auto state = static_cast<RankState>(record.state.load(std::memory_order_relaxed));
    return state == RankState::kElsewhere || state == RankState::kFinished ||
           record.collectives.load(std::memory_order_acquire) >= number;
  });
}

}  // namespace plimsoll::ddp
