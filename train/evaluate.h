#pragma once
// How good the policy is on episodes that it never saw: its sampled actions against the expert's.

#include <cstdint>

#include "train/session.h"

namespace plimsoll::train {

/// Errors per element of unpadded actions, in normalised units, over `samples` held-out samples of all ranks.
struct ActionError {
  std::int64_t samples = 0;
  double sampled = 0.0;        ///< root mean square of (sampled action - expert's action)
  double best_constant = 0.0;  ///< the same for the one action that is best on these very samples: their mean
  /// Half of their 95 % intervals over samples, taken as independent; 0 of fewer than two.
  double sampled_margin = 0.0, constant_margin = 0.0;
};

/// The `count` held-out samples that are measured on, spread evenly over all of them; fewer if there are fewer.
std::vector<std::int64_t> evaluated_samples(const data::SampleSource& source, std::int64_t count);

/// Measures on `count` held-out samples spread evenly over all of them (fewer if there are fewer), dealt over the
/// ranks, micro-batch by micro-batch under the guardian. Collective. All zeros when nothing is held out. Throws
/// Error(kMemory) when a single sample does not fit.
ActionError measure_action_error(Session& session, std::int64_t count);

}  // namespace plimsoll::train
