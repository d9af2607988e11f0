#pragma once
// How far sampled actions are from the expert's on held-out samples, and how sure that is.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "core/sample.h"
#include "ddp/communicator.h"

namespace plimsoll::train {

/// Errors per element of unpadded actions, in normalised units, over `samples` held-out samples of all ranks, which are
/// of so many episodes.
struct ActionError {
  std::int64_t samples = 0, episodes = 0;
  double sampled = 0.0;        ///< root mean square of (sampled action - expert's action)
  double best_constant = 0.0;  ///< the same for the one action that is best on these very samples: their mean
  /// Half of their 95 % intervals. Samples of one episode are alike, so an episode is one observation, however many of
  /// its samples are measured on: the intervals follow from how episodes differ, taken as normal. 0 of fewer than two.
  double sampled_margin = 0.0, constant_margin = 0.0;
};

/// To one held-out sample.
struct Answer {
  std::size_t episode = 0;     ///< that the sample is of, from 0 among those that are measured on
  std::vector<float> wanted;   ///< the expert's unpadded actions, [rows, dims] row-major
  double squared_error = 0.0;  ///< of the sampled ones, summed over all of these
};

/// `predicted`: the sampled actions, [chunk, dims] row-major, padded rows included.
Answer answer_to(const Sample& sample, std::size_t episode, std::span<const float> predicted, std::size_t dims);

/// What this rank's answers and those of the others come to. `episodes` (above every Answer::episode) and `dims` are
/// equal on all ranks. Collective.
ActionError action_error(std::span<const Answer> answers, std::size_t episodes, std::size_t dims,
                         ddp::Communicator& communicator);

}  // namespace plimsoll::train
