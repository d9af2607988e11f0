#include <gtest/gtest.h>
#include <torch/torch.h>

#include "train/adamw.h"
#include "train/schedule.h"

namespace plimsoll::train {
namespace {

TEST(AdamW, FollowsTorchsOptimiser) {
  torch::manual_seed(1);
  auto parameter = torch::randn({1000}).requires_grad_(true);
  torch::optim::AdamW oracle({parameter}, torch::optim::AdamWOptions(1e-2).weight_decay(0.1));
  std::vector<float> p(parameter.data_ptr<float>(), parameter.data_ptr<float>() + 1000), m(1000), v(1000);
  for (int step = 1; step <= 20; ++step) {
    const auto gradient = torch::randn({1000});
    parameter.mutable_grad() = gradient.clone();
    oracle.step();
    adamw_update(p, {gradient.data_ptr<float>(), 1000}, m, v, adamw_factors({1e-2, 0.9, 0.999, 1e-8, 0.1}, step, 1.0F));
  }
  const auto ours = torch::from_blob(p.data(), {1000});
  EXPECT_LT(((ours - parameter).norm() / parameter.norm()).item<double>(), 1e-6);
}

TEST(AdamW, ScalesTheGradientAsItIsRead) {
  std::vector<float> a{1.0F}, b{1.0F}, m1(1), v1(1), m2(1), v2(1);
  adamw_update(a, std::vector<float>{4.0F}, m1, v1, adamw_factors({}, 1, 0.5F));
  adamw_update(b, std::vector<float>{2.0F}, m2, v2, adamw_factors({}, 1, 1.0F));
  EXPECT_EQ(a, b);
  EXPECT_EQ(m1, m2);
}

TEST(Norm, DoesNotDependOnTheNumberOfThreads) {
  std::vector<float> values(1000003);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i % 977) * 1e-3F;
  at::set_num_threads(1);
  const double one = l2_norm(values);
  at::set_num_threads(2);
  EXPECT_EQ(l2_norm(values), one);
  at::set_num_threads(1);
  EXPECT_NEAR(l2_norm(std::vector<float>{3.0F, 4.0F}), 5.0, 1e-12);
}

TEST(Schedule, RisesThenFallsAlongACosine) {
  EXPECT_DOUBLE_EQ(learning_rate_factor(0, 4, 100), 0.25);
  EXPECT_DOUBLE_EQ(learning_rate_factor(3, 4, 100), 1.0);
  EXPECT_DOUBLE_EQ(learning_rate_factor(4, 4, 100), 1.0);
  EXPECT_NEAR(learning_rate_factor(52, 4, 100), 0.5, 1e-12);
  EXPECT_NEAR(learning_rate_factor(100, 4, 100), 0.0, 1e-12);
  EXPECT_DOUBLE_EQ(learning_rate_factor(0, 0, 10), 1.0);
}

}  // namespace
}  // namespace plimsoll::train
