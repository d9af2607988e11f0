#pragma once
// Where a parameter's gradient goes in place of its .grad: into staging, on top of what is committed already.

#include <torch/csrc/autograd/function.h>

#include <cstdint>

#include "train/flat_kernels.h"

namespace plimsoll::train {

/// What all sinks of a rank share; owned by FlatBuffers and outlived by nothing that runs a backward.
struct Accumulation {
  const FlatKernels* kernels = nullptr;  ///< of the buffers' device; null on meta
  float* sums = nullptr;                 ///< gradients committed so far in this step; meaningless while `empty`
  float* staging = nullptr;              ///< the running micro-batch's: sums + its gradients
  bool empty = true;                     ///< nothing is committed in this step: the sums count as zeros
  /// On the device: 1 when something was written to staging, since it was last committed or discarded, that is not
  /// finite.
  std::uint32_t* bad = nullptr;
};

/// The end of the graph for one parameter, instead of torch::autograd::AccumulateGrad. When backward brings the
/// gradient, it writes staging = sums + gradient and looks whether that is finite: one pass over memory that a plain
/// gradient accumulation makes too (.grad += gradient), so the transaction costs nothing beside it. What is committed
/// stays as it is until FlatBuffers changes the two buffers' roles. Nothing is allocated; on meta nothing is done.
class GradientSink final : public torch::autograd::Node {
 public:
  /// `parameter` occupies elements [begin, begin + numel) of both buffers.
  GradientSink(const at::Tensor& parameter, std::int64_t begin, Accumulation& into);

  /// Adds one gradient of the parameter's shape; again in the same micro-batch: on top of the first.
  void add(const at::Tensor& gradient);
  /// The parameter's part of staging, when no gradient has reached it: what is committed, or zeros.
  void complete();
  void discard() { filled_ = false; }

 protected:
  torch::autograd::variable_list apply(torch::autograd::variable_list&& gradients) override;

 private:
  std::int64_t begin_, elements_;
  Accumulation& into_;
  bool filled_ = false;  ///< staging holds this parameter's part of the running micro-batch
};

}  // namespace plimsoll::train
