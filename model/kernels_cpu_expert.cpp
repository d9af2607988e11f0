// The CPU's kernels of the action expert and the diffusion: loops over rows in host memory.

#include <array>
#include <cmath>
#include <vector>

#include "model/kernels_cpu.h"
#include "model/row_kernels.h"

namespace plimsoll::model::cpu {
namespace {

using rows::in;
using rows::inverse_rms;
using rows::out;
using rows::store;

template <class T>
void fill_norm(const Tensor& x, const Tensor& shift, const Tensor& scale, Tensor& y, Tensor& inverse) {
  const auto width = x.size(1), n = x.size(0) / shift.size(0);
  rows::each(x.size(0), width, [&](std::int64_t row) {
    const float* xr = in<float>(x) + row * width;
    const T* b = in<T>(shift) + row / n * width;
    const T* a = in<T>(scale) + row / n * width;
    const float r = out<float>(inverse)[row] = inverse_rms(xr, width);
    T* yr = out<T>(y) + row * width;
    for (std::int64_t i = 0; i < width; ++i) {
      yr[i] = static_cast<T>(xr[i] * r * (1.0F + static_cast<float>(a[i])) + static_cast<float>(b[i]));
    }
  });
}

struct NormGradients {
  Tensor x, shift, scale;
};

/// Gradients of the rows of group `group`.
template <class T>
void fill_norm_gradient(std::int64_t group, const Tensor& g, const Tensor& x, const Tensor& scale,
                        const Tensor& inverse, NormGradients& d) {
  const auto width = x.size(1), n = x.size(0) / scale.size(0);
  const auto size = static_cast<std::size_t>(width);
  std::vector<float> d_shift(size, 0.0F), d_scale(size, 0.0F), hat(size), d_hat(size);
  const T* a = in<T>(scale) + group * width;
  for (auto row = group * n; row < (group + 1) * n; ++row) {
    const float* xr = in<float>(x) + row * width;
    const T* gr = in<T>(g) + row * width;
    const float r = in<float>(inverse)[row];
    for (std::int64_t i = 0; i < width; ++i) {
      const float gi = static_cast<float>(gr[i]);
      hat[i] = xr[i] * r;
      d_hat[i] = gi * (1.0F + static_cast<float>(a[i]));
      d_shift[i] += gi;
      d_scale[i] += gi * hat[i];
    }
    const float mean = rows::sum(width, [&](std::int64_t i) { return d_hat[i] * hat[i]; }) / static_cast<float>(width);
    float* dx = out<float>(d.x) + row * width;
    for (std::int64_t i = 0; i < width; ++i) dx[i] = r * (d_hat[i] - hat[i] * mean);
  }
  store(d_shift, out<T>(d.shift) + group * width);
  store(d_scale, out<T>(d.scale) + group * width);
}

template <class T>
void fill_residual(const Tensor& x, const Tensor& y, const Tensor& gate, Tensor& result) {
  const auto width = x.size(1);
  const auto n = gate.defined() ? x.size(0) / gate.size(0) : 1;
  rows::each(x.size(0), width, [&](std::int64_t row) {
    const float* xr = in<float>(x) + row * width;
    const T* yr = in<T>(y) + row * width;
    float* to = out<float>(result) + row * width;
    if (!gate.defined()) {
      for (std::int64_t i = 0; i < width; ++i) to[i] = xr[i] + static_cast<float>(yr[i]);
      return;
    }
    const T* a = in<T>(gate) + row / n * width;
    for (std::int64_t i = 0; i < width; ++i) to[i] = xr[i] + static_cast<float>(a[i]) * static_cast<float>(yr[i]);
  });
}

template <class T>
void fill_gate_gradient(std::int64_t group, const Tensor& g, const Tensor& y, const Tensor& gate, Tensor& d_y,
                        Tensor& d_gate) {
  const auto width = y.size(1), n = y.size(0) / gate.size(0);
  std::vector<float> total(static_cast<std::size_t>(width), 0.0F);
  const T* a = in<T>(gate) + group * width;
  for (auto row = group * n; row < (group + 1) * n; ++row) {
    const float* gr = in<float>(g) + row * width;
    const T* yr = in<T>(y) + row * width;
    T* dy = out<T>(d_y) + row * width;
    for (std::int64_t i = 0; i < width; ++i) {
      dy[i] = static_cast<T>(gr[i] * static_cast<float>(a[i]));
      total[i] += gr[i] * static_cast<float>(yr[i]);
    }
  }
  store(total, out<T>(d_gate) + group * width);
}

struct RowSizes {
  std::int64_t groups, n, m, width, draws;
};

template <class T>
void fill_embed_rows(const Tensor& source, const Tensor& lead, const Tensor& positions, Tensor& result,
                     const RowSizes& s) {
  const auto first = s.n - s.m;
  rows::each(s.groups, s.n * s.width, [&](std::int64_t g) {
    for (std::int64_t r = 0; r < s.n; ++r) {
      const T* x = r < first ? in<T>(lead) + g / s.draws * s.width : in<T>(source) + (g * s.m + r - first) * s.width;
      const float* p = in<float>(positions) + r * s.width;
      float* y = out<float>(result) + (g * s.n + r) * s.width;
      for (std::int64_t i = 0; i < s.width; ++i) y[i] = static_cast<float>(x[i]) + p[i];
    }
  });
}

/// Gradient of the action rows: a cast copy of all rows but the first of each group.
template <class T>
void fill_row_gradient(const Tensor& g, Tensor& d_rows, const RowSizes& s) {
  rows::each(s.groups * s.m, s.width, [&](std::int64_t k) {
    const float* from = in<float>(g) + (k / s.m * s.n + s.n - s.m + k % s.m) * s.width;
    T* to = out<T>(d_rows) + k * s.width;
    for (std::int64_t i = 0; i < s.width; ++i) to[i] = static_cast<T>(from[i]);
  });
}

template <class T>
void fill_lead_gradient(const Tensor& g, Tensor& d_lead, const RowSizes& s) {
  rows::each(s.groups / s.draws, s.draws * s.width, [&](std::int64_t sample) {
    std::vector<float> total(static_cast<std::size_t>(s.width), 0.0F);
    for (std::int64_t d = 0; d < s.draws; ++d) {
      const float* from = in<float>(g) + (sample * s.draws + d) * s.n * s.width;
      for (std::int64_t i = 0; i < s.width; ++i) total[i] += from[i];
    }
    store(total, out<T>(d_lead) + sample * s.width);
  });
}

void fill_position_gradient(const Tensor& g, Tensor& d_positions, const RowSizes& s) {
  d_positions.zero_();
  rows::each(s.n, s.groups * s.width, [&](std::int64_t r) {
    float* to = out<float>(d_positions) + r * s.width;
    for (std::int64_t group = 0; group < s.groups; ++group) {
      const float* from = in<float>(g) + (group * s.n + r) * s.width;
      for (std::int64_t i = 0; i < s.width; ++i) to[i] += from[i];
    }
  });
}

std::int64_t context_row(const Tensor& index, std::int64_t i) {
  return index.defined() ? in<std::int64_t>(index)[i] : i;
}

const float* position_row(const Tensor& table, const Tensor& positions, std::int64_t row) {
  const auto position = in<std::int64_t>(positions)[row];
  if (position < 0 || position >= table.size(0)) {
    fail(ExitCode::kData, "context row {} has position {}, but expert.context_positions has {} rows: raise max_context",
         row, position, table.size(0));
  }
  return in<float>(table) + position * table.size(1);
}

/// Rows of one source (tokens or sensor tokens) into the context.
template <class T>
void fill_context(const Tensor& source, const Tensor& index, const Tensor& table, const Tensor& positions,
                  Tensor& result, Tensor& inverse) {
  const auto width = source.size(1);
  rows::each(source.size(0), width, [&](std::int64_t i) {
    const auto row = context_row(index, i);
    const T* x = in<T>(source) + i * width;
    const float* p = position_row(table, positions, row);
    std::vector<float> sum(static_cast<std::size_t>(width));
    for (std::int64_t j = 0; j < width; ++j) sum[j] = static_cast<float>(x[j]) + p[j];
    const float scale = out<float>(inverse)[row] = inverse_rms(sum.data(), width);
    T* y = out<T>(result) + row * width;
    for (std::int64_t j = 0; j < width; ++j) y[j] = static_cast<T>(sum[j] * scale);
  });
}

/// Gradients to one source, and added to the table's.
template <class T>
void fill_context_gradient(const Tensor& g, const Tensor& y, const Tensor& inverse, const Tensor& index,
                           const Tensor& positions, Tensor& d_source, Tensor& d_table) {
  const auto width = g.size(1);
  std::vector<float> d(static_cast<std::size_t>(width));
  for (std::int64_t i = 0; i < d_source.size(0); ++i) {
    const auto row = context_row(index, i);
    const T* gr = in<T>(g) + row * width;
    const T* yr = in<T>(y) + row * width;
    const float dot =
        rows::sum(width, [=](std::int64_t j) { return static_cast<float>(gr[j]) * static_cast<float>(yr[j]); });
    const float mean = dot / static_cast<float>(width);
    const float scale = in<float>(inverse)[row];
    for (std::int64_t j = 0; j < width; ++j)
      d[j] = scale * (static_cast<float>(gr[j]) - static_cast<float>(yr[j]) * mean);
    store(d, out<T>(d_source) + i * width);
    float* to = out<float>(d_table) + in<std::int64_t>(positions)[row] * width;
    for (std::int64_t j = 0; j < width; ++j) to[j] += d[j];
  }
}

/// signal and noise scale of one draw.
std::array<float, 2> mixture_of(float time, const Tensor& table) {
  if (!table.defined()) return {1.0F - time, time};
  const auto step = static_cast<std::int64_t>(time);
  if (!(time >= 0.0F) || step >= table.size(0)) {
    fail(ExitCode::kData, "diffusion step {} is outside the schedule of {} steps (expert.diffusion_steps)", time,
         table.size(0));
  }
  const float* row = rows::in<float>(table) + 2 * step;
  return {row[0], row[1]};
}

/// Sizes of a batch of action chunks: draws of a sample are neighbours.
struct ChunkSizes {
  std::int64_t samples, draws, rows, width;
  ChunkSizes(const Tensor& actions, const Tensor& noise)
      : samples(actions.size(0)),
        draws(noise.size(0) / std::max<std::int64_t>(1, actions.size(0))),
        rows(actions.size(1)),
        width(actions.size(2)) {}
  std::int64_t chunk() const { return rows * width; }
};

/// The factor that makes a sum over draws, rows and elements of a sample the mean over those with weight.
float mean_factor(const float* weight, const ChunkSizes& s) {
  float rows_with_weight = 0.0F;
  for (std::int64_t n = 0; n < s.rows; ++n) rows_with_weight += weight[n];
  if (rows_with_weight == 0.0F) return 0.0F;
  return 1.0F / (rows_with_weight * static_cast<float>(s.width * s.draws));
}

/// Calls visit(element of predicted, difference to its target, weight of its row) for all elements of sample `s` that
/// count.
template <class T, class Visit>
void for_each_difference(const ChunkLoss& in, const ChunkSizes& sizes, std::int64_t s, Visit visit) {
  const float* a = rows::in<float>(in.actions) + s * sizes.chunk();
  const float* w = rows::in<float>(in.weight) + s * sizes.rows;
  for (std::int64_t d = 0; d < sizes.draws; ++d) {
    const auto draw = s * sizes.draws + d;
    const auto start = ((draw + 1) * in.predicted.size(1) - sizes.rows) * sizes.width;
    const T* p = rows::in<T>(in.predicted) + start;
    const float* e = rows::in<float>(in.noise) + draw * sizes.chunk();
    for (std::int64_t i = 0; i < sizes.chunk(); ++i) {
      const float target = in.flow ? e[i] - a[i] : e[i];
      visit(start + i, static_cast<float>(p[i]) - target, w[i / sizes.width]);
    }
  }
}

template <class T>
void fill_loss(const ChunkLoss& in, const ChunkSizes& sizes, Tensor& loss) {
  rows::each(sizes.samples, sizes.draws * sizes.chunk(), [&](std::int64_t s) {
    float total = 0.0F;
    for_each_difference<T>(in, sizes, s, [&](std::int64_t, float d, float w) { total += w * d * d; });
    rows::out<float>(loss)[s] = total * mean_factor(rows::in<float>(in.weight) + s * sizes.rows, sizes);
  });
}

template <class T>
void fill_loss_gradient(const ChunkLoss& in, const ChunkSizes& sizes, const Tensor& g, Tensor& d_predicted) {
  T* to = rows::out<T>(d_predicted);
  std::fill_n(to, d_predicted.numel(), static_cast<T>(0.0F));
  rows::each(sizes.samples, sizes.draws * sizes.chunk(), [&](std::int64_t s) {
    const float factor = mean_factor(rows::in<float>(in.weight) + s * sizes.rows, sizes);
    const float scale = 2.0F * rows::in<float>(g)[s] * factor;
    for_each_difference<T>(in, sizes, s,
                           [&](std::int64_t i, float d, float w) { to[i] = static_cast<T>(scale * w * d); });
  });
}

void fill_noisy(const Tensor& actions, const Tensor& noise, const Tensor& times, const Tensor& table, Tensor& result) {
  const ChunkSizes s(actions, noise);
  rows::each(noise.size(0), s.chunk(), [&](std::int64_t g) {
    const auto [signal, scale] = mixture_of(rows::in<float>(times)[g], table);
    const float* a = rows::in<float>(actions) + g / s.draws * s.chunk();
    const float* e = rows::in<float>(noise) + g * s.chunk();
    float* x = rows::out<float>(result) + g * s.chunk();
    for (std::int64_t i = 0; i < s.chunk(); ++i) x[i] = signal * a[i] + scale * e[i];
  });
}

void fill_times(const Tensor& times, double scale, Tensor& result) {
  const auto half = result.size(1) / 2;
  rows::each(times.size(0), result.size(1), [&](std::int64_t g) {
    const double time = scale * static_cast<double>(rows::in<float>(times)[g]);
    float* row = rows::out<float>(result) + g * result.size(1);
    for (std::int64_t i = 0; i < half; ++i) {
      const double angle = time * std::pow(10000.0, -static_cast<double>(i) / static_cast<double>(half));
      row[i] = static_cast<float>(std::cos(angle));
      row[half + i] = static_cast<float>(std::sin(angle));
    }
  });
}

RowSizes row_sizes(const Tensor& out, const Tensor& source, std::int64_t n, std::int64_t draws) {
  const std::int64_t groups = out.size(0) / n;
  return {groups, n, source.size(0) / groups, source.size(1), draws};
}

}  // namespace

void CpuKernels::modulated_norm_forward(const Tensor& x, const Tensor& shift, const Tensor& scale, Tensor& y,
                                        Tensor& inverse) const {
  rows::by_dtype(shift.scalar_type(), [&](auto t) { fill_norm<decltype(t)>(x, shift, scale, y, inverse); });
}

void CpuKernels::modulated_norm_backward(const Tensor& grad, const Tensor& x, const Tensor& scale,
                                         const Tensor& inverse, Tensor& dx, Tensor& dshift, Tensor& dscale) const {
  NormGradients d{dx, dshift, dscale};
  rows::by_dtype(grad.scalar_type(), [&](auto t) {
    rows::each(scale.size(0), x.numel() / scale.size(0),
               [&](std::int64_t k) { fill_norm_gradient<decltype(t)>(k, grad, x, scale, inverse, d); });
  });
}

void CpuKernels::gated_residual_forward(const Tensor& x, const Tensor& y, const Tensor& gate, Tensor& result) const {
  rows::by_dtype(y.scalar_type(), [&](auto t) { fill_residual<decltype(t)>(x, y, gate, result); });
}

void CpuKernels::gated_residual_backward(const Tensor& grad, const Tensor& y, const Tensor& gate, Tensor& dy,
                                         Tensor& dgate) const {
  rows::by_dtype(y.scalar_type(), [&](auto t) {
    rows::each(gate.size(0), y.numel() / gate.size(0),
               [&](std::int64_t k) { fill_gate_gradient<decltype(t)>(k, grad, y, gate, dy, dgate); });
  });
}

void CpuKernels::embed_rows_forward(const Tensor& source, const Tensor& lead, const Tensor& positions,
                                    std::int64_t draws, Tensor& result) const {
  const RowSizes s = row_sizes(result, source, positions.size(0), draws);
  rows::by_dtype(source.scalar_type(),
                 [&](auto t) { fill_embed_rows<decltype(t)>(source, lead, positions, result, s); });
}

void CpuKernels::embed_rows_backward(const Tensor& grad, std::int64_t draws, Tensor& drows, Tensor& dlead,
                                     Tensor& dpositions) const {
  const RowSizes s = row_sizes(grad, drows, dpositions.size(0), draws);
  rows::by_dtype(drows.scalar_type(), [&](auto t) {
    fill_row_gradient<decltype(t)>(grad, drows, s);
    if (dlead.defined()) fill_lead_gradient<decltype(t)>(grad, dlead, s);
  });
  fill_position_gradient(grad, dpositions, s);
}

void CpuKernels::embed_context_forward(const Tensor& tokens, const Tensor& sensors, const Tensor& table,
                                       const ContextRows& of, Tensor& result, Tensor& inverse) const {
  rows::by_dtype(tokens.scalar_type(), [&](auto t) {
    using T = decltype(t);
    fill_context<T>(tokens, of.token_rows, table, of.positions, result, inverse);
    if (sensors.defined()) fill_context<T>(sensors, of.sensor_rows, table, of.positions, result, inverse);
  });
}

void CpuKernels::embed_context_backward(const Tensor& grad, const Tensor& result, const Tensor& inverse,
                                        const ContextRows& of, Tensor& dtokens, Tensor& dsensors,
                                        Tensor& dtable) const {
  dtable.zero_();
  rows::by_dtype(grad.scalar_type(), [&](auto t) {
    using T = decltype(t);
    fill_context_gradient<T>(grad, result, inverse, of.token_rows, of.positions, dtokens, dtable);
    if (dsensors.defined())
      fill_context_gradient<T>(grad, result, inverse, of.sensor_rows, of.positions, dsensors, dtable);
  });
}

void CpuKernels::add_noise(const Tensor& actions, const Tensor& noise, const Tensor& times, const Tensor& mixtures,
                           Tensor& result) const {
  fill_noisy(actions, noise, times, mixtures, result);
}

void CpuKernels::embed_times(const Tensor& times, double scale, Tensor& result) const {
  fill_times(times, scale, result);
}

void CpuKernels::chunk_loss_forward(const ChunkLoss& of, Tensor& losses) const {
  rows::by_dtype(of.predicted.scalar_type(),
                 [&](auto t) { fill_loss<decltype(t)>(of, ChunkSizes(of.actions, of.noise), losses); });
}

void CpuKernels::chunk_loss_backward(const ChunkLoss& of, const Tensor& grad, Tensor& dpredicted) const {
  rows::by_dtype(of.predicted.scalar_type(), [&](auto t) {
    fill_loss_gradient<decltype(t)>(of, ChunkSizes(of.actions, of.noise), grad, dpredicted);
  });
}

}  // namespace plimsoll::model::cpu
