#pragma once
// Private to the CUDA library: its implementation of train/flat_kernels.h.

#include "train/flat_kernels.h"

namespace plimsoll::train {

/// For the current device. The first call allocates 8 KiB there.
const FlatKernels& cuda_flat_kernels();

}  // namespace plimsoll::train
