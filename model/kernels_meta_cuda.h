#pragma once
// A GPU's kernels in a dry run.

#include "model/kernels.h"

namespace plimsoll::model {

/// For meta tensors that stand for a GPU's: makes and frees what the kernels of model/cuda/ take from the caching
/// allocator while they work, in their order, inside a LibraryScratch, and fills nothing. What cuBLAS keeps for good is
/// not among it. Flash attention's is that of libtorch 2.11 (aten/src/ATen/native/transformers/cuda/flash_attn/
/// flash_api.cpp: mha_varlen_fwd and mha_varlen_bwd, deterministic), on a device of 132 multiprocessors. Lives as long
/// as the program.
const Kernels& cuda_meta_kernels();

}  // namespace plimsoll::model
