#include "model/diffusion.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>

#include "model/ops_node.h"
#include "model/row_kernels.h"

namespace plimsoll::model {
namespace {

double cosine_signal(double t) {
  const double c = std::cos((t + 0.008) / 1.008 * std::numbers::pi / 2);
  return c * c;
}

Tensor mixture_table(const std::vector<double>& alphas, at::Device device) {
  std::vector<float> table;
  for (const double a : alphas) {
    table.push_back(static_cast<float>(std::sqrt(a)));
    table.push_back(static_cast<float>(std::sqrt(1.0 - a)));
  }
  const auto host = torch::from_blob(table.data(), {static_cast<std::int64_t>(alphas.size()), 2}, at::kFloat);
  Tensor result = at::empty(host.sizes(), host.options().device(device));
  if (!result.is_meta()) result.copy_(host);
  return result;
}

/// signal and noise scale of one draw.
std::array<float, 2> mixture_of(float time, const Tensor& table) {
  if (!table.defined()) return {1.0F - time, time};
  const auto step = static_cast<std::int64_t>(time);
  if (!(time >= 0.0F) || step >= table.size(0)) {
    fail(ExitCode::kData, "diffusion step {} is outside the schedule of {} steps (expert.diffusion_steps)", time,
         table.size(0));
  }
  const float* row = table.const_data_ptr<float>() + 2 * step;
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

struct LossInputs {
  Tensor predicted, actions, noise, weight;
  bool flow;
};

/// Calls visit(element of predicted, difference to its target, weight of its row) for all elements of sample `s` that
/// count.
template <class T, class Visit>
void for_each_difference(const LossInputs& in, const ChunkSizes& sizes, std::int64_t s, Visit visit) {
  const float* a = in.actions.const_data_ptr<float>() + s * sizes.chunk();
  const float* w = in.weight.const_data_ptr<float>() + s * sizes.rows;
  for (std::int64_t d = 0; d < sizes.draws; ++d) {
    const auto draw = s * sizes.draws + d;
    const auto start = ((draw + 1) * in.predicted.size(1) - sizes.rows) * sizes.width;
    const T* p = in.predicted.const_data_ptr<T>() + start;
    const float* e = in.noise.const_data_ptr<float>() + draw * sizes.chunk();
    for (std::int64_t i = 0; i < sizes.chunk(); ++i) {
      const float target = in.flow ? e[i] - a[i] : e[i];
      visit(start + i, static_cast<float>(p[i]) - target, w[i / sizes.width]);
    }
  }
}

template <class T>
void fill_loss(const LossInputs& in, const ChunkSizes& sizes, Tensor& loss) {
  rows::each(sizes.samples, sizes.draws * sizes.chunk(), [&](std::int64_t s) {
    float total = 0.0F;
    for_each_difference<T>(in, sizes, s, [&](std::int64_t, float d, float w) { total += w * d * d; });
    loss.mutable_data_ptr<float>()[s] = total * mean_factor(in.weight.const_data_ptr<float>() + s * sizes.rows, sizes);
  });
}

template <class T>
void fill_loss_gradient(const LossInputs& in, const ChunkSizes& sizes, const Tensor& g, Tensor& d_predicted) {
  T* to = d_predicted.mutable_data_ptr<T>();
  std::fill_n(to, d_predicted.numel(), static_cast<T>(0.0F));
  rows::each(sizes.samples, sizes.draws * sizes.chunk(), [&](std::int64_t s) {
    const float factor = mean_factor(in.weight.const_data_ptr<float>() + s * sizes.rows, sizes);
    const float scale = 2.0F * g.const_data_ptr<float>()[s] * factor;
    for_each_difference<T>(in, sizes, s,
                           [&](std::int64_t i, float d, float w) { to[i] = static_cast<T>(scale * w * d); });
  });
}

class DiffusionLossNode final : public OpNode<4> {
 public:
  void keep(const LossInputs& in) {
    save(0, in.predicted);
    save(1, in.actions);
    save(2, in.noise);
    save(3, in.weight);
    flow_ = in.flow;
  }

 protected:
  variable_list backward(const variable_list& grads) override {
    const LossInputs in{saved(0), saved(1), saved(2), saved(3), flow_};
    const Tensor g = grads[0].contiguous();
    Tensor d_predicted = make_like(in.predicted);
    if (!g.is_meta()) {
      rows::by_dtype(in.predicted.scalar_type(), [&](auto t) {
        fill_loss_gradient<decltype(t)>(in, ChunkSizes(in.actions, in.noise), g, d_predicted);
      });
    }
    return {d_predicted};
  }

 private:
  bool flow_ = false;
};

void fill_noisy(const Tensor& actions, const Tensor& noise, const Tensor& times, const Tensor& table, Tensor& result) {
  const ChunkSizes s(actions, noise);
  rows::each(noise.size(0), s.chunk(), [&](std::int64_t g) {
    const auto [signal, scale] = mixture_of(times.const_data_ptr<float>()[g], table);
    const float* a = actions.const_data_ptr<float>() + g / s.draws * s.chunk();
    const float* e = noise.const_data_ptr<float>() + g * s.chunk();
    float* x = result.mutable_data_ptr<float>() + g * s.chunk();
    for (std::int64_t i = 0; i < s.chunk(); ++i) x[i] = signal * a[i] + scale * e[i];
  });
}

void fill_times(const Tensor& times, double scale, Tensor& result) {
  const auto half = result.size(1) / 2;
  rows::each(times.size(0), result.size(1), [&](std::int64_t g) {
    const double time = scale * static_cast<double>(times.const_data_ptr<float>()[g]);
    float* row = result.mutable_data_ptr<float>() + g * result.size(1);
    for (std::int64_t i = 0; i < half; ++i) {
      const double angle = time * std::pow(10000.0, -static_cast<double>(i) / static_cast<double>(half));
      row[i] = static_cast<float>(std::cos(angle));
      row[half + i] = static_cast<float>(std::sin(angle));
    }
  });
}

}  // namespace

std::vector<double> cosine_alphas(int steps) {
  std::vector<double> alphas;
  double product = 1.0;
  for (int i = 0; i < steps; ++i) {
    const double ratio = cosine_signal((i + 1.0) / steps) / cosine_signal(static_cast<double>(i) / steps);
    product *= 1.0 - std::min(1.0 - ratio, 0.999);
    alphas.push_back(product);
  }
  return alphas;
}

Diffusion::Diffusion(bool flow, int steps, double clip, at::Device device) : flow_(flow), clip_(clip) {
  if (steps < 1) fail(ExitCode::kUsage, "expert.diffusion_steps is {}, but must be at least 1", steps);
  if (!(clip >= 0)) fail(ExitCode::kUsage, "expert.clip is {}, but must be 0 (no bound) or above", clip);
  if (flow) return;
  alphas_ = cosine_alphas(steps);
  mixtures_ = mixture_table(alphas_, device);
}

Tensor Diffusion::add_noise(const Tensor& actions, const Tensor& noise, const Tensor& timesteps) const {
  Tensor result = at::empty(noise.sizes(), noise.options());
  if (!result.is_meta()) fill_noisy(actions, noise, timesteps, mixtures_, result);
  return result;
}

Tensor Diffusion::loss(const Tensor& predicted, const Tensor& actions, const Tensor& noise,
                       const Tensor& weight) const {
  const LossInputs in{predicted, actions, noise, weight, flow_};
  Tensor losses = make({actions.size(0)}, at::kFloat, actions);
  if (!losses.is_meta()) {
    rows::by_dtype(predicted.scalar_type(),
                   [&](auto t) { fill_loss<decltype(t)>(in, ChunkSizes(actions, noise), losses); });
  }
  if (!wants_graph(predicted)) return losses;
  auto node = make_node<DiffusionLossNode>(predicted);
  node->keep(in);
  torch::autograd::set_history(losses, node);
  return losses;
}

std::vector<double> Diffusion::sampling_times(int steps) const {
  const int most = flow_ ? steps : static_cast<int>(alphas_.size());
  if (steps < 1 || steps > most) {
    fail(ExitCode::kUsage, "expert.sampling_steps is {}, but must be between 1 and expert.diffusion_steps ({})", steps,
         alphas_.size());
  }
  std::vector<double> times;
  for (int i = 0; i < steps; ++i) {
    times.push_back(flow_ ? 1.0 - static_cast<double>(i) / steps
                          : static_cast<double>((steps - 1 - i) * (most / steps)));
  }
  return times;
}

double Diffusion::alpha(double time) const { return alphas_[static_cast<std::size_t>(time)]; }

void Diffusion::step_back(Tensor& x, const Tensor& predicted, const std::vector<double>& times, std::size_t i) const {
  const bool last = i + 1 == times.size();
  if (flow_) {
    x.add_(predicted, (last ? 0.0 : times[i + 1]) - times[i]);
    return;
  }
  const double now = alpha(times[i]);
  const double next = last ? 1.0 : alpha(times[i + 1]);
  x.add_(predicted, -std::sqrt(1.0 - now)).mul_(1.0 / std::sqrt(now));  // the clean action that this noise implies
  if (clip_ > 0) x.clamp_(-clip_, clip_);
  x.mul_(std::sqrt(next)).add_(predicted, std::sqrt(1.0 - next));
}

Tensor Diffusion::embed_times(const Tensor& times, std::int64_t width) const {
  Tensor result = at::empty({times.size(0), width}, times.options());
  const double scale = flow_ ? 1000.0 : 1000.0 / static_cast<double>(alphas_.size());
  if (!result.is_meta()) fill_times(times, scale, result);
  return result;
}

}  // namespace plimsoll::model
