#pragma once
// How a rank runs its share of one step. A plan is judged on the heaviest micro-batch that any rank will draw in the
// whole run, and most steps are lighter: each is run in the fastest way that its own samples leave room for, and the
// plan is what is left where none does. The ways differ in nothing but memory and time. Pure; any thread.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "memory/planning/candidates.h"

namespace plimsoll::memory {

/// The candidates that are worth trying in a step: fastest first, each judged on fewer bytes than all before it. Of the
/// largest pictures' only; `microseconds` of the result is `time` of the plan, at least 1.
std::vector<Candidate> ways_of(std::span<const Candidate> candidates,
                               const std::function<std::int64_t(const Plan&)>& time);
/// Likewise; the time is that of the largest share cut as the plan says, by `costs`.
std::vector<Candidate> ways_of(std::span<const Candidate> candidates, const CostModel& costs, std::int64_t share);

/// What a step may use.
struct Fill {
  std::span<const Candidate> ways;  ///< ways_of(); none: the plan as it is
  std::int64_t bytes = 0;           ///< that a micro-batch may be predicted to need (see fill_bytes in predictive.h)
};

/// The first of fill.ways under which all micro-batches of the share fit: `fits(plan, places)`, in the order of
/// balanced_order, for samples of these weights. The plan itself where its turn comes before that, or where none fits.
/// Pictures are as the plan says.
Plan way_of_share(std::span<const std::int64_t> weights, const Plan& plan, const Fill& fill,
                  const std::function<bool(const Plan&, std::span<const std::size_t>)>& fits);

/// What one micro-batch of such a share runs under: nothing recomputed or offloaded, where some way allows that and
/// `fits_plain` says that it fits.
Plan way_of_micro_batch(const Plan& way, const Fill& fill, const std::function<bool(const Plan&)>& fits_plain);

/// For each of `steps` steps the time of the first of the ways that fits it; 0 where none does. `fits(step, plan)`,
/// steps from 0: whether all micro-batches of that step do.
std::vector<std::int64_t> fastest_microseconds(std::span<const Candidate> ways, std::size_t steps,
                                               const std::function<bool(std::size_t, const Plan&)>& fits);
/// Mean time of those steps under a plan that takes `own` microseconds as it is. That itself for no steps; at least 1.
std::int64_t mean_microseconds(std::span<const std::int64_t> fastest, std::int64_t own);

}  // namespace plimsoll::memory
