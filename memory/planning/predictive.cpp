#include "memory/planning/predictive.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "core/bytes.h"
#include "memory/planning/decision_parts.h"
#include "memory/planning/fitting.h"
#include "memory/planning/learning.h"

namespace plimsoll::memory {
namespace {

/// 812345 -> "812.3 ms".
std::string time_text(std::int64_t microseconds) {
  return fmt::format("{}.{} ms", microseconds / 1000, microseconds % 1000 / 100);
}

std::string need_text(const Need& need) {
  return fmt::format("{} = {} of the {} of rank {}", format_bytes(need.bytes), percent(need.per_10000()),
                     format_bytes(need.budget), need.rank);
}

std::vector<std::int64_t> budgets_of(std::span<const RankUsage> ranks) {
  std::vector<std::int64_t> budgets;
  for (const RankUsage& rank : ranks) budgets.push_back(rank.budget_bytes);
  return budgets;
}

/// Why a plan cannot stay.
struct Complaint {
  Cause cause;
  std::string why;
};

/// What one decision works on, after the state has learned.
class Planner {
 public:
  Planner(const PolicyConfig& config, const WindowSummary& window, const Plan& current, const CandidateTable& table,
          const PolicyState& state)
      : config_(config),
        window_(window),
        current_(current),
        table_(table),
        budgets_(budgets_of(window.ranks)),
        fitting_(table, {budgets_, config.target, window.last_step}, state),
        candidate_(table.find(current)),
        worst_(worst_usage(window.ranks)),
        excused_(std::any_of(state.waits.begin(), state.waits.end(), [&](const Wait& wait) {
          return wait.plan == current && wait.filled && wait.failed_step >= window.first_step;
        })) {}

  const Usage& worst() const { return worst_; }
  const Candidate* candidate() const { return candidate_; }

  /// Whether what failed was a step filled beyond what the plan was judged on: the plan is not at fault.
  bool excused() const { return excused_; }
  /// Why the plan must go; nothing when it may stay.
  std::optional<Complaint> complaint() const {
    const std::string retries = retry_text(window_);
    if (!retries.empty() && !excused_) return Complaint{Cause::kRetry, retries};
    if (worst_.minus(config_.target) > 0 && !excused_) {
      return Complaint{Cause::kAbove,
                       fmt::format("the peak is {} over the target", percent(worst_.per_10000() - config_.target))};
    }
    if (candidate_ == nullptr) return Complaint{Cause::kPlanned, "the plan is none of the candidates"};
    if (!fitting_.within(*candidate_, config_.target)) return over();
    if (fitting_.waits(*candidate_)) {
      return Complaint{Cause::kRetry,
                       fmt::format("it ran out of memory and waits until step {}", fitting_.until_step())};
    }
    return std::nullopt;
  }
  Complaint over() const {
    return {Cause::kBudget, "it is predicted to need " + need_text(fitting_.need(*candidate_))};
  }
  /// Whether some rank's budget is below what the plan is predicted to need.
  bool exceeds_a_budget() const { return candidate_ != nullptr && !fitting_.within(*candidate_, kWhole); }

  const Candidate* best() const { return fitting_.best(); }
  /// The best that fits, when it shows larger pictures or saves enough. Judged by the table's times alone: times of
  /// windows are taken under whatever load the machine had then, and moves that followed them would not end.
  const Candidate* better() const {
    const Candidate* next = fitting_.best();
    if (next == nullptr || !memory::better(*next, *candidate_)) return nullptr;
    const bool enough = sharper(next->plan, candidate_->plan) ||
                        saves(candidate_->microseconds, next->microseconds, config_.least_gain);
    return enough ? next : nullptr;
  }
  const Candidate* refuge() const { return fitting_.refuge(); }
  bool in_band() const { return worst_.minus(config_.target - config_.margin) >= 0; }

  void hold(Decision& decision, Cause cause, const std::string& why) const {
    decision.cause = cause;
    decision.reason += "; " + why;
    if (candidate_ != nullptr) decision.predicted_bytes = fitting_.need(*candidate_).bytes;
  }

  void move(Decision& decision, const Candidate& next, const Complaint& complaint) const {
    const Need need = fitting_.need(next);
    decision.plan = next.plan;
    decision.changed = true;
    const bool grows = candidate_ != nullptr ? next.bytes > candidate_->bytes : complaint.cause == Cause::kPlanned;
    decision.direction = grows ? Direction::kGrow : Direction::kShrink;
    decision.cause = complaint.cause;
    decision.predicted_bytes = need.bytes;
    const std::string before =
        candidate_ == nullptr ? "" : fmt::format(" instead of {}", time_text(candidate_->microseconds));
    decision.reason +=
        fmt::format("; {} -> {}, since {}; expected {} a step{}, predicted {}", to_string(current_),
                    to_string(next.plan), complaint.why, time_text(next.microseconds), before, need_text(need));
  }

  /// The best alternative to staying, and why it was not taken.
  std::string alternative(const Candidate* best) const {
    if (best != nullptr && memory::better(*best, *candidate_)) {
      return fmt::format("the fastest that fits, {}, is expected to take {} instead of {}, which saves no more than {}",
                         to_string(best->plan), time_text(best->microseconds), time_text(candidate_->microseconds),
                         percent(config_.least_gain));
    }
    const Candidate* nearest = nullptr;
    for (const Candidate& candidate : table_.all()) {
      if (memory::better(candidate, *candidate_) && (nearest == nullptr || candidate.bytes < nearest->bytes))
        nearest = &candidate;
    }
    if (nearest == nullptr) return fmt::format("it is the best of {} candidates", table_.all().size());
    const std::string faster =
        fmt::format("the least of those expected to be {}, {}, ",
                    sharper(nearest->plan, current_) ? "sharper" : "faster", to_string(nearest->plan));
    if (fitting_.within(*nearest, config_.target)) {
      return faster +
             fmt::format("waits until step {}, since one that needs no more ran out of memory", fitting_.until_step());
    }
    return faster + "is predicted to need " + need_text(fitting_.need(*nearest));
  }

  /// The plan must go: to the best that fits, or to the one that needs least.
  void leave(Decision& decision, const Complaint& complaint) const {
    const Candidate* best = fitting_.best();
    const Candidate* next = best != nullptr ? best : fitting_.refuge();
    if (next == nullptr) {
      return hold(decision, Cause::kAtMinimum, complaint.why + ", but the table has no candidates: the plan stays");
    }
    if (next == candidate_ && best != nullptr) {
      return hold(decision, Cause::kBest,
                  complaint.why + ", but under the budgets of now it is the best that fits: the plan stays");
    }
    if (next == candidate_) {
      return hold(decision, Cause::kAtMinimum,
                  complaint.why + ", but no candidate fits and the plan is the one that needs least: it stays");
    }
    Complaint said = complaint;
    if (best == nullptr) said.why += ", no candidate fits and this one needs least";
    move(decision, *next, said);
  }

  void plan(Decision& decision) const {
    if (const auto reason = complaint()) return leave(decision, *reason);
    if (const Candidate* next = better()) {
      return move(decision, *next,
                  {Cause::kPlanned, sharper(next->plan, current_)
                                        ? "it fits and shows larger pictures"
                                        : fmt::format("it fits and saves more than {}", percent(config_.least_gain))});
    }
    hold(decision, in_band() ? Cause::kInBand : Cause::kBest,
         fmt::format("{} stays{}: {}", to_string(current_), in_band() ? ", inside the band" : "", alternative(best())));
  }

 private:
  const PolicyConfig& config_;
  const WindowSummary& window_;
  const Plan& current_;
  const CandidateTable& table_;
  std::vector<std::int64_t> budgets_;
  Fitting fitting_;
  const Candidate* candidate_;  ///< null: the current plan is none
  Usage worst_;
  bool excused_;
};

}  // namespace

Decision decide_predictive(const PolicyConfig& config, const WindowSummary& window, const Plan& current,
                           const CandidateTable& table, PolicyState& state) {
  const Usage worst = worst_usage(window.ranks);
  learn_window(config, window, current, table, state);
  Decision decision = describe(config, window, current, worst);
  const Planner planner(config, window, current, table, state);
  const std::string retries = retry_text(window);
  const std::string also = retries.empty() ? "" : "; " + retries;
  if (window.steps < config.adjustment_frequency) {
    planner.hold(decision, Cause::kPartial,
                 fmt::format("only {} of {} steps, no decision", window.steps, config.adjustment_frequency) + also);
  } else if (state.cooldown > 0) {
    --state.cooldown;
    planner.hold(decision, Cause::kCooldown,
                 fmt::format("cooling down after the change at step {}", state.last_change_step) + also);
  } else {
    planner.plan(decision);
  }
  note_change(config, decision, state);
  return decision;
}

std::optional<Decision> respond(const PolicyConfig& config, std::int64_t step, std::span<const RankUsage> reports,
                                const Plan& current, const CandidateTable& table, PolicyState& state) {
  const WindowSummary window{step, step, 1, {reports.begin(), reports.end()}};
  const Usage worst = worst_usage(reports);
  learn_step(config, step, reports, current, table, state);
  const Planner planner(config, window, current, table, state);
  const bool failed = std::any_of(reports.begin(), reports.end(),
                                  [](const RankUsage& rank) { return rank.retries > 0 || rank.failed; });
  const bool at_fault = failed && !planner.excused();
  if (!at_fault && !planner.exceeds_a_budget()) return std::nullopt;
  Decision decision = describe(config, window, current, worst);
  planner.leave(decision, at_fault ? Complaint{Cause::kRetry, retry_text(window)} : planner.over());
  if (!decision.changed) return std::nullopt;  // nothing is left to do before the window's end, which says so
  note_change(config, decision, state);
  return decision;
}

bool settled(const PolicyConfig& config, const WindowSummary& window, const Plan& current, const CandidateTable& table,
             const PolicyState& state) {
  const Planner planner(config, window, current, table, state);
  const Candidate* best = planner.best();
  // A plan that must go but cannot: nothing fits, and it is the one that is left.
  if (planner.complaint())
    return best == nullptr && planner.candidate() != nullptr && planner.refuge() == planner.candidate();
  return planner.better() == nullptr;
}

}  // namespace plimsoll::memory
