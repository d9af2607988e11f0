#pragma once
// The reduction by NCCL, between GPUs of which no two ranks share one.

#include "ddp/device_communicator.h"

namespace plimsoll::ddp {

/// Connects the ranks' current GPUs; collective. `stream` is the cudaStream_t on which the ranks compute: a reduction
/// begins after what it was given before, and all_reduce_sum() returns when the sums are there. While it waits it
/// polls: NCCL's own errors, lost and late peers are Error(kPeer) after the NCCL communicator was aborted. Sums are
/// bit-equal on all ranks: NVLS, which need not be, is off unless NCCL_NVLS_ENABLE is set. All connections, and the
/// device memory that they need, are made here and not in the first reduction, unless NCCL_RUNTIME_CONNECT is set.
/// Throws Error(kUsage) when the NCCL that was loaded is older than the one this was built with.
std::unique_ptr<Communicator> make_nccl(Communicator& host, void* stream);

}  // namespace plimsoll::ddp
