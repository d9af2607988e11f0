#pragma once
// The order in which a rank works off its share, so that no micro-batch is much heavier than the others. Pure; any
// thread.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <vector>

#include "core/sample.h"

namespace plimsoll::memory {

/// What a sample counts when a share is balanced.
inline std::int64_t weight_of(const SampleShape& shape) { return shape.tokens + shape.patches; }

/// The order in which to take the samples of a share with these weights (not negative; any unit), when it is cut into
/// consecutive micro-batches of `micro_batch` samples and a rest: result[i] is the place in the share of the i-th
/// sample to run. The heaviest samples are dealt out first, each to the lightest micro-batch that is not full (longest
/// processing time first: R. L. Graham, Bounds on Multiprocessing Timing Anomalies, 1969). Within a micro-batch samples
/// keep their order; a share whose heaviest micro-batch would not become lighter keeps it altogether. Equal on every
/// rank and in every replay: it depends on nothing but its arguments.
std::vector<std::size_t> balanced_order(std::span<const std::int64_t> weights, std::size_t micro_batch);

/// The largest sum of one value over each of those micro-batches; `order` is balanced_order's.
std::int64_t heaviest_micro_batch(std::span<const std::int64_t> values, std::span<const std::size_t> order,
                                  std::size_t micro_batch);

/// How far a step may go beyond its plan's micro-batch. A plan is judged on the heaviest micro-batch that any rank will
/// draw in the whole run; most steps are lighter, and few plans fill a budget to the byte.
struct Fill {
  int most = 0;            ///< samples of a micro-batch; 0: as many as the plan says
  std::int64_t bytes = 0;  ///< that every one of them may be predicted to need (see fill_bytes in predictive.h)
};

/// The largest of useful_micro_batches(share, 1, most) up to which `fits` says yes to every micro-batch of the share,
/// each given as places in it: each is tried that makes fewer of them than `least` does, the smallest first. `least`
/// (or the whole share, if that is smaller) when the first does not fit already, and unasked. Weights as for
/// balanced_order.
std::size_t filled_micro_batch(std::span<const std::int64_t> weights, int least, int most,
                               const std::function<bool(std::span<const std::size_t>)>& fits);

/// From how many samples on, and up to how many, the micro-batches of a share are filled.
struct FillRange {
  std::int64_t share = 1;
  int least = 1, most = 0;
};

/// {size: steps}: into micro-batches of what size the steps of a run fall when each is filled as filled_micro_batch
/// does it. `fits(step, size)`, steps from 0: whether all of that step's micro-batches of that size may be. {least: 1}
/// when nothing is filled.
std::map<int, std::int64_t> filled_sizes(const FillRange& range, std::size_t steps,
                                         const std::function<bool(std::size_t, int)>& fits);

}  // namespace plimsoll::memory
