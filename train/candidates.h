#pragma once
// What the predictive policy chooses from: plans, their bytes by dry run, their times by a few timed micro-batches.

#include <cstdint>
#include <vector>

#include "memory/planning/candidates.h"
#include "memory/planning/predictive.h"
#include "train/session.h"

namespace plimsoll::train {

/// Times micro-batches of a middling sample on every rank at once, as training will run them, and takes the slowest
/// rank's: a few sizes, then what recomputing and offloading add. Ends early when it has taken kMostMicroseconds.
/// Gradients are thrown away and nothing is updated. Collective: the same model on every rank. Needs the session's
/// model, buffers and predictor.
memory::CostModel measure_costs(Session& session);
inline constexpr std::int64_t kMostMicroseconds = 20'000'000;

/// Times the contenders, the fastest candidates of `table` that fit (of those that mean the same work one): the shares
/// that each rank draws in the first steps, filled as they will be, in turns. By successive halving (Jamieson and
/// Talwalkar, 2016): after every second round the faster half goes on, with twice as many steps, for kRounds rounds, no
/// longer than kMostMicroseconds, and no longer than a kLeastRun-th of the run. What is measured stands in the table
/// instead of what the model says, scaled by what the model says of the other steps; the other candidates are scaled by
/// what the contenders took beside what the model had said. Collective.
memory::CandidateTable time_contenders(Session& session, const memory::CandidateTable& table,
                                       const memory::ChoiceLimits& limits, const memory::PolicyState& known);
inline constexpr std::size_t kContenders = 8;
inline constexpr std::int64_t kFirstSteps = 2;
inline constexpr int kRounds = 6;
inline constexpr std::int64_t kContenderGap = 4000;  ///< 1/10000 that a contender may be slower than the fastest
inline constexpr std::int64_t kLeastRun = 30;

/// The plans that settings and knobs allow: useful micro-batches, by language blocks recomputed (quarters of many), by
/// the expert recomputed or not, the vision tower too where all else is, by offload; and where resolution is a knob the
/// leanest of these at each lower one.
std::vector<memory::Plan> allowed_plans(const Config& config, const model::VlaModel& model, std::int64_t share);

/// The table of `allowed_plans`, judged on the heaviest micro-batch that any rank will draw; made by rank 0 and sent to
/// all. Collective.
memory::CandidateTable make_candidates(Session& session);

}  // namespace plimsoll::train
