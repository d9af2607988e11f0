#pragma once
// Runs that do not happen: what the policies, which are the very ones of a training run, decide in a synthetic world or
// on a recorded trace. Pure, in whole numbers; any thread.

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "memory/planning/synthetic_world.h"
#include "memory/planning/trace.h"

namespace plimsoll::memory {

/// "fixed", "reactive", "predictive".
const char* policy_name(PolicyKind kind);

/// How a run went.
struct Outcome {
  std::string policy;
  std::int64_t steps = 0;         ///< concluded
  std::int64_t samples = 0;       ///< that went into updates which were not lost
  std::int64_t microseconds = 0;  ///< all that passed: replays, restarts and lost work too
  std::int64_t retries = 0;       ///< micro-batches that failed and were replayed smaller
  std::int64_t splits = 0;        ///< micro-batches made smaller before they were tried
  std::int64_t failures = 0;      ///< steps in which a single sample did not fit
  std::int64_t restarts = 0;      ///< of the process
  std::int64_t lost_samples = 0;  ///< computed and thrown away
  bool effective_batch_kept = true;
  bool finished = true;                 ///< all steps were made
  std::vector<std::int64_t> changes;    ///< steps after which the plan changed
  std::vector<std::int64_t> retried;    ///< steps with a retry
  std::vector<std::int64_t> unsettled;  ///< predictive: last steps of the windows after which the plan was not settled
  std::int64_t window = 25;             ///< steps
  std::int64_t settled = 0;             ///< the window in which the last change fell; 0: the first plan stayed
  Plan last;                            ///< plan at the end
  std::int64_t ranks = 1;
  /// Samples a 1000 seconds; 0 without time.
  std::int64_t rate() const;
};

/// Runs what makes one decision at a window's end: the place for a clock, which nothing in here has. May be empty.
using AroundDecision = std::function<void(const std::function<void()>& decide)>;

struct SimulationOptions {
  PolicyConfig config;  ///< `kind` says which policy
  /// Called for every decision, the baseline first. May be empty.
  std::function<void(const Decision&)> show;
  AroundDecision around = {};
};

/// Closed loop: the plan decides what is needed, and what is needed decides the plan. Throws Error(kMemory) when no
/// plan fits at the start.
Outcome simulate(const SyntheticWorld& world, const SimulationOptions& options);

struct ReplayOptions {
  PolicyConfig config;
  Plan first;
  std::int64_t share = 64;  ///< caps the micro-batch
  std::function<void(const Decision&)> show;
  AroundDecision around = {};
  PolicyState state = {};  ///< what the policy knows before the first step
};

/// Open loop: the peaks are what the trace says, whatever is decided, and an attempt that failed in the trace escalates
/// the plan. The predictive policy needs the trace's candidates; without them Error(kUsage). With the settings,
/// candidates, first plan and state of the run that left the trace, the decisions are the run's own.
Outcome replay(const Trace& trace, const ReplayOptions& options);

/// The trace of a scripted scenario.
Trace script_trace(const Scenario& scenario);

/// One line for people; one line of JSON.
std::string to_string(const Outcome& outcome);
std::string to_json(const Outcome& outcome);

}  // namespace plimsoll::memory
