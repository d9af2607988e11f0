#pragma once
// Which candidates fit under given budgets: what choose(), the decisions and their reasons share. For the files of this
// folder. Pure.

#include <cstdint>
#include <optional>
#include <span>

#include "memory/planning/predictive.h"
#include "memory/planning/wide.h"

namespace plimsoll::memory {

/// What a candidate needs, corrected, on the rank whose budget it fills most.
struct Need {
  int rank = 0;
  std::int64_t bytes = 0;
  std::int64_t budget = 1;

  /// Compared exactly. Budgets below 1 count as 1.
  bool above(const Need& other) const { return wide(bytes) * wide(other.budget) > wide(other.bytes) * wide(budget); }
  /// Rounded down; for people.
  std::int64_t per_10000() const { return saturated(wide(bytes) * 10000 / wide(budget)); }
};

/// Looks at the table under the limits. Refers to all of its arguments.
class Fitting {
 public:
  Fitting(const CandidateTable& table, const ChoiceLimits& limits, const PolicyState& state);

  /// Corrected bytes at most `fraction` x budget on every rank.
  bool within(const Candidate& candidate, std::int64_t fraction) const;
  /// Whether a wait of it, or of a candidate that needs no more, is not over.
  bool waits(const Candidate& candidate) const { return blocked_ && candidate.bytes >= blocked_->bytes; }
  bool fits(const Candidate& candidate) const { return !waits(candidate) && within(candidate, limits_.target); }
  /// The step at which the wait that blocks most ends; only when one does.
  std::int64_t until_step() const { return blocked_ ? blocked_->until_step : 0; }

  /// On a table without budgets: a need of nothing.
  Need need(const Candidate& candidate) const;

  /// The first of the table that fits.
  const Candidate* best() const;
  /// `waiting`: those that wait count too.
  const Candidate* smallest(bool waiting = true) const;
  /// Where a plan that must go goes to, when best() finds nothing: the smallest that does not wait, else the
  /// smallest.
  const Candidate* refuge() const;

 private:
  struct Block {
    std::int64_t bytes;
    std::int64_t until_step;
  };
  bool holds(std::int64_t bytes, std::int64_t fraction, std::size_t rank) const;
  Need need_of(std::size_t rank, std::int64_t bytes) const;
  Need need_on(const Candidate& candidate, std::size_t rank) const;

  const CandidateTable& table_;
  ChoiceLimits limits_;
  const PolicyState& state_;
  std::optional<Block> blocked_;      ///< the waiting candidate with the fewest bytes
  mutable std::size_t tightest_ = 0;  ///< the rank that refused last is asked first: most questions end there
};

/// Whether it shows larger pictures, or as large ones in less time.
bool better(const Candidate& candidate, const Candidate& other);

/// Whether `then` is shorter than `now` by more than `least_gain` / 10000 of it.
bool saves(std::int64_t now, std::int64_t then, std::int64_t least_gain);

}  // namespace plimsoll::memory
