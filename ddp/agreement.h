#pragma once
// From all ranks' reports of one step to what everybody does with it. Pure and equal on every rank: each computes it
// from the same reports, so nothing more has to be sent. Any thread.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "ddp/report.h"

namespace plimsoll::ddp {

enum class Action {
  kApply,   ///< clip, update, advance the sampler
  kReplay,  ///< a rank could not finish its samples: nobody updates, the plan escalates, the same samples again
  kSkip,    ///< somewhere a value is not finite: nobody updates, nothing is replayed, the sampler advances
};

/// What the verdict of a step depends on besides its reports. Kept by the trainer, saved with the checkpoint.
struct AgreementState {
  int skips_in_row = 0;  ///< steps skipped since the last update; a replay in between does not count and does not clear
  int replays_in_row = 0;  ///< replays of the step that is due now
  friend bool operator==(const AgreementState&, const AgreementState&) = default;
};

/// This many skipped steps in a row end the job with Error(kData).
inline constexpr int kMostSkipsInRow = 3;

struct Verdict {
  Action action = Action::kApply;
  bool stop = false;  ///< at least one rank was asked to stop: all write a checkpoint now, after `action`, and leave
  std::vector<int> ranks;  ///< the ranks that failed (kReplay) or were not finite (kSkip)
  AgreementState next;     ///< the state for the next call
  std::string text;        ///< a line for a person; empty for an ordinary kApply without a stop
};

/// Judges one step. Precedence, highest first:
///   1. plan hashes differ, then weight hashes differ: Error(kUsage) naming the ranks that deviate from the majority
///   (in a tie
///      from the side with the lowest rank) and both values. Such ranks must not train on.
///   2. any rank failed: kReplay, also when another was not finite (its samples come again anyway).
///   3. any rank not finite: kSkip; the third in a row throws Error(kData) naming rank and sample.
///   4. else kApply, which clears both counts.
/// A stop changes none of these: it is taken by all ranks at this same step, after the action, except that an Error
/// comes first. Throws Error(kUsage) when `reports` is empty.
Verdict agree(std::span<const Report> reports, const AgreementState& before);

}  // namespace plimsoll::ddp
