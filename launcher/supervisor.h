#pragma once
// Runs a command (mpirun) until the run is done: restarts it from the last checkpoint when a rank was lost, and turns
// requests to stop into the one signal that mpirun hands on to its ranks without killing them.

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace plimsoll {

struct Supervision {
  std::vector<std::string> command;  ///< looked up in PATH
  std::filesystem::path run_dir;     ///< where exit.json and checkpoints/ are
  std::int64_t max_restarts = 10;
  double time_limit = 0.0;     ///< seconds until the run is asked to stop; 0: none
  double restart_pause = 1.0;  ///< seconds between the end of an attempt and the next start
  double resend_pause =
      2.0;  ///< seconds between two SIGUSR1 while a stop is awaited: ranks that start ignore it at first
  double kill_grace = 5.0;  ///< seconds from mpirun's SIGTERM to SIGKILL after a second request
};

/// Restarts in a row without a new checkpoint after which trying again is pointless.
inline constexpr int kFruitlessRestarts = 3;

/// Supervises until the end and returns the exit code: that of exit.json; the command's own where there is no exit.json
/// and that code means an error that a restart cannot heal (2, 3, 4, 6); or 5 when ranks were lost for good. A restart
/// runs `command` with `--resume` appended. SIGTERM, SIGINT, SIGHUP, SIGUSR1 and the time limit become SIGUSR1 to the
/// command, again and again until it ends; a second SIGINT or SIGTERM kills it. No process of an attempt outlives it.
/// One call at a time, from the main thread: it takes over these signals and the children of this process. Throws
/// Error(kUsage) when the command cannot be started.
int supervise(const Supervision& supervision);

/// Step of the newest complete checkpoint (`checkpoints/step-<N>` that holds `complete.json`), -1 when there is none.
std::int64_t newest_checkpoint(const std::filesystem::path& run_dir);

}  // namespace plimsoll
