#pragma once
// What rank 0 writes and shows: metrics.jsonl, decisions.jsonl, status and progress lines. On other ranks every call
// does nothing.
//
// Translates between rooms that do not know each other: reports (ddp) and plans and decisions (memory) become the plain
// records of report/. docs/formats.md describes the fields.

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "memory/planning/policy.h"
#include "report/console.h"
#include "report/json_lines.h"
#include "report/mlflow_log.h"
#include "report/records.h"
#include "train/session.h"
#include "train/step.h"

namespace plimsoll::train {

/// One step as the loop saw it. `wall_ms` is from asking for samples to the end of the update; it makes the samples/s
/// of the progress line, while `step_ms` in metrics.jsonl is the slowest rank's computing alone.
struct StepView {
  std::int64_t step = 0;
  memory::Plan plan;
  double learning_rate_factor = 1.0;
  const StepResult& result;
  double wall_ms = 0.0;
  std::span<const std::int64_t> counts;  ///< samples of each type
  const BalanceState& balance;           ///< by which they were weighed
};

/// One per rank; one thread. Refers to the session, which outlives it. Throws Error(kCheckpoint) when the disk refuses.
class RunLog {
 public:
  /// Opens the streams under config.run.dir and cuts what came after `resume_step`.
  RunLog(const Session& session, std::int64_t resume_step);

  /// A line on the console, above the progress line if there is one.
  void line(const std::string& text);
  /// The plan at start, as text and as the first status line. Not written to decisions.jsonl: it decides nothing.
  void baseline(const memory::Decision& decision);
  /// One line of metrics.jsonl and the progress line. Not to be called for a step that will be replayed.
  void step(const StepView& view);
  /// Gathers what the next decision's line shows of every rank, and of an attempt that failed what the step's line
  /// says of it. To be called for every reduction, replayed steps included, while the session's plan is the step's.
  void gather(const std::vector<ddp::Report>& reports);
  /// A decision of the policy or of an escalation, with the peaks and retries gathered since the one before.
  void decision(const memory::Decision& decision);
  /// What was decided about the feature cache ("rebuild", "rebuilt", "postponed"), and why: a line of decisions.jsonl.
  /// `drift`: millionths, -1 where it is not known.
  void cache_decision(std::int64_t step, const std::string& what, const std::string& reason, std::int64_t drift);
  /// What the feature cache did, and how far its features have moved: lines of cache.jsonl, and on the console.
  void cache_use(const report::CacheUseRecord& use);
  void drift(const report::DriftRecord& drift);
  /// Waits for the disk: before a checkpoint is declared complete.
  void sync();
  /// Tells the MLflow server, if there is one, how the run ended, and waits for what it still has to be sent, for
  /// report.mlflow_flush seconds at most. Last of all calls; a run that fails makes none.
  void finish(ExitCode code);

 private:
  report::PlanView view(const memory::Plan& plan) const;
  void add_tasks(const StepView& v, report::StepRecord& record) const;
  void status(const memory::Decision& decision, std::int64_t window);

  const Session& session_;
  bool active_;
  std::unique_ptr<report::JsonLines> metrics_, decisions_, cache_;  ///< cache_: only with a cache
  std::unique_ptr<report::MlflowLog> mlflow_;                       ///< only with report.mlflow_uri
  std::unique_ptr<report::Console> console_;
  std::int64_t windows_ = 0;
  std::vector<report::RankMemory> window_;              ///< since the last decision
  std::vector<report::FailedAttempt> failed_attempts_;  ///< at the step that is due
  double smooth_ms_ = 0.0;
};

}  // namespace plimsoll::train
