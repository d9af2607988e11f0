#pragma once
// The action expert: a small transformer that turns noisy action chunks into what diffusion asks for, looking at the
// VLM's features.
//
// A DiT (Peebles and Xie, "Scalable Diffusion Models with Transformers", 2023, section 3.2) with adaptive RMS norms and
// cross-attention: per block self-attention over the rows of one draw, cross-attention to the sample's context, gated
// MLP, each behind a modulated norm and a gate that come from the diffusion time. Parameters are fp32, matrix products
// run in Precision::compute, the residual stream, norms and the loss are fp32.
//
// The draws of a sample share its context without copies: in cross-attention they are one segment of queries.

#include <torch/torch.h>

#include <functional>
#include <string>
#include <vector>

#include "model/batch.h"
#include "model/head_options.h"
#include "model/initial.h"
#include "model/ops.h"

namespace plimsoll::model {

/// What the expert must fit: the VLM's width and the robot's.
struct ExpertPorts {
  std::int64_t hidden = 0;  ///< width of the VLM's hidden states
  int state_dim = 0;        ///< 0: no state row
  int action_dim = 0;
  std::int64_t max_context = 0;  ///< rows of the table of context positions
  at::ScalarType compute = at::kFloat;
};

/// Context rows, ready for cross-attention, and who may look at which.
struct ExpertContext {
  Tensor rows;                                ///< [C, width] `compute`
  SegmentsPtr cross;                          ///< queries: draws * rows of a draw; keys: context rows of the sample
  SegmentsPtr self;                           ///< one segment per draw
  std::vector<std::array<Tensor, 2>> cached;  ///< keys and values per block, when made in advance
};

class ActionExpert {
 public:
  /// Makes "expert.*" in `parameters`. The last layer starts small and the gates at 0.1, so every tensor has a gradient
  /// from the first step on. Throws Error(kUsage) naming the key when the sizes do not fit.
  ActionExpert(const ExpertOptions& options, const ExpertPorts& ports, ParameterList& parameters);

  /// hidden: [T, ports.hidden]; sensors: [K, width] from SensorEncoder, or undefined. Positions, rows and lengths are
  /// the batch's. `draws` per sample. `cache`: also make all keys and values, for sampling, where they serve every
  /// step.
  ExpertContext context(const Tensor& hidden, const Tensor& sensors, const PackedBatch& batch, std::int64_t draws,
                        bool cache) const;

  /// noisy: [G, N, A] fp32; times: sinusoidal embedding [G, kTimeWidth] fp32; state: [samples, state_dim] fp32. Returns
  /// [G, n, A] in `compute`: the last N rows of each draw are the predicted noise or velocity, a state row before them
  /// means nothing (Diffusion::loss looks at the last N only). The first `recomputed` blocks keep only their rows for
  /// backward; more than there are is Error(kUsage). `shown`: sees in backward what the last layer read, [G n, width],
  /// and the gradient of what it made, [G n, A].
  using LastLayer = std::function<void(const Tensor& rows, const Tensor& gradient)>;
  Tensor predict(const Tensor& noisy, const Tensor& times, const Tensor& state, const ExpertContext& context,
                 int recomputed = 0, const LastLayer& shown = {}) const;

  static constexpr std::int64_t kTimeWidth = 256;

 private:
  struct Linear {
    Tensor weight, bias;
  };
  struct Attention {
    Tensor q, k, v, o;
  };
  struct Block {
    Linear modulation;  ///< shift, scale and gate for each of the three parts
    Attention self, cross;
    Tensor gate, up, down;
    std::vector<Tensor> trainable() const;  ///< all of them: inputs of the block's recompute function
  };

  Linear make_linear(const std::string& name, std::int64_t out, std::int64_t in, ParameterList& parameters) const;
  Linear make_modulation(const std::string& name, int parts, int gates, ParameterList& parameters) const;
  Attention make_attention(const std::string& name, ParameterList& parameters) const;
  Block make_block(const std::string& name, ParameterList& parameters) const;

  Tensor multiply(const Tensor& x, const Tensor& weight, const Tensor& bias = {}) const;
  Tensor heads(const Tensor& x) const;
  std::vector<Tensor> multiply_all(const Tensor& x, std::initializer_list<Tensor> weights) const;
  Tensor attend(const Tensor& q, const Attention& weights, const Tensor& k, const Tensor& v,
                const SegmentsPtr& segments) const;
  Tensor run_block(std::size_t index, const Tensor& x, const Tensor& time, const Tensor& context_rows,
                   const ExpertContext& context) const;
  std::array<Tensor, 2> keys_values(const Attention& weights, const Tensor& rows) const;
  Tensor start_rows(const Tensor& noisy, const Tensor& state) const;

  ExpertOptions options_;
  ExpertPorts ports_;
  Linear action_in_, state_in_, context_in_, time_in_, time_out_, final_modulation_, action_out_;
  Tensor row_positions_, context_positions_;
  std::vector<Block> blocks_;
};

}  // namespace plimsoll::model
