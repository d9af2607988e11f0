#include "tests/train/tiny_run.h"

#include <cmath>
#include <filesystem>

namespace plimsoll::train {

void write_tiny_model(const std::string& dir) {
  std::filesystem::remove_all(dir);
  model::write_random_checkpoint(model::init_config("tiny"), {dir, 7, false});
}

Config tiny_config(const std::string& dir) {
  Config config;
  config.run.dir = dir + "-run";
  config.run.seed = 3;
  config.model = {dir, "fp32", ""};
  config.lora.rank = 4;
  config.expert = {"ddpm", 48, 2, 4, 2, 4, 100, 4};
  config.sensor.window = 8;
  config.data.synthetic_samples = 40;
  config.batch.effective = 6;
  config.memory.budget = "4GiB";
  config.memory.recompute = "none";
  config.memory.policy = "reactive";
  config.train.max_steps = 4;
  config.train.lr = 1e-3;
  config.train.vl_lr = 1e-3;
  return config;
}

Trained train_steps(Session& session, int steps) {
  Trained trained;
  std::vector<std::shared_ptr<const Sample>> hold;
  for (int step = 1; step <= steps; ++step) {
    const auto samples = session.load_share(step, hold);
    StepInput input;
    input.step = step;
    input.updates = step - 1;
    input.samples = samples;
    input.plan = session.plan;
    trained.losses.push_back(session.step->run(input).loss);
  }
  const auto values = session.buffers->parameters();
  trained.values.assign(values.begin(), values.end());
  return trained;
}

double relative_l2(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return 1e9;
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference += std::pow(static_cast<double>(a[i]) - b[i], 2);
    norm += std::pow(static_cast<double>(b[i]), 2);
  }
  return std::sqrt(difference / norm);
}

}  // namespace plimsoll::train
