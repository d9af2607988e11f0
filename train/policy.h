#pragma once
// A model that acts: observations in, chunks of actions out. Nothing of training is around it: no plan, no gradients,
// and what the device has free in place of memory.budget.

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <vector>

#include "data/closed_loop.h"
#include "train/action_error.h"
#include "train/config.h"

namespace plimsoll::train {

/// The newest complete checkpoint of the configuration's run. Throws Error(kCheckpoint) naming the folder where there
/// is none.
std::filesystem::path newest_checkpoint_of(const Config& config);

struct PolicyOptions {
  std::uint64_t seed = 0;           ///< of the noise that sampled actions start from
  std::int64_t sampling_steps = 0;  ///< denoising steps; 0: expert.sampling_steps
};

/// Untrained until read(). One thread. What it sees goes through the dataset's own source (data/lerobot_source.h), and
/// what it does comes back through the same statistics.
class Policy {
 public:
  /// Opens run.device and, for mapping and statistics, the datasets of data.path or data.mix, of which it acts for the
  /// first, and loads the model with its initial weights. The first of the process to make a tensor (train/device.h).
  /// Throws Error(kUsage) where the configuration has no dataset, else as device, source and model do.
  Policy(const Config& config, const PolicyOptions& options);
  ~Policy();

  /// Takes the weights of a checkpoint and returns its step. Throws Error(kCheckpoint) as read_checkpoint() does, and
  /// Error(kUsage) when it was written under settings that learn something else than the configuration's.
  std::int64_t read(const std::filesystem::path& checkpoint);

  /// For each query expert.chunk actions in the dataset's units, row-major: data::PredictChunks. Their noise depends on
  /// the seed, the episode and the step, so that an answer is the same whatever else is asked with it, up to the order
  /// of summation. As many are computed at once as the memory lets. Throws Error(kMemory) when one alone does not fit.
  std::vector<std::vector<float>> chunks(std::span<const data::PolicyQuery> queries) const;

  /// As training measures it (train/evaluate.h), on `count` held-out samples of the configuration's datasets: of its
  /// own weights by the same noise, so that policies can be compared on the same samples, whatever each was trained on.
  /// All zeros when nothing is held out. Throws as chunks() and the source do.
  ActionError action_error(std::int64_t count) const;

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace plimsoll::train
