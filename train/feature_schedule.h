#pragma once
// When the features of a sample are needed: which draws of the sample stream run the whole model whatever is known, and
// which draw of this rank reads them next. Follows from the stream alone, so that ranks agree without a word.

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
  /// So many passes over the data are looked through for this rank's next draw of a sample: of 2 ranks one draws it
  /// within four passes 15 times of 16. What is needed later counts as not needed.
  static constexpr int kMostAhead = 6;
  /// Of the ranks that draw, one is this.
  struct Place {
    int rank = 0, world = 1;
  };

  /// Of what a run's stream draws of a source with so many samples. `ages`: cache.live_fraction of each step's draws
  /// are live.
  FeatureSchedule(const Config& config, std::shared_ptr<const data::StreamOrder> order, std::int64_t samples, bool ages,
                  Place place);
  FeatureSchedule(const FeatureSchedule&) = delete;
  FeatureSchedule& operator=(const FeatureSchedule&) = delete;

  /// Positions that this rank draws in a step, ascending.
  std::vector<std::uint64_t> share_of(std::int64_t step) const;
  /// Whether the draw at `position` runs the whole model.
  bool is_live(std::uint64_t position) const;
  /// The position at which this rank next draws the sample that is drawn at `position`; the largest number where that
  /// is no time soon, or where the sample is live before, on whichever rank: what is made by then replaces what is
  /// there.
  std::uint64_t next_read(std::uint64_t position) const;
  /// Of several draws of a sample in one step, whether this is the last one: its features are kept. Which that is, no
  /// plan and no number of ranks changes.
  bool is_last_in_step(std::uint64_t position) const;

 private:
  std::vector<std::uint64_t> dealt(std::int64_t step) const;
  bool is_own(std::uint64_t position) const;

  bool ages_;
  std::int64_t batch_;
  Place place_;
  int ahead_;
  mutable std::mutex mutex_;  ///< of what follows: looking up remembers
  mutable data::SampleStream stream_;
  mutable cache::LiveSamples live_;  ///< where features age
  mutable std::vector<bool> own_;    ///< likewise: by position, of all steps that were dealt so far
};

}  // namespace plimsoll::train
