#pragma once
// A run's streams, read back: what metrics.jsonl, decisions.jsonl, cache.jsonl, exit.json and config.toml of a run
// folder say (docs/formats.md). Reads only; a run may be writing to them meanwhile.
//
// A field that a line does not have (an older or a newer program wrote it), or that is null (a number that was not
// finite), is absent here; fields that are not known are passed over. Bytes are bytes, times milliseconds.

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "report/exit_file.h"
#include "report/records.h"

namespace plimsoll::report {

/// What a step says of one task.
struct TaskOfStep {
  std::string name;
  std::optional<double> loss;         ///< mean over the task's samples of the step; task_losses
  std::optional<std::int64_t> count;  ///< those samples; task_counts
  TaskMemory memory{};                ///< zeros where nothing was compared; task_memory
};

/// A line of metrics.jsonl.
struct StepLine {
  std::int64_t step = 0;
  std::optional<double> epoch;  ///< passes over the data after this step
  std::optional<double> loss, grad_norm, lr, vl_lr, step_ms, load_ms;
  std::vector<TaskOfStep> tasks;  ///< in the order of the line
  std::optional<std::int64_t> samples, first_sample, micro_batches;
  bool skipped = false;
  std::vector<RankMemory> ranks;  ///< 0 for what is absent
  std::int64_t attempt = 1;
};

struct RunStreams {
  std::filesystem::path folder;
  std::vector<StepLine> steps;             ///< their steps grow
  std::vector<DecisionRecord> decisions;   ///< defaults for what is absent
  std::vector<CacheRecord> cache_changes;  ///< the lines about the feature cache among the decisions
  std::vector<CacheUseRecord> cache_use;
  std::vector<DriftRecord> drift;
  std::optional<ExitRecord>
      exit;  ///< of the attempt that wrote the last step; none while it runs or when it was killed
  std::vector<std::pair<std::string, std::string>> configuration;  ///< "batch.effective", its value as TOML; a few keys
  std::int64_t torn_lines = 0;     ///< last lines without an end: in the writing, or of a run that was killed
  std::vector<std::string> notes;  ///< what was left out, and why, for a person
};

/// Throws Error(kData) naming the file, and the line where there is one: a folder or a metrics.jsonl that is not there,
/// a line that is no JSON object with an integer "step", a field of another type, steps that do not grow. What else is
/// missing is said in the notes.
RunStreams read_run(const std::filesystem::path& folder);

}  // namespace plimsoll::report
