#pragma once
// What is still to be said to an MLflow server, on disk: `<run_dir>/mlflow.jsonl`, to which a run only ever appends,
// and
// `<run_dir>/mlflow.json`, the mark of how much of it a server has acknowledged. docs/formats.md describes both.
//
// A line is written before anything is sent. Whoever sends reads the file from the mark on, and moves the mark when the
// server has answered; after a crash between answer and mark the same is sent again, which servers store once
// (mlflow_messages.h). So the file is the queue, and what waits for a server costs disk, not memory.

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <string>

#include "report/line_file.h"
#include "report/mlflow_messages.h"

namespace plimsoll::report {

std::filesystem::path mlflow_spool_file(const std::filesystem::path& run_dir);    ///< mlflow.jsonl
std::filesystem::path mlflow_mark_file(const std::filesystem::path& run_dir);     ///< mlflow.json
std::filesystem::path mlflow_refused_file(const std::filesystem::path& run_dir);  ///< mlflow-refused.jsonl

/// What the last run in a spool has been told so far.
struct MlflowTold {
  bool begun = false;
  bool ended = false;  ///< its last status is not RUNNING
  std::int64_t last_step = 0;
  std::map<std::string, std::string> params, tags;
};

/// The writer. One per run folder, one thread. Errors are Error(kCheckpoint) that name the file.
class MlflowSpool {
 public:
  /// Opens or creates the file and cuts a last line that was torn by a crash; all others stay.
  explicit MlflowSpool(const std::filesystem::path& run_dir);

  /// Of what was there when the file was opened.
  const MlflowTold& told() const { return told_; }
  /// The line is with the kernel when this returns: a killed process loses none.
  void append(const std::string& line) { file_.append(line); }
  /// Waits until the disk has it all.
  void sync() { file_.sync(); }

 private:
  LineFile file_;
  MlflowTold told_;
};

/// Reads whole lines while another thread or process may append. Not thread-safe.
class MlflowSpoolReader {
 public:
  /// A file that is not there has no lines.
  explicit MlflowSpoolReader(const std::filesystem::path& run_dir) : path_(mlflow_spool_file(run_dir)) {}
  void seek(std::int64_t offset);
  std::int64_t offset() const { return offset_; }  ///< in bytes, behind the last line that was read
  /// The next line without its break; nothing where there is no whole one yet.
  std::optional<std::string> next();

 private:
  std::filesystem::path path_;
  std::ifstream stream_;
  std::int64_t offset_ = 0;
  bool placed_ = false;  ///< the stream stands at the offset
};

/// How much one server has acknowledged. Where the server is another, or the spool, nothing has been.
struct MlflowMark {
  std::string server;                 ///< its address
  std::string spool;                  ///< token of the spool's first run: another spool is another file
  std::int64_t acknowledged = 0;      ///< bytes of the spool
  std::int64_t refused = 0;           ///< entries the server would not take; they are in mlflow-refused.jsonl
  std::string experiment_id, run_id;  ///< of the run whose lines stand at `acknowledged`; "" before it is made
};
/// Nothing where there is none, or none that can be read.
std::optional<MlflowMark> read_mlflow_mark(const std::filesystem::path& run_dir);
/// Puts the spool on disk first, so that no mark ever points behind what a power cut leaves of it.
void write_mlflow_mark(const std::filesystem::path& run_dir, const MlflowMark& mark);

/// The right to send a run folder's spool: one process at a time has it. Given back at the end of the process or of
/// this object.
class MlflowSendRight {
 public:
  explicit MlflowSendRight(const std::filesystem::path& run_dir) : path_(mlflow_spool_file(run_dir)) {}
  ~MlflowSendRight();
  MlflowSendRight(const MlflowSendRight&) = delete;
  MlflowSendRight& operator=(const MlflowSendRight&) = delete;
  /// True once this object has it; asks again each time where it has not. False where there is no spool, too.
  bool take();

 private:
  std::filesystem::path path_;
  int descriptor_ = -1;
};

}  // namespace plimsoll::report
