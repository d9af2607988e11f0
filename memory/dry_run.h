#pragma once
// The predictor is the program: the model's own code runs on meta tensors, which have a shape and no data, and every
// allocation and free that it asks for is written down.

#include <cstdint>
#include <functional>

#include "memory/event.h"

namespace plimsoll::memory {

/// Makes every allocation on torch's meta device visible to dry_run. Call once per process; later calls do nothing.
void install_meta_allocator();

/// Runs `body` with all meta allocations of the calling thread written to a ledger, which is returned. `body` builds
/// and runs on the meta device only; what it leaves alive is live in the ledger. Exceptions pass through. Not nested.
Ledger dry_run(const std::function<void()>& body, bool keep_events = false);

/// Runs `body` on the CPU device with the budgeted allocator's events of the calling thread written down: what a dry
/// run of the same body must equal.
Ledger measured_run(const std::function<void()>& body, bool keep_events = false);

}  // namespace plimsoll::memory
