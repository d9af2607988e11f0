#pragma once
// The GPU that the cases run on (on_a_gpu.cpp).

#include "train/device.h"

namespace plimsoll::model {

/// Only after main() has opened it.
const train::Device& gpu();

}  // namespace plimsoll::model
