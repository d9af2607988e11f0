#pragma once
// The part of a device's kernels (model/kernels.h) that only the action expert, the sensor encoder and the diffusion
// need: what expert_ops.h and diffusion.h say, into outputs that are already there. The same conventions hold; the
// residual stream, positions, actions, noise, times and losses are fp32, what matrix products read and write is fp32 or
// bf16, of one dtype in a call.
//
// A value that is out of range (a position beyond its table, a diffusion step beyond the schedule) is Error(kData) on
// the CPU. A GPU cannot read it back: what it leads to there is NaN, which the commit finds.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace plimsoll::model {

using at::Tensor;

/// Rows of a context, by where they come from (ContextLayout of expert_ops.h).
struct ContextRows {
  const Tensor& positions;    ///< [rows of the context] int64: rows of the table
  const Tensor& token_rows;   ///< [tokens] int64, or undefined: row = token
  const Tensor& sensor_rows;  ///< [sensor tokens] int64; undefined without them
  /// Rows of each sample, which sum to the context's; within a sample positions never fall, so that a GPU finds the
  /// rows of a position without looking at all. Empty: in any order.
  const std::vector<std::int64_t>& lengths;
};

/// predicted: [draws, n, width] fp32 or bf16, whose last rows are the chunk of actions: [samples, rows, width]; noise:
/// [draws, rows, width]; weight: [samples, rows]. Draws of a sample are neighbours.
struct ChunkLoss {
  const Tensor& predicted;
  const Tensor& actions;
  const Tensor& noise;
  const Tensor& weight;
  bool flow = false;
};

class ExpertKernels {
 public:
  virtual ~ExpertKernels() = default;

  /// inverse: [rows] fp32, written.
  virtual void modulated_norm_forward(const Tensor& /*x*/, const Tensor& /*shift*/, const Tensor& /*scale*/,
                                      Tensor& /*y*/, Tensor& /*inverse*/) const {}
  virtual void modulated_norm_backward(const Tensor& /*grad*/, const Tensor& /*x*/, const Tensor& /*scale*/,
                                       const Tensor& /*inverse*/, Tensor& /*dx*/, Tensor& /*dshift*/,
                                       Tensor& /*dscale*/) const {}
  virtual void gated_residual_forward(const Tensor& /*x*/, const Tensor& /*y*/, const Tensor& /*gate or undefined*/,
                                      Tensor& /*out*/) const {}
  virtual void gated_residual_backward(const Tensor& /*grad*/, const Tensor& /*y*/, const Tensor& /*gate*/,
                                       Tensor& /*dy*/, Tensor& /*dgate*/) const {}
  virtual void embed_rows_forward(const Tensor& /*rows*/, const Tensor& /*lead or undefined*/,
                                  const Tensor& /*positions*/, std::int64_t /*draws*/, Tensor& /*out*/) const {}
  virtual void embed_rows_backward(const Tensor& /*grad*/, std::int64_t /*draws*/, Tensor& /*drows*/,
                                   Tensor& /*dlead or undefined*/, Tensor& /*dpositions*/) const {}
  /// inverse: [rows of the context] fp32, written.
  virtual void embed_context_forward(const Tensor& /*tokens*/, const Tensor& /*sensors or undefined*/,
                                     const Tensor& /*table*/, const ContextRows&, Tensor& /*out*/,
                                     Tensor& /*inverse*/) const {}
  virtual void embed_context_backward(const Tensor& /*grad*/, const Tensor& /*out*/, const Tensor& /*inverse*/,
                                      const ContextRows&, Tensor& /*dtokens*/, Tensor& /*dsensors or undefined*/,
                                      Tensor& /*dtable*/) const {}

  /// mixtures: [steps, 2], signal and noise scale of a step; undefined: flow matching, 1 - time and time.
  virtual void add_noise(const Tensor& /*actions*/, const Tensor& /*noise*/, const Tensor& /*times*/,
                         const Tensor& /*mixtures*/, Tensor& /*out*/) const {}
  virtual void embed_times(const Tensor& /*times*/, double /*scale*/, Tensor& /*out*/) const {}
  virtual void chunk_loss_forward(const ChunkLoss&, Tensor& /*losses*/) const {}
  virtual void chunk_loss_backward(const ChunkLoss&, const Tensor& /*grad*/, Tensor& /*dpredicted*/) const {}
};

}  // namespace plimsoll::model
