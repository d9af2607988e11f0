#pragma once
// From reports to plans: gathers windows, asks the policy, escalates after a failed step. Equal on every rank.

#include <cstdint>
#include <optional>
#include <span>

#include "ddp/agreement.h"
#include "ddp/report.h"
#include "memory/planning/predictive.h"

namespace plimsoll::train {

/// One per rank, fed with the same reports in the same order everywhere; one thread. Holds the policy's state, which
/// the checkpoint saves, and the window under way, which it saves too.
class Controller {
 public:
  /// `share`: the largest share of any rank. `blocks`: how many can be recomputed. `candidates`: of the predictive
  /// policy; outlives the controller.
  Controller(const memory::PolicyConfig& config, int world, std::int64_t share, const memory::TowerBlocks& blocks,
             const memory::CandidateTable& candidates);

  /// The baseline line before the first step.
  memory::Decision start(std::int64_t step, const memory::Plan& plan, std::span<const std::int64_t> budgets);

  /// What follows from one reduction: nothing; a decision at the end of a window (changed or not), or at once when the
  /// predictive policy sees memory run out; or, after kReplay, the escalated plan. Throws Error(kMemory) when a step
  /// failed and no plan is left: it says which sample, how many bytes, and what to set.
  std::optional<memory::Decision> observe(std::int64_t step, std::span<const ddp::Report> reports,
                                          const ddp::Verdict& verdict, const memory::Plan& plan);

  const memory::PolicyConfig& config() const { return config_; }
  /// Largest peak and its rank so far in this window, for the progress line.
  const memory::WindowSummary& window() const { return window_.current(); }
  /// Goes on with a window that window() was; another world's starts anew.
  void restore_window(const memory::WindowSummary& saved) { window_.restore(saved); }
  /// Whether the plan that the newest decision left fills the budget as well as it can be. Nothing
  /// under other policies, and after a decision between windows.
  std::optional<bool> settled(const memory::Plan& plan) const;
  /// For the checkpoint: read when it is written, replaced when a run is resumed.
  memory::PolicyState& state() { return state_; }

 private:
  std::optional<memory::Decision> predict(std::int64_t step, std::span<const memory::RankUsage> usage,
                                          const std::optional<memory::WindowSummary>& window, const memory::Plan& plan);
  memory::Decision after_failure(std::int64_t step, std::span<const ddp::Report> reports, const ddp::Verdict& verdict,
                                 const memory::Plan& plan);

  memory::PolicyConfig config_;
  std::int64_t share_;
  memory::TowerBlocks blocks_;
  const memory::CandidateTable& candidates_;
  memory::WindowAccumulator window_;
  std::optional<memory::WindowSummary> judged_;  ///< the window of the newest decision
  memory::PolicyState state_;
};

}  // namespace plimsoll::train
