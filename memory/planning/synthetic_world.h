#pragma once
// A made-up world for training runs that do not happen: what a plan needs and takes in it, and what happens around it.
// In whole numbers, without randomness but a counter-based hash: the same scenario is the same world everywhere.
// Immutable once made; any thread.

#include <cstdint>
#include <string>
#include <vector>

#include "memory/planning/candidates.h"
#include "memory/planning/policy.h"

namespace plimsoll::memory {

/// What a micro-batch needs and takes. Lengths are in 1/1000 of an ordinary sample.
struct SyntheticModel {
  std::int64_t static_bytes = 0;      ///< weights, optimiser, staging
  std::int64_t sample_bytes = 0;      ///< activations of an ordinary sample with nothing recomputed
  std::int64_t kept = 1500;           ///< 1/10000 of them that stays when every block is recomputed
  int language_blocks = 36;           ///< alike; the one that is being recomputed is there in full
  std::int64_t launch_us = 0;         ///< a micro-batch, however small
  std::int64_t sample_us = 0;         ///< an ordinary sample
  std::int64_t recompute = 3000;      ///< 1/10000 of a micro-batch's time added when every block is redone
  std::int64_t reduction_us = 20000;  ///< a step's reduction and update
};

/// How long the samples are.
struct Lengths {
  std::int64_t shortest = 1000, longest = 1000;  ///< evenly spread between, before what follows
  std::int64_t heavy_every = 0;                  ///< about one sample of so many is heavy; 0: none
  std::int64_t heavy = 0;                        ///< its length
  std::int64_t first = 1000, last = 1000;        ///< 1/1000 by which all lengths are multiplied, from the epoch's first
                                                 ///< step to its last
};

/// From step `step` on, rank `rank` (-1: every rank) may use `bytes`.
struct BudgetEvent {
  std::int64_t step = 0;
  int rank = -1;
  std::int64_t bytes = 0;
};

/// What the predictions do not know of.
struct Surprises {
  std::int64_t under = 0;        ///< 1/10000 of the activations that the predictions miss
  std::int64_t noise_bytes = 0;  ///< up to so many more in any micro-batch's step, at random
  std::int64_t leak_bytes = 0;   ///< more every step since the process started ...
  std::int64_t leak_from = 0;    ///< ... counted from this step on ...
  std::int64_t leak_until = 0;   ///< ... up to this one
};

/// Usage of the worst rank over some steps, 1/10000: what a scripted scenario consists of.
struct ScriptPart {
  int steps = 0;
  std::int64_t usage = 0;
};

struct Scenario {
  std::string name;
  std::string summary;                ///< one line
  bool classic = false;               ///< `profile = "classic"`
  std::vector<std::int64_t> budgets;  ///< bytes at the start, one a rank; more ranks repeat the last
  int ranks = 1;
  std::int64_t effective = 32;  ///< samples a step, all ranks together
  std::int64_t steps = 400;
  std::int64_t epoch_steps = 0;  ///< the candidate table is made anew so often; 0: one epoch
  SyntheticModel model;
  Lengths lengths;
  Surprises surprises;
  std::vector<BudgetEvent> changes;
  std::vector<ScriptPart> script;  ///< not empty: peaks are given, and nothing above but ranks is used
  Plan first;                      ///< scripted: the plan at the start
  std::uint64_t seed = 1;
};

/// The world of a scenario that is not scripted: the same for every policy.
class SyntheticWorld {
 public:
  /// Throws Error(kUsage) for a scripted scenario or one without ranks, budgets, samples or steps.
  explicit SyntheticWorld(Scenario scenario);

  const Scenario& scenario() const { return scenario_; }
  int ranks() const { return scenario_.ranks; }
  std::int64_t budget(int rank, std::int64_t step) const;
  std::vector<std::int64_t> budgets(std::int64_t step) const;
  /// Largest share of any rank.
  std::int64_t share() const { return (scenario_.effective + ranks() - 1) / ranks(); }
  /// Position of the first sample of a rank in the sample stream, and how many it has.
  std::int64_t first_sample(int rank, std::int64_t step) const;
  std::int64_t samples(int rank) const;

  /// Sum of the lengths of `count` samples from `position` on, 1/1000.
  std::int64_t length(std::int64_t position, std::int64_t count) const;
  /// Length of each of a rank's samples.
  std::vector<std::int64_t> lengths(int rank, std::int64_t step) const;
  /// Bytes that a micro-batch of that length is predicted to need under the plan.
  std::int64_t predicted(const Plan& plan, std::int64_t length) const;
  /// What it needs in truth. `started`: the first step of this process, since which it leaks.
  std::int64_t needed(const Plan& plan, std::int64_t length, int rank, std::int64_t step, std::int64_t started) const;
  /// Time that it takes, microseconds.
  std::int64_t microseconds(const Plan& plan, std::int64_t length) const;

  /// The epoch a step is in, and the candidates for it: every useful micro-batch with every eighteenth of the blocks
  /// recomputed, judged on the heaviest micro-batch that any rank will draw in that epoch, and timed as its steps will
  /// be filled under the smallest budget at its start.
  std::int64_t epoch(std::int64_t step) const;
  CandidateTable table(std::int64_t epoch, const PolicyConfig& config) const;
  /// What a micro-batch takes, by which candidates are timed.
  CostModel costs() const;
  /// Length of the heaviest micro-batch of at most `count` samples in an epoch.
  std::int64_t heaviest(std::int64_t epoch, int count) const;

 private:
  std::int64_t first_step(std::int64_t epoch) const;
  std::int64_t last_step(std::int64_t epoch) const;
  std::int64_t multiplier(std::int64_t position) const;
  std::int64_t activation_bytes(const Plan& plan, std::int64_t length) const;

  Scenario scenario_;
  std::vector<std::int64_t> sums_;  ///< lengths up to each position of the run
};

}  // namespace plimsoll::memory
