#pragma once
// exit.json: how an attempt of a run ended. Rank 0 writes it as the last thing it does, or the rank whose error ends
// the run; `launch` takes its own exit code from it, and takes its absence as the loss of a rank.

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "core/error.h"

namespace plimsoll::report {

/// {"exit_code": 0, "reason": "done", "step": 400, "checkpoint": "runs/a/checkpoints/step-400", "attempt": 1}
struct ExitRecord {
  ExitCode exit_code = ExitCode::kDone;
  std::string reason;                     ///< for a person: "done", "stopped on request", or the error's text
  std::int64_t step = 0;                  ///< steps completed
  std::optional<std::string> checkpoint;  ///< newest complete one; null in the file when there is none
  std::int64_t attempt = 1;               ///< 1, and one more with every restart
};

/// `<run_dir>/exit.json`.
std::filesystem::path exit_file(const std::filesystem::path& run_dir);
/// Writes it durably. Throws Error(kCheckpoint) where the disk refuses.
void write_exit_record(const std::filesystem::path& run_dir, const ExitRecord& record);
/// Nothing when there is no such file, or one that this program cannot have written whole.
std::optional<ExitRecord> read_exit_record(const std::filesystem::path& run_dir);
/// Removes what an earlier attempt left.
void remove_exit_record(const std::filesystem::path& run_dir);
/// This attempt's number: what `launch` tells its ranks in PLIMSOLL_ATTEMPT, else 1.
std::int64_t attempt_number();

}  // namespace plimsoll::report
