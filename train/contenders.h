#pragma once
// The last word on the first plan: the fastest candidates are timed before the run begins.

#include "memory/planning/predictive.h"
#include "train/session.h"

namespace plimsoll::train {

/// Times the contenders, the fastest candidates of `table` that fit (of those that mean the same work one): the shares
/// that each rank draws in the first steps, filled as they will be, in turns. By successive halving (Jamieson and
/// Talwalkar, 2016): after every second round the faster half goes on, with twice as many steps, for kRounds rounds, no
/// longer than timing_allowance(). What is measured stands in the table instead of what the model says, scaled by what
/// the model says of the other steps; the other candidates are scaled by what the contenders took beside what the model
/// had said. Collective.
memory::CandidateTable time_contenders(Session& session, const memory::CandidateTable& table,
                                       const memory::ChoiceLimits& limits, const memory::PolicyState& known);
inline constexpr std::size_t kContenders = 8;
inline constexpr std::int64_t kFirstSteps = 2;
inline constexpr int kRounds = 6;
inline constexpr std::int64_t kContenderGap = 4000;  ///< 1/10000 that a contender may be slower than the fastest

}  // namespace plimsoll::train
