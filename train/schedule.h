#pragma once
// Learning rate over the steps of a run.

#include <cstdint>

namespace plimsoll::train {

/// Factor in [0, 1] for `step` (0 = the first): rises linearly over `warmup_steps`, then falls along half a cosine to 0
/// at `total_steps` (Loshchilov and Hutter, "SGDR", eq. 5 without restarts). A function of the step alone: resuming
/// needs no state.
double learning_rate_factor(std::int64_t step, std::int64_t warmup_steps, std::int64_t total_steps);

}  // namespace plimsoll::train
