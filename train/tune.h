#pragma once
// Measures plans on this machine under emulated budgets. Behind `plimsoll tune`.

#include <functional>
#include <span>
#include <string>

#include "memory/planning/plan_table.h"
#include "train/config.h"

namespace plimsoll::train {

struct TuneOptions {
  std::int64_t steps = 8;       ///< timed steps of a plan, after one to warm up
  std::int64_t contenders = 3;  ///< plans measured per budget: the fastest by prediction that fit
};

/// One row per budget: the fastest of the contenders by measurement, one rank alone. A budget in which nothing fits has
/// no row; `say` is told of each step on the way. Weights are trained for some steps and thrown away; nothing is
/// written.
memory::PlanTable tune(const Config& config, std::span<const std::int64_t> budgets, const TuneOptions& options,
                       const std::function<void(const std::string&)>& say);

}  // namespace plimsoll::train
