#include "report/gnuplot.h"

#include <fmt/format.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <string_view>
#include <thread>

#include "report/shown_text.h"

namespace plimsoll::report {
namespace {

/// An unnamed file in memory. Unlike a pipe it is never full and never waited for, so that a child that hangs cannot
/// make this process hang.
class MemoryFile {
 public:
  explicit MemoryFile(std::string_view content = {}) : descriptor_(::memfd_create("gnuplot", MFD_CLOEXEC)) {
    while (!content.empty()) {
      const ssize_t n = ::write(descriptor_, content.data(), content.size());
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return;  // the script is cut, and gnuplot will say so
      content.remove_prefix(static_cast<std::size_t>(n));
    }
    ::lseek(descriptor_, 0, SEEK_SET);
  }
  ~MemoryFile() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;

  int descriptor() const { return descriptor_; }
  /// All that is in it.
  std::string content() const {
    std::string bytes;
    char block[65536];
    for (;;) {
      const ssize_t n = ::pread(descriptor_, block, sizeof block, static_cast<off_t>(bytes.size()));
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) return bytes;
      bytes.append(block, static_cast<std::size_t>(n));
    }
  }

 private:
  int descriptor_;
};

/// How the child is to begin: its three streams, a process group of its own (so that it can be killed with what it
/// started), no blocked signals.
class SpawnRules {
 public:
  SpawnRules(const MemoryFile& in, const MemoryFile& out, const MemoryFile& errors) {
    ::posix_spawn_file_actions_init(&actions);
    ::posix_spawn_file_actions_adddup2(&actions, in.descriptor(), STDIN_FILENO);
    ::posix_spawn_file_actions_adddup2(&actions, out.descriptor(), STDOUT_FILENO);
    ::posix_spawn_file_actions_adddup2(&actions, errors.descriptor(), STDERR_FILENO);
    sigset_t none;
    ::sigemptyset(&none);
    ::posix_spawnattr_init(&attributes);
    ::posix_spawnattr_setpgroup(&attributes, 0);
    ::posix_spawnattr_setsigmask(&attributes, &none);
    ::posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK);
  }
  ~SpawnRules() {
    ::posix_spawn_file_actions_destroy(&actions);
    ::posix_spawnattr_destroy(&attributes);
  }
  SpawnRules(const SpawnRules&) = delete;
  SpawnRules& operator=(const SpawnRules&) = delete;

  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attributes;
};

/// Whether it ended by itself within `limit`; killed otherwise. Asks now and then: SIGCHLD belongs to the program.
bool ends_within(std::chrono::milliseconds limit, pid_t child, int& status) {
  const auto deadline = std::chrono::steady_clock::now() + limit;
  for (;;) {
    const pid_t ended = ::waitpid(child, &status, WNOHANG);
    // ECHILD: somebody else has waited for it, or nobody may. What it wrote tells.
    if (ended == child || (ended < 0 && errno != EINTR)) return true;
    if (std::chrono::steady_clock::now() >= deadline) break;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  ::kill(-child, SIGKILL);
  ::waitpid(child, &status, 0);
  return false;
}

std::string first_words(const std::string& text) {
  const std::size_t begin = text.find_first_not_of(" \n\t");
  if (begin == std::string::npos) return "it said nothing";
  const std::size_t end = text.find_last_not_of(" \n\t") + 1;
  return on_one_line(std::string_view(text).substr(begin, end - begin), 200);
}

}  // namespace

Drawing draw(const std::string& script, std::chrono::milliseconds limit) {
  const MemoryFile in(script), out, errors;
  const SpawnRules rules(in, out, errors);
  char name[] = "gnuplot", option[] = "--default-settings";
  char* const arguments[] = {name, option, nullptr};
  pid_t child = -1;
  const int error = ::posix_spawnp(&child, name, &rules.actions, &rules.attributes, arguments, environ);
  if (error == ENOENT) return {"", "no plots: gnuplot is not installed (Debian's gnuplot-nox)"};
  if (error != 0) return {"", fmt::format("no plots: gnuplot cannot be started: {}", std::strerror(error))};
  int status = 0;
  if (!ends_within(limit, child, status))
    return {"", fmt::format("no plot: gnuplot did not end within {} s and was killed",
                            std::chrono::duration<double>(limit).count())};
  std::string png = out.content();
  const bool drawn = png.starts_with("\x89PNG\r\n\x1a\n");
  if (drawn && WIFEXITED(status) && WEXITSTATUS(status) == 0) return {std::move(png), ""};
  return {"", fmt::format("no plot: gnuplot failed: {}", first_words(errors.content()))};
}

}  // namespace plimsoll::report
