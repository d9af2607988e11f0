#pragma once
// What lies beside a run's metrics.jsonl and says how that run decided, so that `simulate --trace` decides alike.

#include <filesystem>
#include <optional>
#include <string>

#include "launcher/options.h"
#include "memory/planning/simulation.h"

namespace plimsoll {

/// How a trace is to be followed.
struct TracePolicy {
  memory::PolicyConfig config;
  memory::PolicyState state;  ///< what the policy knew before the first step
  std::string said;           ///< whose policy, settings and candidates these are, for a person; empty: nobody's run
};

/// The policy for `trace`, which was read from `file`. For lines of a run: by config.toml in the same folder, with
/// candidates.json (put into `trace`) and policy.json where the policy is the predictive one. What is not there is said
/// so. --policy and --profile of `parsed` go before all that; a trace of no run has nothing else, and default settings.
/// Throws Error(kData) where the run's policy is the predictive one and its candidates are gone, or where a file is
/// damaged.
TracePolicy policy_of_trace(const cxxopts::ParseResult& parsed, const std::filesystem::path& file,
                            memory::Trace& trace);

/// --policy; `otherwise` where it was not given. Throws Error(kUsage).
memory::PolicyKind asked_policy(const cxxopts::ParseResult& parsed, memory::PolicyKind otherwise);
/// Whether --profile asks for the classic one; `otherwise` where it was not given. Throws Error(kUsage).
bool asked_classic(const cxxopts::ParseResult& parsed, bool otherwise);
/// The default settings of either profile.
memory::PolicyConfig default_policy(memory::PolicyKind kind, bool classic);

}  // namespace plimsoll
