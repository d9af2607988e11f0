#pragma once
// The plan a run starts with: the largest micro-batch that a dry run says fits, judged on the heaviest samples there
// are.

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "core/sample.h"

namespace plimsoll::memory {

/// `count` shapes, heaviest first, of which the first n bound any n samples: the i-th has the i-th most tokens and the
/// i-th most patches, which need not be of one sample. A sample counts `times` times: as often as it can be drawn
/// together with itself. Fewer where there are fewer samples.
std::vector<SampleShape> heaviest(std::span<const SampleShape> shapes, std::size_t count, std::size_t times = 1);

/// Largest n in [smallest, largest] with fits(n), or 0 if not even `smallest` fits. `fits` must be monotone: memory
/// grows with the micro-batch (and with nothing else reliably), so it is bisected.
int largest_micro_batch(int smallest, int largest, const std::function<bool(int)>& fits);

}  // namespace plimsoll::memory
