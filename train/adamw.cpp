#include "train/adamw.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace plimsoll::train {
namespace {
constexpr std::int64_t kBlock = 1 << 15;
}

void adamw_update(std::span<float> parameter, std::span<const float> gradient, std::span<float> first_moment,
                  std::span<float> second_moment, float gradient_scale, std::int64_t step, const AdamWOptions& o) {
  const auto count = static_cast<double>(step);
  const auto decay = static_cast<float>(1.0 - o.learning_rate * o.weight_decay);
  const auto step_size = static_cast<float>(o.learning_rate / (1.0 - std::pow(o.beta1, count)));
  const auto root_correction = static_cast<float>(std::sqrt(1.0 - std::pow(o.beta2, count)));
  const auto b1 = static_cast<float>(o.beta1), b2 = static_cast<float>(o.beta2);
  const auto c1 = static_cast<float>(1.0 - o.beta1), c2 = static_cast<float>(1.0 - o.beta2);
  const auto epsilon = static_cast<float>(o.epsilon);
  float* p = parameter.data();
  const float* g = gradient.data();
  float* m = first_moment.data();
  float* v = second_moment.data();
  at::parallel_for(0, static_cast<std::int64_t>(parameter.size()), kBlock, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const float value = g[i] * gradient_scale;
      m[i] = b1 * m[i] + c1 * value;
      v[i] = b2 * v[i] + c2 * value * value;
      p[i] = p[i] * decay - step_size * m[i] / (std::sqrt(v[i]) / root_correction + epsilon);
    }
  });
}

double l2_norm(std::span<const float> values) {
  // The blocks' sums live on the host's heap, not on the device.
  const auto n = static_cast<std::int64_t>(values.size());
  std::vector<double> sums(static_cast<std::size_t>((n + kBlock - 1) / kBlock), 0.0);
  at::parallel_for(0, static_cast<std::int64_t>(sums.size()), 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t block = begin; block < end; ++block) {
      double sum = 0.0;
      for (std::int64_t i = block * kBlock; i < std::min(n, (block + 1) * kBlock); ++i) {
        sum += static_cast<double>(values[static_cast<std::size_t>(i)]) * values[static_cast<std::size_t>(i)];
      }
      sums[static_cast<std::size_t>(block)] = sum;
    }
  });
  double total = 0.0;
  for (const double sum : sums) total += sum;
  return std::sqrt(total);
}

}  // namespace plimsoll::train
