#pragma once
// Private to the CUDA library: its implementation of train/flat_kernels.h.

#include <c10/core/Allocator.h>

#include <cstddef>

#include "train/flat_kernels.h"

namespace plimsoll::train {

/// For the current device. The first call allocates 8 KiB there.
const FlatKernels& cuda_flat_kernels();

/// Memory of the current device for what a sum leaves to the host. By itself, so that the emulator of
/// tests/model/cuda_emulator/ can give the host's in its place.
c10::DataPtr flat_scratch(std::size_t bytes);

}  // namespace plimsoll::train
