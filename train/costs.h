#pragma once
// What a micro-batch takes on this machine: the cost model behind the candidates' times.

#include "memory/planning/candidates.h"
#include "train/session.h"

namespace plimsoll::train {

/// Times micro-batches of `sample` (a middling one) on every rank at once, as training will run them, and takes the
/// slowest rank's: a few sizes, then what recomputing and offloading add. Ends early when it has taken a hundredth of
/// what the run will, or kMostMicroseconds; where that is not enough for two rounds, only the two smallest sizes are
/// timed, and what recomputing adds is taken to be as much more as there is to compute (model/work.h). Collective: the
/// same model on every rank. Needs the session's model, buffers and predictor.
memory::CostModel measure_costs(Session& session, std::int64_t sample);

}  // namespace plimsoll::train
