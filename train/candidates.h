#pragma once
// What the predictive policy chooses from: plans, their bytes by dry run, their times by a few timed micro-batches.

#include <cstdint>
#include <vector>

#include "memory/planning/candidates.h"
#include "memory/planning/predictive.h"
#include "train/session.h"

namespace plimsoll::train {

/// Times micro-batches of a middling sample on every rank at once, as training will run them, and takes the slowest
/// rank's: a few sizes, then what recomputing and offloading add. Ends early when it has taken kMostSeconds. Gradients
/// are thrown away and nothing is updated. Collective: the same model on every rank. Needs the session's model, buffers
/// and predictor.
memory::CostModel measure_costs(Session& session);
inline constexpr double kMostSeconds = 20.0;

/// Times the contenders, the fastest candidates of `table` that fit: the share that each rank draws in the first step,
/// filled as it will be, in turns, kRounds times after one to warm up, and no longer than kMostSeconds. What is
/// measured stands in the table instead of what the model says, scaled by what the model says of the other steps; the
/// other candidates are scaled by what the contenders took beside what the model had said. Collective.
memory::CandidateTable time_contenders(Session& session, const memory::CandidateTable& table,
                                       const memory::ChoiceLimits& limits, const memory::PolicyState& known);
inline constexpr std::size_t kContenders = 4;
inline constexpr int kRounds = 5;
inline constexpr std::int64_t kContenderGap = 1500;  ///< 1/10000 that a contender may be slower than the fastest

/// The plans that settings and knobs allow: useful micro-batches by recompute, and where every language block is
/// recomputed offload and the other towers too; and where resolution is a knob the leanest of these at each lower one.
std::vector<memory::Plan> allowed_plans(const Config& config, const model::VlaModel& model, std::int64_t share);

/// The table of `allowed_plans`, judged on the heaviest micro-batch that any rank will draw; made by rank 0 and sent to
/// all. Collective.
memory::CandidateTable make_candidates(Session& session);

}  // namespace plimsoll::train
