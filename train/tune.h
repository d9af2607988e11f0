#pragma once
// Measures plans on this machine under emulated budgets. Behind `plimsoll tune`.

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "memory/planning/plan_table.h"
#include "train/config.h"

namespace plimsoll::train {

struct TuneOptions {
  std::int64_t steps = 8;       ///< timed steps of a plan, after one to warm up
  std::int64_t contenders = 3;  ///< plans measured per budget: the fastest by prediction that fit
  /// Micro-batches that people set by hand, with every language block recomputed: measured too where a dry run says
  /// that they are within the budget. No row of the table comes of them.
  struct ByHand {
    std::int64_t budget = 0, micro_batch = 1;
  };
  std::vector<ByHand> by_hand;
};

/// One plan as it was run.
struct MeasuredPlan {
  memory::TableRow row;
  bool ran_out = false;  ///< of memory: the row says what was tried
  bool by_hand = false;
  /// On a GPU, else 0: most bytes that the caching allocator held for it, and what its model says (Forecast::bytes).
  std::int64_t reserved = 0, predicted_reserved = 0;
  /// Most bytes live, and on a GPU what a dry run says: there the row's peaks are of reserved bytes.
  std::int64_t live = 0, predicted_live = 0;
};

/// Who is told of what happens on the way.
struct TuneWatch {
  std::function<void(std::int64_t budget)> begun;
  std::function<void(const MeasuredPlan&)> measured;
  std::function<void(std::int64_t budget, const std::string& why)> nothing_fits;
};

/// One row per budget: the fastest of the contenders by measurement, one rank alone. A budget in which nothing fits has
/// no row. Weights are trained for some steps and thrown away; nothing is written. Throws Error(kUsage) for a budget
/// that the device does not have.
memory::PlanTable tune(const Config& config, std::span<const std::int64_t> budgets, const TuneOptions& options,
                       const TuneWatch& watch);

}  // namespace plimsoll::train
