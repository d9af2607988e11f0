#pragma once
// A run small enough for tests: a tiny random VLM written once per process, synthetic samples, a few steps.

#include <string>

#include "model/init_model.h"
#include "train/session.h"

namespace plimsoll::train {

/// A configuration that trains on the model in `dir`: fp32, dropout on, LoRA, sensor, two draws, effective batch 6, no
/// memory pressure.
Config tiny_config(const std::string& dir);
/// Writes that model's checkpoint into `dir`, emptied first.
void write_tiny_model(const std::string& dir);

/// All trainable values, and the loss of each step.
struct Trained {
  std::vector<double> losses;
  std::vector<float> values;         ///< of all parameters, as they lie in the flat buffer
  std::vector<FlatSlot> slots = {};  ///< whose they are; may be empty
};
/// Runs `steps` steps of a session under its plan.
Trained train_steps(Session& session, int steps);

/// |a - b| / |b|.
double relative_l2(const std::vector<float>& a, const std::vector<float>& b);

}  // namespace plimsoll::train
