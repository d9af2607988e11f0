#pragma once
// AdamW over flat buffers, in place: nothing is allocated, so after the reduction nothing can run out of memory.

#include <cstdint>
#include <span>

namespace plimsoll::train {

struct AdamWOptions {
  double learning_rate = 1e-4;
  double beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8;
  double weight_decay = 0.01;
};

/// What is the same for all elements of an update.
struct AdamWFactors {
  float decay = 1, step_size = 0, root_correction = 1, b1 = 0, b2 = 0, c1 = 1, c2 = 1, epsilon = 0, gradient_scale = 1;
};
/// `step` counts from 1; the gradient is multiplied by `gradient_scale` as it is read.
AdamWFactors adamw_factors(const AdamWOptions& options, std::int64_t step, float gradient_scale);

/// One step of decoupled weight decay Adam (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", algorithm
/// 2; operations in the order of torch.optim.AdamW). All spans have the same length and lie in host memory.
void adamw_update(std::span<float> parameter, std::span<const float> gradient, std::span<float> first_moment,
                  std::span<float> second_moment, const AdamWFactors& factors);

/// L2 norm, summed in double over fixed blocks in order, so that it does not depend on the number of threads.
double l2_norm(std::span<const float> values);

}  // namespace plimsoll::train
