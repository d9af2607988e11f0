// Schedules, losses and samplers: against their formulas, and on problems whose answer is known.

#include "model/diffusion.h"

#include <gtest/gtest.h>

#include <cmath>

#include "core/error.h"
#include "tests/model/event_recorder.h"

namespace plimsoll::model {
namespace {

TEST(CosineAlphas, FollowTheFormulaAndTheCap) {
  const auto alphas = cosine_alphas(100);
  ASSERT_EQ(alphas.size(), 100U);
  // While no beta is capped the product telescopes to f(t + 1) / f(0).
  const auto f = [](double t) { return std::pow(std::cos((t + 0.008) / 1.008 * M_PI / 2), 2); };
  for (const int t : {0, 10, 50, 90, 98}) EXPECT_NEAR(alphas[t], f((t + 1) / 100.0) / f(0), 1e-12) << t;
  EXPECT_NEAR(alphas[99] / alphas[98], 0.001, 1e-12);
  for (std::size_t t = 1; t < alphas.size(); ++t) EXPECT_LT(alphas[t], alphas[t - 1]);
}

TEST(Diffusion, AddNoiseMixesByTheStepOfEachDraw) {
  const Diffusion ddpm(false, 100, 0, at::kCPU), flow(true, 100, 0, at::kCPU);
  const auto alphas = cosine_alphas(100);
  const Tensor actions = at::randn({2, 3, 2}), noise = at::randn({4, 3, 2});
  const Tensor steps = torch::tensor({0.0F, 99.0F, 17.0F, 50.0F}), times = torch::tensor({0.001F, 1.0F, 0.25F, 0.5F});
  const Tensor x = ddpm.add_noise(actions, noise, steps), y = flow.add_noise(actions, noise, times);
  for (int g = 0; g < 4; ++g) {
    const double a = alphas[static_cast<std::size_t>(steps[g].item<float>())], t = times[g].item<float>();
    EXPECT_TRUE(at::allclose(x[g], std::sqrt(a) * actions[g / 2] + std::sqrt(1 - a) * noise[g], 1e-5, 1e-6)) << g;
    EXPECT_TRUE(at::allclose(y[g], (1 - t) * actions[g / 2] + t * noise[g], 1e-5, 1e-6)) << g;
  }
  EXPECT_THROW(ddpm.add_noise(actions, noise, torch::tensor({0.0F, 100.0F, 1.0F, 1.0F})), Error);
  EXPECT_THROW(ddpm.add_noise(actions, noise, torch::tensor({0.0F, NAN, 1.0F, 1.0F})), Error);
}

Tensor loss_reference(const Tensor& predicted, const Tensor& target, const Tensor& weight, std::int64_t draws) {
  const auto samples = weight.size(0), rows = weight.size(1), width = target.size(2);
  const Tensor d = (predicted.narrow(1, predicted.size(1) - rows, rows).to(at::kFloat) - target).square();
  const Tensor weighted = d.view({samples, draws, rows, width}) * weight.view({samples, 1, rows, 1});
  return weighted.sum({1, 2, 3}) / (weight.sum(1) * static_cast<double>(draws * width)).clamp_min(1e-20);
}

TEST(Diffusion, LossIsTheMeanOverDrawsAndUnmaskedElements) {
  at::manual_seed(3);
  for (const bool flow : {false, true}) {
    const Diffusion diffusion(flow, 100, 0, at::kCPU);
    const Tensor actions = at::randn({3, 4, 2}), noise = at::randn({6, 4, 2});
    const Tensor weight = torch::tensor({{1, 1, 1, 1}, {1, 1, 0, 0}, {0, 0, 0, 0}}).to(at::kFloat);
    const Tensor target = flow ? noise - actions.repeat_interleave(2, 0) : noise;
    const Tensor predicted = at::randn({6, 5, 2}).requires_grad_();
    const Tensor loss = diffusion.loss(predicted, actions, noise, weight);
    const Tensor expected = loss_reference(predicted, target, weight, 2);
    EXPECT_TRUE(at::allclose(loss, expected, 1e-5, 1e-6));
    EXPECT_EQ(loss[2].item<float>(), 0.0F);
    const Tensor g = torch::tensor({0.5F, 2.0F, 1.0F});
    const auto ours = torch::autograd::grad({loss}, {predicted}, {g}),
               theirs = torch::autograd::grad({expected}, {predicted}, {g});
    EXPECT_TRUE(at::allclose(ours[0], theirs[0], 1e-5, 1e-7));
  }
}

TEST(Diffusion, LossAllocatesTheSameOnMeta) {
  testing::install_recorder();
  for (const auto type : {at::kFloat, at::kBFloat16}) {
    const auto run = [&](at::Device device) {
      const Diffusion diffusion(false, 100, 0, device);
      const Tensor actions = at::zeros({3, 8, 4}).to(device), noise = at::zeros({6, 8, 4}).to(device);
      const Tensor weight = at::ones({3, 8}).to(device), times = at::zeros({6}).to(device);
      const Tensor predicted = at::zeros({6, 9, 4}, type).to(device).requires_grad_();
      return testing::events_of([&] {
        diffusion.add_noise(actions, noise, times);
        diffusion.embed_times(times, 256);
        diffusion.loss(predicted, actions, noise, weight).backward(at::zeros({3}).to(device));
      });
    };
    EXPECT_EQ(testing::difference(run(at::kCPU), run(at::kMeta)), "");
  }
}

/// Actions that are all `mean` with deviation `deviation`: then the best prediction of noise or velocity is linear in x
/// and known, and a sampler with many steps must end in that distribution.
Tensor sample_gaussian(bool flow, double mean, double deviation, int steps) {
  const Diffusion diffusion(flow, 100, 0, at::kCPU);
  const auto alphas = cosine_alphas(100);
  const auto times = diffusion.sampling_times(steps);
  Tensor x = at::randn({4000, 1, 1});
  for (std::size_t i = 0; i < times.size(); ++i) {
    const double a = flow ? 1 - times[i] : std::sqrt(alphas[static_cast<std::size_t>(times[i])]);
    const double b = flow ? times[i] : std::sqrt(1 - a * a);
    const double variance = a * a * deviation * deviation + b * b;
    const Tensor noise = b / variance * (x - a * mean);
    const Tensor clean = mean + a * deviation * deviation / variance * (x - a * mean);
    diffusion.step_back(x, flow ? noise - clean : noise, times, i);
  }
  return x;
}

TEST(Diffusion, SamplersReachAKnownDistribution) {
  at::manual_seed(1);
  for (const bool flow : {false, true}) {
    const Tensor x = sample_gaussian(flow, 1.5, 0.3, flow ? 400 : 100);
    EXPECT_NEAR(x.mean().item<float>(), 1.5, 0.03) << flow;
    EXPECT_NEAR(x.std().item<float>(), 0.3, 0.03) << flow;
  }
}

TEST(Diffusion, OneStepOfDdimFromKnownNoiseGivesTheAction) {
  const Diffusion ddpm(false, 100, 0, at::kCPU), clipped(false, 100, 1, at::kCPU);
  const Tensor action = torch::tensor({0.3F, -2.0F}).view({1, 1, 2}), noise = at::randn({1, 1, 2});
  const Tensor noisy = ddpm.add_noise(action, noise, torch::tensor({40.0F}));
  Tensor x = noisy.clone();
  ddpm.step_back(x, noise, {40.0}, 0);
  EXPECT_TRUE(at::allclose(x, action, 1e-4, 1e-5));
  x = noisy.clone();
  clipped.step_back(x, noise, {40.0}, 0);
  EXPECT_TRUE(at::allclose(x, action.clamp(-1, 1), 1e-4, 1e-5));
}

TEST(Diffusion, SamplingTimesFallAndRefuseNonsense) {
  const Diffusion ddpm(false, 100, 0, at::kCPU), flow(true, 100, 0, at::kCPU);
  EXPECT_EQ(ddpm.sampling_times(10), (std::vector<double>{90, 80, 70, 60, 50, 40, 30, 20, 10, 0}));
  EXPECT_EQ(flow.sampling_times(4), (std::vector<double>{1, 0.75, 0.5, 0.25}));
  EXPECT_THROW(ddpm.sampling_times(0), Error);
  EXPECT_THROW(ddpm.sampling_times(101), Error);
  EXPECT_THROW(Diffusion(false, 0, 0, at::kCPU), Error);
  EXPECT_THROW(Diffusion(false, 100, -1, at::kCPU), Error);
}

}  // namespace
}  // namespace plimsoll::model
