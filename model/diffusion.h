#pragma once
// How actions become noise and noise becomes actions: DDPM with a cosine schedule, sampled by DDIM, and flow matching,
// sampled by Euler steps. Tables and coefficients are made on the host in double; what runs in a step is fp32, under
// the rules of model/ops.h.
//
// Ho et al., "Denoising Diffusion Probabilistic Models" (2020), equations 4 and 14; Nichol and Dhariwal, "Improved
// Denoising Diffusion Probabilistic Models" (2021), equation 17 (the cosine schedule, betas capped at 0.999:
// "squaredcos_cap_v2"); Song et al., "Denoising Diffusion Implicit Models" (2021), equation 12 with eta = 0; Black et
// al., "pi0" (2024), equation 1, written with time 1 at the noise.

#include <torch/torch.h>

#include <cstdint>
#include <vector>

namespace plimsoll::model {

using at::Tensor;

/// alpha_bar[t], t in [0, steps): the share of the signal's variance that is left after t + 1 of `steps` noising steps.
/// Strictly falling, in (0, 1).
std::vector<double> cosine_alphas(int steps);

/// The two kinds of diffusion, as one object that tells how to mix, what to predict and how to step back.
class Diffusion {
 public:
  /// `flow`: flow matching, else ddpm with `steps` noising steps (the table has no use in flow). `clip` bounds the
  /// predicted clean action while sampling with ddpm, in normalised units; 0: no bound. Actions normalised by mean and
  /// deviation leave
  /// [-1, 1], so the usual bound of 1 would cut them. Throws Error(kUsage) when steps < 1 or clip < 0.
  Diffusion(bool flow, int steps, double clip, at::Device device);

  bool flow() const { return flow_; }

  /// Noisy actions [G, N, A] fp32 out of actions [S, N, A], noise [G, N, A] and timesteps [G] (PackedBatch), G = S *
  /// draws. Not an autograd node. A step index outside the table fails with Error(kData).
  Tensor add_noise(const Tensor& actions, const Tensor& noise, const Tensor& timesteps) const;

  /// Loss per sample [S] fp32: the mean over draws and elements with weight of (predicted - target)^2, where the target
  /// is the noise (ddpm) or noise - action (flow). predicted: [G, n, A] fp32 or bf16, n >= N, of which the last N rows
  /// count; weight: [S, N] fp32, 1 or 0. A sample without any weight has loss 0. Saves predicted only (the other
  /// tensors are the batch's). Differentiable by `predicted`.
  Tensor loss(const Tensor& predicted, const Tensor& actions, const Tensor& noise, const Tensor& weight) const;

  /// Times at which the model is asked while sampling in `steps` steps, first to last. ddpm: step indices k * (table /
  /// steps), falling (diffusers' "leading" spacing: the last table entry has next to no signal, and dividing by it
  /// would blow up errors). flow: 1, 1 - 1/steps, ... Throws Error(kUsage) when steps is not in [1, table size] (flow:
  /// below 1).
  std::vector<double> sampling_times(int steps) const;

  /// One step back from times[i] of sampling_times: x and predicted [S, N, A] fp32, predicted stays. In place on x.
  void step_back(Tensor& x, const Tensor& predicted, const std::vector<double>& times, std::size_t i) const;

  /// Sinusoidal embedding [G, width] fp32 of times [G] fp32, scaled so that a whole run from noise to action spans
  /// 1000: cosines, then sines, of time * 10000^(-i / (width / 2)). Vaswani et al. (2017), section 3.5. width even. Not
  /// an autograd node.
  Tensor embed_times(const Tensor& times, std::int64_t width) const;

 private:
  double alpha(double time) const;

  bool flow_;
  double clip_;
  std::vector<double> alphas_;  ///< empty in flow
  Tensor mixtures_;             ///< [steps, 2] fp32 on the device: signal and noise_scale; undefined in flow
};

}  // namespace plimsoll::model
