#pragma once
// Trading time for memory: a block that keeps only its input and runs again when its gradient is wanted.

#include <torch/torch.h>

#include <functional>
#include <memory>
#include <vector>

#include "model/host_copy.h"
#include "model/ops.h"

namespace plimsoll::model {

/// Runs block(x) without a graph and saves only x; in backward runs it again, with a graph, for the gradients of x and
/// of `trainable`, and frees that graph at once. Gradients equal those of block(x) itself, to the bit in fp32.
///
/// `trainable`: every tensor that requires a gradient and that the block reads besides x, leaf or not: they become
/// inputs of the node, and are themselves kept on the device. One left out gets no gradient, silently; and with none
/// given a block whose x requires no gradient would train nothing. `block` is kept until the gradient has been computed
/// or the graph dropped; what it captures must stay valid until then and must not change. It must be deterministic:
/// randomness only from keys (ops.h, Dropout).
///
/// `again`, if given, runs in backward in the place of `block`: the same graph and the same events, but the values of
/// its result may be anything, since no gradient reads them.
///
/// `on_host`, if given, keeps x in host memory (host_copy.h), and x's own memory is free once its maker, the caller and
/// the chain let go of it.
///
/// Works on CPU and meta with the same events. With grad mode off, or when nothing requires a gradient, it is just
/// block(x). An exception in either run leaves nothing behind but what the autograd engine holds until its next
/// backward.
Tensor recompute(std::function<Tensor(const Tensor& x)> block, const Tensor& x, const std::vector<Tensor>& trainable,
                 const std::shared_ptr<HostChain>& on_host = nullptr,
                 std::function<Tensor(const Tensor& x)> again = nullptr);

}  // namespace plimsoll::model
