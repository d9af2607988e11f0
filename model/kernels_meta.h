#pragma once
// The kernels of a dry run.

#include "model/kernels.h"

namespace plimsoll::model {

/// For meta tensors; lives as long as the program.
const Kernels& meta_kernels();

}  // namespace plimsoll::model
