#pragma once
// Gradients of the layer that types of samples share, the expert's last, one for each type: what GradNorm balances by.

#include <torch/torch.h>

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

namespace plimsoll::train {

/// Floats [types, out, in] on the device, a part of what is live from the start. What a micro-batch adds counts from
/// its commit on, as FlatBuffers' gradients do. Made on meta for a dry run. One thread.
class TypeGradients {
 public:
  TypeGradients(std::size_t types, std::int64_t out, std::int64_t in, at::Device device);

  /// For model::Shown::last_layer, of a micro-batch of samples of these types.
  std::function<void(const at::Tensor& rows, const at::Tensor& gradient)> watch(std::vector<std::uint8_t> types);
  /// Adds what the running micro-batch has made to `sums`, [types, out, in] in host memory, and forgets it.
  void commit(std::span<float> sums);
  void discard() { staging_.zero_(); }

 private:
  at::Tensor staging_;
};

}  // namespace plimsoll::train
