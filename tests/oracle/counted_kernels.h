#pragma once
// A device's kernels with a count: how often each operator is called, and what a call cannot do without, in
// floating-point operations and bytes. Each call is a range in libtorch's profiler too (step_profile.h).

#include <cstdint>
#include <map>
#include <mutex>
#include <string>

#include "model/kernels.h"

namespace plimsoll::model {

/// Of all calls of one operator.
struct OperatorCount {
  std::int64_t calls = 0;
  std::int64_t parts = 0;  ///< layers of the calls that serve several at once; else as many as calls
  double flops = 0;        ///< of matrix products and attention; a multiplication and an addition are two
  double bytes = 0;        ///< of operands and results, each moved once
};

/// Before the names of the operators: what the profiler's ranges of this class begin with.
inline constexpr const char* kOperatorPrefix = "plimsoll::";

/// Register it in the place of `own`, which does the work and outlives it. Any thread.
class CountedKernels final : public Kernels {
 public:
  explicit CountedKernels(const Kernels& own) : own_(own) {}

  /// By name without the prefix, since the last clear().
  std::map<std::string, OperatorCount> counts() const;
  void clear();

  void product(const Product& product, Tensor& out) const override;
  void lora_forward(const Tensor& x, const LoraTensors& layer, const Dropout& dropout, at::ScalarType compute,
                    Tensor& u, Tensor& y) const override;
  void lora_backward(const Tensor& x, const std::vector<LoraTensors>& layers, const Dropout& dropout,
                     at::ScalarType compute, std::vector<LoraGradients>& gradients, Tensor& dx) const override;
  void sum_rows(const Tensor& x, Tensor& out) const override;
  void cast(const Tensor& x, Tensor& out) const override;
  void add(const Tensor& x, const Tensor& y, Tensor& out) const override;
  void rms_norm_forward(const Tensor& x, const Tensor& weight, double eps, Tensor& out, Tensor& rstd) const override;
  void rms_norm_backward(const Tensor& grad, const Tensor& x, const Tensor& weight, const Tensor& rstd,
                         const Tensor& residual, Tensor& dx, Tensor& dweight) const override;
  void swiglu_forward(const Tensor& gate, const Tensor& up, Tensor& out) const override;
  void swiglu_backward(const Tensor& grad, const Tensor& gate, const Tensor& up, Tensor& dgate,
                       Tensor& dup) const override;
  void activation_forward(Activation kind, const Tensor& x, Tensor& out) const override;
  void activation_backward(Activation kind, const Tensor& grad, const Tensor& x, Tensor& dx) const override;
  void rotary(const Tensor& x, const Tensor& cos, const Tensor& sin, bool backward, Tensor& out) const override;
  void attention_forward(const AttentionTensors& tensors, Tensor& out, Tensor& lse) const override;
  void attention_backward(const AttentionTensors& tensors, const Tensor& grad, const Tensor& out, const Tensor& lse,
                          Tensor& dq, Tensor& dk, Tensor& dv) const override;
  void gather_rows(const Tensor& table, const Tensor& indices, Tensor& out) const override;
  void scatter_add_rows(const Tensor& rows, const Tensor& indices, Tensor& out) const override;
  void place_rows(const Tensor& x, const Tensor& indices, const Tensor& rows, Tensor& out) const override;

  void modulated_norm_forward(const Tensor& x, const Tensor& shift, const Tensor& scale, Tensor& y,
                              Tensor& inverse) const override;
  void modulated_norm_backward(const Tensor& grad, const Tensor& x, const Tensor& scale, const Tensor& inverse,
                               Tensor& dx, Tensor& dshift, Tensor& dscale) const override;
  void gated_residual_forward(const Tensor& x, const Tensor& y, const Tensor& gate, Tensor& out) const override;
  void gated_residual_backward(const Tensor& grad, const Tensor& y, const Tensor& gate, Tensor& dy,
                               Tensor& dgate) const override;
  void embed_rows_forward(const Tensor& rows, const Tensor& lead, const Tensor& positions, std::int64_t draws,
                          Tensor& out) const override;
  void embed_rows_backward(const Tensor& grad, std::int64_t draws, Tensor& drows, Tensor& dlead,
                           Tensor& dpositions) const override;
  void embed_context_forward(const Tensor& tokens, const Tensor& sensors, const Tensor& table, const ContextRows& rows,
                             Tensor& out, Tensor& inverse) const override;
  void embed_context_backward(const Tensor& grad, const Tensor& out, const Tensor& inverse, const ContextRows& rows,
                              Tensor& dtokens, Tensor& dsensors, Tensor& dtable) const override;
  void add_noise(const Tensor& actions, const Tensor& noise, const Tensor& times, const Tensor& mixtures,
                 Tensor& out) const override;
  void embed_times(const Tensor& times, double scale, Tensor& out) const override;
  void chunk_loss_forward(const ChunkLoss& loss, Tensor& losses) const override;
  void chunk_loss_backward(const ChunkLoss& loss, const Tensor& grad, Tensor& dpredicted) const override;

 private:
  class Call;

  const Kernels& own_;
  mutable std::mutex mutex_;  ///< backward may have a thread of its own
  mutable std::map<std::string, OperatorCount> counts_;
};

}  // namespace plimsoll::model
