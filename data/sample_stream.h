#pragma once
// The order in which samples are seen: an endless stream that runs across epoch ends, so that every step has exactly B
// samples.

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

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
};
inline constexpr std::int64_t kWholeTarget = 10000;

/// A seeded permutation of the samples per epoch, one after another. With a target each type has a stream of its own,
/// of permutations of its samples (passes), and the draws are dealt to the types by error diffusion: of the first n
/// draws of the stream each type has its part of n, to less than one draw for each type there is. An epoch is as many
/// draws as there are samples, then. The only state is a position, so resuming needs nothing more. One thread.
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
  using Local = std::uint32_t;  // number of a sample within its type
  struct Pass {
    std::vector<Local> order, places;  ///< places: of each sample in it; made when it is asked for
  };
  struct Type {
    std::vector<std::int64_t> samples;
    std::int64_t part = 1;                 ///< of a period of the stream
    std::vector<std::uint32_t> positions;  ///< within a period, of each of its draws there
    std::map<std::uint64_t, Pass> passes;  ///< the newest few: a step may reach across
  };
  struct Draw {
    std::size_t type = 0;
    std::uint64_t number = 0;  ///< of the type's draws
  };
  void deal_out();
  Draw draw_at(std::uint64_t position) const;
  Pass& pass(std::size_t type, std::uint64_t number);

  std::shared_ptr<const StreamOrder> order_;
  std::size_t most_passes_;  ///< of a type that are kept
  std::vector<Type> types_;
  std::vector<std::uint8_t> type_at_;     ///< in a period of the stream
  std::vector<std::uint32_t> number_at_;  ///< of the type's draws before it in the period
};

/// Step `step` (from 1) draws positions [(step - 1) B, step B); this rank's part of them. Shares are contiguous, in
/// rank order, and differ by at most one sample.
StreamRange share_of_step(std::int64_t step, std::int64_t effective_batch, int rank, int world);

/// How often one of `samples` samples can be drawn within a step at most, all being of one type: once in each epoch
/// that a step reaches into.
std::int64_t most_draws_in_a_step(std::int64_t samples, std::int64_t effective_batch);

}  // namespace plimsoll::data
