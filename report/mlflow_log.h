#pragma once
// A run's side of MLflow: what happens is written into the spool of its folder (mlflow_spool.h), from where a thread
// sends it (mlflow_sender.h).

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <string>

#include "core/error.h"
#include "report/mlflow_sender.h"
#include "report/mlflow_spool.h"
#include "report/records.h"

namespace plimsoll::report {

struct MlflowOptions {
  std::filesystem::path run_dir;  ///< exists; its name is the run's name on the server
  std::string uri;                ///< as of checked_server_address()
  std::string experiment;
  std::string configuration;  ///< TOML: each key becomes a param
  /// Goes on with the run that the spool holds, if it holds one: true where a checkpoint was read, and for a restart.
  /// Otherwise a new one begins, behind what may still wait of an earlier one.
  bool resumed = false;
  std::chrono::milliseconds flush{5000};  ///< finish() may take so long
  MlflowTimes times;
};

/// One thread. Errors of the disk are Error(kCheckpoint), as for the other streams; those of the network are only
/// warnings, and never hold the caller.
///
/// A step that the spool already holds is not written again: a resumed run repeats the steps after its checkpoint, and
/// what decides what they learn is the same. A setting that a resumed run has changed cannot replace the param (servers
/// refuse that); its new value is the tag "resumed.<key>".
class MlflowLog {
 public:
  explicit MlflowLog(const MlflowOptions& options);
  /// Without finish() before it the run is told to have failed, and gets a second at most.
  ~MlflowLog();
  MlflowLog(const MlflowLog&) = delete;
  MlflowLog& operator=(const MlflowLog&) = delete;

  void step(const StepRecord& record);
  /// Waits for the disk, not for the network: before a checkpoint is declared complete.
  void sync();
  /// The recommended loader setting if there is one (<run_dir>/loader.toml: tags "recommended.<key>", and the text as
  /// tag "loader.toml"), the status (kDone: FINISHED, kStopped: KILLED, others: FAILED), and up to `flush` for what is
  /// left to send. What is not sent then stays in the spool. Call once, last.
  void finish(ExitCode code);

 private:
  void begin();
  void go_on();
  void loader_setting();
  void append(const std::string& line);
  void end(const std::string& status, std::chrono::milliseconds limit);

  const MlflowOptions options_;
  MlflowSpool spool_;
  std::int64_t last_step_ = 0;
  bool finished_ = false;
  MlflowSender sender_;
};

}  // namespace plimsoll::report
