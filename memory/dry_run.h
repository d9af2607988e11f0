#pragma once
// The predictor is the program: the model's own code runs on meta tensors, which have a shape and no data, and every
// allocation and free that it asks for is written down.

#include <cstdint>
#include <functional>

#include "memory/event.h"

namespace plimsoll::memory {

/// How the allocator of the device that a dry run stands for counts.
struct CountingRules {
  std::int64_t smallest = kSmallestCounted;  ///< smaller requests are not counted
  std::int64_t granule = 1;                  ///< requests are rounded up to multiples of it
  bool scratch = false;                      ///< library scratch comes from it too, instead of from an arena
};
/// PyTorch's caching allocator on a GPU, but for what it leaves unsplit of large blocks, up to 1 MiB of each
/// (memory/planning/caching_allocator.h knows them).
inline constexpr CountingRules kCudaCounting{1, 512, true};

/// For all dry runs from now on; the CPU's rules hold unless it is called. Not while one runs.
void count_as(const CountingRules& rules);

/// Makes every allocation on torch's meta device visible to dry_run. Call once per process; later calls do nothing.
void install_meta_allocator();

/// Runs `body` with all meta allocations of the calling thread written to a ledger, which is returned. `body` builds
/// and runs on the meta device only; what it leaves alive is live in the ledger. Exceptions pass through. Not nested.
Ledger dry_run(const std::function<void()>& body, bool keep_events = false);

/// Runs `body` on the CPU device with the budgeted allocator's events of the calling thread written down: what a dry
/// run of the same body must equal.
Ledger measured_run(const std::function<void()>& body, bool keep_events = false);

}  // namespace plimsoll::memory
