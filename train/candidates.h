#pragma once
// What the predictive policy chooses from: plans, their bytes by dry run, their times by the cost model (costs.h).

#include <cstdint>
#include <vector>

#include "memory/planning/candidates.h"
#include "train/session.h"

namespace plimsoll::train {

/// The plans that settings and knobs allow: useful micro-batches, by language blocks recomputed (quarters of many), by
/// the expert recomputed or not, the vision tower too where all else is, by offload; and where resolution is a knob the
/// leanest of these at each lower one. All micro-batches also where it may not move later: it is chosen at the start.
std::vector<memory::Plan> allowed_plans(const Config& config, const model::VlaModel& model, std::int64_t share);

/// The table of `allowed_plans`, judged on the heaviest micro-batch that any rank will draw; made by rank 0 and sent to
/// all. Collective.
memory::CandidateTable make_candidates(Session& session);

}  // namespace plimsoll::train
