#pragma once
// One rank of a run, from configuration to exit code.

#include <functional>
#include <string>

#include "core/error.h"
#include "train/build_cache.h"
#include "train/config.h"

namespace plimsoll::train {

struct RunOptions {
  bool resume = false;     ///< go on from the newest checkpoint of run.dir, if there is one
  bool plan_only = false;  ///< print the plan and its predicted breakdown, train nothing
  /// Make the features that are missing in the cache, train nothing, and hand over what came of it (rank 0 only).
  std::function<void(const BuiltCache&)> build_cache;
};

/// Trains as `config` says, alone or as one rank under mpirun or srun. Prints the plan first; leaves checkpoints,
/// metrics and, on rank 0 and last of all, exit.json in run.dir. Errors of one rank end all ranks; of a lost peer or a
/// GPU that failed (code 5) there is no exit.json, since another attempt can go on from the checkpoint. Returns the
/// exit code; throws Error only before there are peers.
ExitCode run(const Config& config, const RunOptions& options);

}  // namespace plimsoll::train
