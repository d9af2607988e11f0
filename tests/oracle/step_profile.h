#pragma once
// Where a step's time goes, by libtorch's own profiler: it is in the CPU's library, and asks CUPTI where there is a
// GPU.

#include <c10/core/Device.h>

#include <functional>
#include <nlohmann/json.hpp>

#include "tests/oracle/counted_kernels.h"

namespace plimsoll::model {

/// What `steps` calls of `step`, which waits for the device, do with their time, after as many without the profiler.
/// Figures are of one step, times in microseconds:
///   "wall_us" without the profiler, "profiled_us" under it; "operators": name, calls, parts, us, flops, bytes
///   (`kernels` counts them; on a GPU `us` is of the kernels that a call launches, else of the call); on a GPU
///   "kernels": name, calls, us, longest first, copies among them; "span_us" from the first kernel's begin to the last
///   one's end, "busy_us" of that in which at least one ran, "gaps" and "longest_gap_us" of the rest, "outside_us" of
///   kernels that no operator launched.
/// `kernels` is registered for `device`. Call it on the thread that trains.
nlohmann::json profile_steps(const std::function<void()>& step, int steps, c10::Device device, CountedKernels& kernels);

}  // namespace plimsoll::model
