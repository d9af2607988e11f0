// CPU kernels of the action expert: adaptive modulation, gated residual, the loss of a sample.

#include "core/error.h"
#include "model/kernels_cpu.h"
#include "model/kernels_lanes.h"

namespace plimsoll::model::cpu {
namespace {

using lanes::F8;
using lanes::load;
using lanes::store;

/// One task per row group; each group's sums are its own, so threads do not change them.
template <class Body>
void for_groups(std::int64_t groups, std::int64_t elements, Body&& body) {
  for_tasks(groups, workers_for(groups, 3 * elements), [&](std::int64_t group, int) { body(group); });
}

/// Elements of the prediction that belong to one sample, and the weight of each row.
struct SampleView {
  std::int64_t draws, rows, width;
  const float* weight;  ///< [rows]
  float total = 0.0F;   ///< sum of weights times draws times width
};

SampleView sample_view(const Tensor& prediction, const Tensor& weight, std::int64_t sample) {
  const std::int64_t samples = weight.size(0), chunk = weight.size(1);
  SampleView view{samples == 0 ? 0 : prediction.size(0) / samples, chunk, prediction.size(2),
                  data<float>(weight) + sample * chunk};
  for (std::int64_t row = 0; row < chunk; ++row) view.total += view.weight[row];
  view.total *= static_cast<float>(view.draws * view.width);
  return view;
}

}  // namespace

void CpuKernels::modulate_forward(const Tensor& x, const Tensor& scale, const Tensor& shift, Tensor& out) const {
  const std::int64_t groups = scale.size(0), width = columns(x);
  if (groups == 0) return;
  const std::int64_t per_group = rows(x) / groups;
  with_type(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    for_groups(groups, x.numel(), [&](std::int64_t group) {
      const T *s = data<T>(scale) + group * scale.stride(0), *b = data<T>(shift) + group * shift.stride(0);
      for (std::int64_t row = group * per_group; row < (group + 1) * per_group; ++row) {
        lanes::for_each(width, [&](std::int64_t i, auto count) {
          const F8 v = load(data<T>(x) + row * width + i, count);
          store(data<T>(out) + row * width + i, v * (1.0F + load(s + i, count)) + load(b + i, count), count);
        });
      }
    });
  });
}

void CpuKernels::modulate_backward(const Tensor& grad, const Tensor& x, const Tensor& scale, Tensor& dx, Tensor& dscale,
                                   Tensor& dshift) const {
  const std::int64_t groups = scale.size(0), width = columns(grad);
  if (groups == 0) return;
  const std::int64_t per_group = rows(grad) / groups;
  with_type(grad.scalar_type(), [&](auto type) {
    using T = decltype(type);
    for_groups(groups, 2 * grad.numel(), [&](std::int64_t group) {
      const std::int64_t first = group * per_group * width;
      const T *g = data<T>(grad) + first, *from = x.defined() ? data<T>(x) + first : nullptr;
      lanes::for_each(width, [&](std::int64_t i, auto count) {
        const F8 factor = 1.0F + load(data<T>(scale) + group * scale.stride(0) + i, count);
        F8 scale_sum{}, shift_sum{};
        for (std::int64_t row = 0; row < per_group; ++row) {
          const F8 v = load(g + row * width + i, count);
          if (dx.defined()) store(data<T>(dx) + first + row * width + i, v * factor, count);
          if (from != nullptr) scale_sum = lanes::fma(v, load(from + row * width + i, count), scale_sum);
          shift_sum = shift_sum + v;
        }
        if (dscale.defined()) store(data<T>(dscale) + group * width + i, scale_sum, count);
        if (dshift.defined()) store(data<T>(dshift) + group * width + i, shift_sum, count);
      });
    });
  });
}

void CpuKernels::gated_add_forward(const Tensor& x, const Tensor& y, const Tensor& gate, Tensor& out) const {
  const std::int64_t groups = gate.size(0), width = columns(x);
  if (groups == 0) return;
  const std::int64_t per_group = rows(x) / groups;
  with_type(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    for_groups(groups, x.numel(), [&](std::int64_t group) {
      const T* g = data<T>(gate) + group * gate.stride(0);
      for (std::int64_t row = group * per_group; row < (group + 1) * per_group; ++row) {
        lanes::for_each(width, [&](std::int64_t i, auto count) {
          const std::int64_t at = row * width + i;
          store(data<T>(out) + at, load(data<T>(x) + at, count) + load(g + i, count) * load(data<T>(y) + at, count), count);
        });
      }
    });
  });
}

void CpuKernels::gated_add_backward(const Tensor& grad, const Tensor& y, const Tensor& gate, Tensor& dy, Tensor& dgate) const {
  const std::int64_t groups = gate.size(0), width = columns(grad);
  if (groups == 0) return;
  const std::int64_t per_group = rows(grad) / groups;
  with_type(grad.scalar_type(), [&](auto type) {
    using T = decltype(type);
    for_groups(groups, 2 * grad.numel(), [&](std::int64_t group) {
      const std::int64_t first = group * per_group * width;
      lanes::for_each(width, [&](std::int64_t i, auto count) {
        const F8 factor = load(data<T>(gate) + group * gate.stride(0) + i, count);
        F8 total{};
        for (std::int64_t row = 0; row < per_group; ++row) {
          const std::int64_t at = first + row * width + i;
          const F8 v = load(data<T>(grad) + at, count);
          if (dy.defined()) store(data<T>(dy) + at, v * factor, count);
          if (dgate.defined()) total = lanes::fma(v, load(data<T>(y) + at, count), total);
        }
        if (dgate.defined()) store(data<T>(dgate) + group * width + i, total, count);
      });
    });
  });
}

void CpuKernels::sample_mse_forward(const Tensor& prediction, const Tensor& target, const Tensor& weight, Tensor& losses) const {
  with_type(prediction.scalar_type(), [&](auto type) {
    using T = decltype(type);
    for_groups(weight.size(0), prediction.numel(), [&](std::int64_t sample) {
      const SampleView view = sample_view(prediction, weight, sample);
      double total = 0.0;
      for (std::int64_t row = 0; row < view.draws * view.rows; ++row) {
        const std::int64_t at = (sample * view.draws * view.rows + row) * view.width;
        F8 squares{};
        lanes::for_each(view.width, [&](std::int64_t i, auto count) {
          const F8 error = load(data<T>(prediction) + at + i, count) - load(data<float>(target) + at + i, count);
          squares = lanes::fma(error, error, squares);
        });
        const float w = view.weight[row % view.rows];
        if (w != 0.0F) total += static_cast<double>(w) * static_cast<double>(lanes::sum(squares));
      }
      data<float>(losses)[sample] = view.total > 0.0F ? static_cast<float>(total / static_cast<double>(view.total)) : 0.0F;
    });
  });
}

void CpuKernels::sample_mse_backward(const Tensor& grad, const Tensor& prediction, const Tensor& target, const Tensor& weight,
                                     Tensor& dprediction) const {
  with_type(prediction.scalar_type(), [&](auto type) {
    using T = decltype(type);
    for_groups(weight.size(0), prediction.numel(), [&](std::int64_t sample) {
      const SampleView view = sample_view(prediction, weight, sample);
      const float base = view.total > 0.0F ? 2.0F * data<float>(grad)[sample] / view.total : 0.0F;
      for (std::int64_t row = 0; row < view.draws * view.rows; ++row) {
        const std::int64_t at = (sample * view.draws * view.rows + row) * view.width;
        const float factor = base * view.weight[row % view.rows];
        lanes::for_each(view.width, [&](std::int64_t i, auto count) {
          const F8 error = load(data<T>(prediction) + at + i, count) - load(data<float>(target) + at + i, count);
          store(data<T>(dprediction) + at + i, factor == 0.0F ? F8{} : error * factor, count);
        });
      }
    });
  });
}

}  // namespace plimsoll::model::cpu
