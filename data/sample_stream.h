#pragma once
// The order in which samples are seen: an endless stream that runs across epoch ends, so that every step has exactly B
// samples.

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "data/turns.h"

namespace plimsoll::data {

/// Positions [begin, end) of the stream.
struct StreamRange {
  std::uint64_t begin = 0, end = 0;
};

/// What a stream draws.
struct StreamOrder {
  std::vector<std::int64_t> samples;  ///< not empty
  std::uint64_t seed = 0;
  /// Of the samples, in the same order, each below target.size(); empty: all are of one type.
  std::vector<std::uint8_t> types;
  /// Parts of the stream that each type has, all together kWholeTarget; empty with `types`: as the samples have them.
  std::vector<std::int64_t> target;
  /// Of the samples, in the same order, each below weights.size(); empty: datasets make no difference.
  std::vector<std::uint16_t> datasets{};
  /// How often each dataset is drawn beside the others, above 0 and finite; empty with `datasets`.
  std::vector<double> weights{};
};
inline constexpr std::int64_t kWholeTarget = 10000;

/// A seeded permutation of the samples per epoch, one after another. With a target each type has a stream of its own,
/// of permutations of its samples (passes), and the draws are dealt to the types (data/turns.h): of the first n draws
/// of the stream each type has its part of n, to less than one draw for each type there is. With weights a type's draws
/// are dealt to its datasets likewise, those that have samples of it, each of which has a stream of its own then: of
/// the first n draws a type's dataset has the type's part times its weight by theirs, to a ten-thousandth of the type's
/// and less than one draw for each pair of type and dataset. Weights move no draw from a type to another. An epoch is
/// as many draws as there are samples, then. The only state is a position, so resuming needs nothing more. One thread.
class SampleStream {
 public:
  /// Throws Error(kUsage) for a type with a part and no samples. `ahead`: so many passes ahead of where the stream is
  /// next_draw() is asked for; each is 8 bytes a sample.
  explicit SampleStream(std::shared_ptr<const StreamOrder> order, int ahead = 1);
  SampleStream(std::vector<std::int64_t> samples, std::uint64_t seed);

  std::int64_t epoch_length() const { return static_cast<std::int64_t>(order_->samples.size()); }
  /// The sample at `position`.
  std::int64_t at(std::uint64_t position);
  /// The position at which that sample is drawn next.
  std::uint64_t next_draw(std::uint64_t position);
  /// How often a sample can be drawn within a step of so many samples at most.
  std::int64_t most_draws_in_a_step(std::int64_t effective_batch) const;

 private:
  using Local = std::uint32_t;  // number of a sample within its class
  struct Pass {
    std::vector<Local> order, places;  ///< places: of each sample in it; made when it is asked for
  };
  /// Samples that come in passes of their own: a type's, of one dataset where these have weights.
  struct Class {
    std::vector<std::int64_t> samples;
    std::map<std::uint64_t, Pass> passes;  ///< the newest few: a step may reach across
  };
  struct Draw {
    std::size_t type = 0, dataset = 0;
    std::uint64_t number = 0;  ///< of the class's draws
  };
  static std::vector<std::int64_t> parts_of_types(const StreamOrder& order);
  void sort_into_classes();
  std::vector<std::int64_t> parts_of_datasets(std::size_t type) const;
  std::size_t class_of(std::size_t type, std::size_t dataset) const { return type * datasets_ + dataset; }
  std::size_t class_of(const Draw& draw) const { return class_of(draw.type, draw.dataset); }
  Draw draw_at(std::uint64_t position) const;
  Pass& pass(std::size_t number_of_class, std::uint64_t number);

  std::shared_ptr<const StreamOrder> order_;
  std::size_t most_passes_;  ///< of a class that are kept
  std::size_t datasets_;     ///< that have weights; 1: no difference
  Turns types_;              ///< of the draws
  std::vector<Class> classes_;
  std::vector<Turns> datasets_of_;  ///< of a type's draws, by type
};

/// Step `step` (from 1) draws positions [(step - 1) B, step B); this rank's part of them. Shares are contiguous, in
/// rank order, and differ by at most one sample.
StreamRange share_of_step(std::int64_t step, std::int64_t effective_batch, int rank, int world);

/// How often one of `samples` samples can be drawn within a step at most, all being of one type: once in each epoch
/// that a step reaches into.
std::int64_t most_draws_in_a_step(std::int64_t samples, std::int64_t effective_batch);

}  // namespace plimsoll::data
