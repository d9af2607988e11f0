#include <c10/cuda/CUDACachingAllocator.h>

#include "train/cuda/flat_kernels.h"

namespace plimsoll::train {

c10::DataPtr flat_scratch(std::size_t bytes) { return c10::cuda::CUDACachingAllocator::get()->allocate(bytes); }

}  // namespace plimsoll::train
