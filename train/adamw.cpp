#include "train/adamw.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

namespace plimsoll::train {
namespace {
constexpr std::int64_t kBlock = 1 << 15;

// No two of the buffers overlap, and the factors lie in registers: the loop is vectorised, roots and quotients too.
void update_range(float* __restrict p, const float* __restrict g, float* __restrict m, float* __restrict v,
                  std::int64_t n, const AdamWFactors f) {
  for (std::int64_t i = 0; i < n; ++i) {
    const float value = g[i] * f.gradient_scale;
    m[i] = f.b1 * m[i] + f.c1 * value;
    v[i] = f.b2 * v[i] + f.c2 * value * value;
    p[i] = p[i] * f.decay - f.step_size * m[i] / (std::sqrt(v[i]) / f.root_correction + f.epsilon);
  }
}

// In lanes, so that no sum waits for the one before it; their number and order never change.
double sum_of_squares(const float* values, std::int64_t n) {
  constexpr std::int64_t kLanes = 16;
  std::array<double, kLanes> sums{};
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (std::int64_t lane = 0; lane < kLanes; ++lane) {
      const double value = values[i + lane];
      sums[static_cast<std::size_t>(lane)] += value * value;
    }
  }
  double total = 0.0;
  for (; i < n; ++i) total += static_cast<double>(values[i]) * values[i];
  for (const double sum : sums) total += sum;
  return total;
}

}  // namespace

AdamWFactors adamw_factors(const AdamWOptions& o, std::int64_t step, float gradient_scale) {
  const auto count = static_cast<double>(step);
  return {
      .decay = static_cast<float>(1.0 - o.learning_rate * o.weight_decay),
      .step_size = static_cast<float>(o.learning_rate / (1.0 - std::pow(o.beta1, count))),
      .root_correction = static_cast<float>(std::sqrt(1.0 - std::pow(o.beta2, count))),
      .b1 = static_cast<float>(o.beta1),
      .b2 = static_cast<float>(o.beta2),
      .c1 = static_cast<float>(1.0 - o.beta1),
      .c2 = static_cast<float>(1.0 - o.beta2),
      .epsilon = static_cast<float>(o.epsilon),
      .gradient_scale = gradient_scale,
  };
}

void adamw_update(std::span<float> parameter, std::span<const float> gradient, std::span<float> first_moment,
                  std::span<float> second_moment, const AdamWFactors& factors) {
  at::parallel_for(0, static_cast<std::int64_t>(parameter.size()), kBlock, [&](std::int64_t begin, std::int64_t end) {
    update_range(parameter.data() + begin, gradient.data() + begin, first_moment.data() + begin,
                 second_moment.data() + begin, end - begin, factors);
  });
}

double l2_norm(std::span<const float> values) {
  // The blocks' sums live on the host's heap, not on the device.
  const auto n = static_cast<std::int64_t>(values.size());
  std::vector<double> sums(static_cast<std::size_t>((n + kBlock - 1) / kBlock), 0.0);
  at::parallel_for(0, static_cast<std::int64_t>(sums.size()), 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t block = begin; block < end; ++block) {
      const std::int64_t first = block * kBlock;
      sums[static_cast<std::size_t>(block)] = sum_of_squares(values.data() + first, std::min(kBlock, n - first));
    }
  });
  double total = 0.0;
  for (const double sum : sums) total += sum;
  return std::sqrt(total);
}

}  // namespace plimsoll::train
