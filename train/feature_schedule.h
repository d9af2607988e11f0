#pragma once
// When the features of a sample are needed: which draws of the sample stream run the whole model whatever is known, and
// which draw reads them next. Follows from the stream alone, so that ranks agree without a word.

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "cache/live_samples.h"
#include "data/sample_stream.h"
#include "train/config.h"

namespace plimsoll::train {

/// Any thread.
class FeatureSchedule {
 public:
  /// Of what a run's stream draws of a source with so many samples. `ages`: cache.live_fraction of each step's draws
  /// are live.
  FeatureSchedule(const Config& config, std::shared_ptr<const data::StreamOrder> order, std::int64_t samples,
                  bool ages);
  FeatureSchedule(const FeatureSchedule&) = delete;
  FeatureSchedule& operator=(const FeatureSchedule&) = delete;

  /// Positions that a rank draws in a step.
  std::vector<std::uint64_t> share_of(std::int64_t step, int rank, int world) const;
  /// Whether the draw at `position` runs the whole model.
  bool is_live(std::uint64_t position) const;
  /// The position at which the sample that is drawn at `position` is drawn next; the largest number where that draw is
  /// live: it reads nothing, and what is made by then replaces what is there.
  std::uint64_t next_read(std::uint64_t position) const;
  /// Of several draws of a sample in one step, whether this is the last one: its features are kept. Which that is, no
  /// plan and no number of ranks changes.
  bool is_last_in_step(std::uint64_t position) const;

 private:
  bool ages_;
  std::int64_t batch_;
  mutable std::mutex mutex_;  ///< of what follows: looking up remembers
  mutable data::SampleStream stream_;
  mutable cache::LiveSamples live_;  ///< where features age
};

}  // namespace plimsoll::train
