#pragma once
// [tasks]: which type each training sample is of, how often each type is drawn and how much it counts. Without torch.

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "data/sample_source.h"
#include "data/sample_stream.h"
#include "train/config.h"

namespace plimsoll::train {

/// Types in the order in which settings list them; the same on every rank.
struct TaskTypes {
  static constexpr std::size_t kMost = 8;

  std::vector<std::string> names;       ///< empty: tasks.by = "off", and everything is of one type
  std::vector<std::uint8_t> of_sample;  ///< by number of the source; of training samples only
  std::vector<std::int64_t> target;     ///< parts of data::kWholeTarget; empty: as the samples have them
  std::vector<double> drawn;            ///< parts of the stream, where datasets have weights and types no target
  std::vector<std::int64_t> samples;    ///< of each type, that are trained on
  std::vector<double> weights;          ///< of the loss, tasks.weights
  bool normalise = false;               ///< tasks.normalise

  bool any() const { return !names.empty(); }
  std::size_t type_of(std::int64_t index) const { return any() ? of_sample[static_cast<std::size_t>(index)] : 0; }
  /// Part of the stream that a type has.
  double part_of(std::size_t type) const;
};
/// Throws Error(kUsage) naming the key: more than kMost types, a sample of no type, a rule about what these samples do
/// not have, a target or weights that do not fit the types, a type with a part and no samples, weights of datasets that
/// decide nothing. Throws Error(kData) as data::SampleSource::column() does.
TaskTypes task_types(const TaskConfig& config, const data::SampleSource& source);

/// What the stream of a run draws: types by their target, each from the datasets by their weights.
std::shared_ptr<const data::StreamOrder> stream_order(const TaskTypes& types, const data::SampleSource& source,
                                                      std::uint64_t seed);

/// How much each sample of a step counts: a sample adds weight x loss / B. `counts`: samples of each type in the step,
/// over all ranks. Without normalisation the type's weight; with it, B x part / count times that, so that each type
/// present has its part of the loss however many samples of it were drawn. `balance`: GradNorm's weights, or empty.
std::vector<double> type_weights(const TaskTypes& types, std::span<const std::int64_t> counts,
                                 std::span<const double> balance);

}  // namespace plimsoll::train
