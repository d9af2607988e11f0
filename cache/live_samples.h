#pragma once
// Which samples of a step run the VLM in cache.mode "hybrid", and how they are dealt to the ranks. A function of the
// sample stream and the fraction alone: the world size, the plan and a resumption change nothing. Pure, without torch.

#include <cstdint>
#include <functional>
#include <vector>

namespace plimsoll::cache {

/// Parts per million, so that counts are exact: 0.25 is 250000.
inline constexpr std::int64_t kWholeFraction = 1'000'000;

/// Live samples of step `step` (from 1): floor or ceiling of fraction x batch by error diffusion; those of the first s
/// steps together are floor(s x fraction x batch).
std::int64_t live_count(std::int64_t step, std::int64_t fraction, std::int64_t batch);

/// Chooses step after step; a step that lies behind is remembered. Of the samples that a step draws those are live that
/// are furthest behind their fraction of their draws, so that every sample is live equally often. One thread.
class LiveSamples {
 public:
  /// `at(position)`: the sample that the stream draws there, 0 .. samples - 1. `fraction` in 0 .. kWholeFraction.
  LiveSamples(std::function<std::int64_t(std::uint64_t)> at, std::int64_t samples, std::int64_t batch,
              std::int64_t fraction);

  /// Whether the draw at `position` of the stream is to be live.
  bool at(std::uint64_t position);
  /// Positions of the step, [(step - 1) batch, step x batch), that are live, ascending.
  std::vector<std::uint64_t> of_step(std::int64_t step);

 private:
  void choose_next();

  struct Count {
    std::uint32_t drawn = 0, live = 0;
  };
  std::function<std::int64_t(std::uint64_t)> sample_at_;
  std::int64_t batch_, fraction_;
  std::vector<Count> counts_;
  std::vector<bool> live_;  ///< by position, of all steps chosen so far
};

/// The positions of the step that `rank` gets, ascending: the first ranks have one more where it does not come out
/// even, and live ones are dealt so that their counts differ by no more than one, which ranks have more changing from
/// step to step.
std::vector<std::uint64_t> dealt_share(std::int64_t step, std::int64_t batch, const std::vector<std::uint64_t>& live,
                                       int rank, int world);

}  // namespace plimsoll::cache
