#pragma once
// The plan a run starts with: the largest micro-batch that a dry run says fits, judged on the heaviest samples there
// are.

#include <cstdint>
#include <functional>
#include <vector>

#include "core/sample.h"

namespace plimsoll::memory {

/// The `count` heaviest samples, heaviest first (by tokens + patches, then by tokens). Samples that are equally heavy
/// are interchangeable, so the result does not depend on their order.
std::vector<SampleShape> heaviest(std::vector<SampleShape> shapes, std::size_t count);

/// Largest n in [smallest, largest] with fits(n), or 0 if not even `smallest` fits. `fits` must be monotone: memory
/// grows with the micro-batch (and with nothing else reliably), so it is bisected.
int largest_micro_batch(int smallest, int largest, const std::function<bool(int)>& fits);

}  // namespace plimsoll::memory
