#pragma once
// Recorded peaks, to drive a policy with: JSON lines, one object a step, either as a run leaves them in metrics.jsonl
// or short ones that a person writes. Pure: text in, steps out; any thread.
//
// A line of metrics.jsonl: "memory" is a list with an object a rank: "peak", "budget", and if they are there
// "predicted", "retries", "allocator_retries", "failed_request", "failed", "other_way", "other_recompute" (those
// from "allocator_retries" on are 0 or false where an older run left them out); "step", "step_ms", "samples", "plan"
// and "failed_attempts" are read when present, all else is passed over.
//
// A short line: "peaks" is a list with a number a rank. At most 2: a fraction of the rank's budget (0.85, 1.02). Above
// 2: bytes, whole. "budgets" (bytes, a number a rank) may be left out: then those of the line before hold, and on the
// first line 10 GB each, which only fractions may go with. "retries", "predicted" (bytes, a number a rank), "step",
// "step_ms", "samples" and "plan" may be added.
//
// The first line may be {"candidates": [...]} instead: the plans that the predictive policy may choose from, each with
// "micro_batch", "bytes", "microseconds", and if they differ from 0 "recompute_blocks", "recompute_vision",
// "recompute_expert", "offload", "resolution".

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "memory/planning/candidates.h"
#include "memory/planning/policy.h"

namespace plimsoll::memory {

/// An attempt at a step that was replayed whole, since a single sample did not fit; some rank failed.
struct TraceAttempt {
  Plan plan;
  std::vector<RankUsage> ranks;  ///< as many as in a step
};

struct TraceStep {
  std::int64_t step = 0;             ///< ascending
  std::vector<RankUsage> ranks;      ///< as many in every step
  std::int64_t step_ms = 0;          ///< 0: not in the trace
  std::int64_t samples = 0;          ///< effective batch; 0: not in the trace
  std::optional<Plan> plan;          ///< what the recorded run used
  std::vector<TraceAttempt> failed;  ///< before the attempt that went well
};

struct Trace {
  std::vector<TraceStep> steps;       ///< never empty
  std::vector<Candidate> candidates;  ///< empty: the trace has none
  bool of_run = false;                ///< its lines are those of a run's metrics.jsonl
};

/// Reads a whole trace. `file` names it in errors. `ranks`: as many as each line must have; 0: as many as the first
/// one. Error(kData) with file, line, what is wrong and what to write instead: text that is no JSON object, ranks that
/// are missing, peaks that are null, NaN, negative or no bytes, budgets below one byte, steps that go backwards, no
/// step at all.
Trace read_trace(std::string_view text, std::string_view file, int ranks = 0);

/// What a run left as candidates.json: a trace's first line alone. Error(kData) as above, and where there are none.
std::vector<Candidate> read_candidates(std::string_view text, std::string_view file);

}  // namespace plimsoll::memory
