#include "model/diffusion.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>

#include "model/ops_node.h"

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

class DiffusionLossNode final : public OpNode<4> {
 public:
  void keep(const ChunkLoss& of) {
    save(0, of.predicted);
    save(1, of.actions);
    save(2, of.noise);
    save(3, of.weight);
    flow_ = of.flow;
  }

 protected:
  variable_list backward(const variable_list& grads) override {
    const Tensor predicted = saved(0), actions = saved(1), noise = saved(2), weight = saved(3);
    const Tensor g = grads[0].contiguous();
    Tensor d_predicted = make_like(predicted);
    kernels_for(g).chunk_loss_backward({predicted, actions, noise, weight, flow_}, g, d_predicted);
    return {d_predicted};
  }

 private:
  bool flow_ = false;
};

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
  kernels_for(noise).add_noise(actions, noise, timesteps, mixtures_, result);
  return result;
}

Tensor Diffusion::loss(const Tensor& predicted, const Tensor& actions, const Tensor& noise,
                       const Tensor& weight) const {
  const ChunkLoss of{predicted, actions, noise, weight, flow_};
  Tensor losses = make({actions.size(0)}, at::kFloat, actions);
  kernels_for(predicted).chunk_loss_forward(of, losses);
  if (!wants_graph(predicted)) return losses;
  auto node = make_node<DiffusionLossNode>(predicted);
  node->keep(of);
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
  kernels_for(times).embed_times(times, scale, result);
  return result;
}

}  // namespace plimsoll::model
