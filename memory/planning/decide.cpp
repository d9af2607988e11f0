#include <fmt/ranges.h>

#include <algorithm>

#include "core/bytes.h"
#include "core/error.h"
#include "memory/planning/decision_parts.h"
#include "memory/planning/learning.h"
#include "memory/planning/policy.h"

namespace plimsoll::memory {
namespace {

constexpr std::int64_t kStepSize = 500;  // 5 % of the budget is worth one step of a knob

/// Recompute and offload are knobs of the predictive policy's candidates only.
bool moves(Knob knob) { return knob == Knob::kMicroBatch || knob == Knob::kResolution; }

const char* knob_name(Knob knob) { return knob == Knob::kMicroBatch ? "micro-batch" : "resolution"; }

/// A knob with the bounds that hold now.
struct Lever {
  Knob knob;
  int value;
  int minimum;
  int maximum;
  int step;
  bool share_caps;  ///< the maximum is the share, not the configured one
};

Lever lever_of(const PolicyConfig& config, Knob knob, const Plan& plan, std::int64_t share) {
  if (knob == Knob::kResolution) {
    return {knob, plan.resolution, config.resolution.minimum, config.resolution.maximum, config.resolution.step, false};
  }
  const KnobRange& range = config.micro_batch;
  const int cap = static_cast<int>(std::clamp<std::int64_t>(share, 1, range.maximum));
  // More samples than the share never meet, so a larger value means the share.
  return {knob, std::min(plan.micro_batch, cap), std::min(range.minimum, cap), cap, range.step, cap < range.maximum};
}

Plan with(Plan plan, Knob knob, int value) {
  (knob == Knob::kMicroBatch ? plan.micro_batch : plan.resolution) = value;
  return plan;
}

std::string bounds_text(const Lever& lever) {
  return fmt::format("{} {} in {}..{}{}", knob_name(lever.knob), lever.value, lever.minimum, lever.maximum,
                     lever.share_caps ? " (the whole share)" : "");
}

/// min(8, max(2, floor(available / 0.05))), with `room` = available x 10000 x budget.
int steps_up(std::int64_t room, std::int64_t budget) {
  return static_cast<int>(std::clamp<std::int64_t>(room / (kStepSize * budget), 2, 8));
}

/// min(4, max(2, ceil(over / 0.05))), with `excess` = over x 10000 x budget, which a retry may leave negative.
int steps_down(std::int64_t excess, std::int64_t budget) {
  const std::int64_t unit = kStepSize * budget;
  return static_cast<int>(std::clamp<std::int64_t>(excess <= 0 ? 0 : (excess - 1) / unit + 1, 2, 4));
}

/// How much must be available before a knob grows at all.
std::int64_t threshold(Knob knob) { return knob == Knob::kResolution ? 200 : 100; }

/// What one decision works on.
struct Judge {
  const PolicyConfig& config;
  const Plan& current;
  std::int64_t share;
  Usage worst;
  Decision& decision;

  void hold(Cause cause, const std::string& why) {
    decision.cause = cause;
    decision.reason += "; " + why;
  }

  void move(const Lever& lever, Direction direction, Cause cause, int value, const std::string& why) {
    decision.plan = with(current, lever.knob, value);
    decision.changed = decision.plan != current;
    decision.direction = direction;
    decision.cause = cause;
    decision.reason += fmt::format("; {} {} -> {}, since {}", knob_name(lever.knob), lever.value, value, why);
  }

  std::string all_bounds() const {
    std::vector<std::string> texts;
    for (Knob knob : config.knobs) {
      if (moves(knob)) texts.push_back(bounds_text(lever_of(config, knob, current, share)));
    }
    return texts.empty() ? "no knob may move (memory.knobs names none)" : fmt::format("{}", fmt::join(texts, ", "));
  }

  void grow() {
    const std::int64_t room = -worst.minus(config.target);
    const std::string available =
        fmt::format("{} is available below the target", percent(config.target - worst.per_10000()));
    for (Knob knob : config.knobs) {
      if (!moves(knob)) continue;
      const Lever lever = lever_of(config, knob, current, share);
      if (lever.value >= lever.maximum) continue;
      if (room <= threshold(knob) * worst.budget) {
        return hold(Cause::kTooLittle, fmt::format("{}, {} grows only with more than {}", available, knob_name(knob),
                                                   percent(threshold(knob))));
      }
      const std::int64_t wanted = lever.value + std::int64_t{steps_up(room, worst.budget)} * lever.step;
      const int value = static_cast<int>(std::min<std::int64_t>(wanted, lever.maximum));
      move(lever, Direction::kGrow, Cause::kBelow, value, available);
      if (lever.share_caps && wanted >= lever.maximum) decision.reason += " (the share of this step caps it)";
      return;
    }
    hold(Cause::kAtMaximum, fmt::format("{}, but nothing can grow: {}", available, all_bounds()));
  }

  void shrink(Cause cause, const std::string& why) {
    const int steps = steps_down(worst.minus(config.target), worst.budget);
    for (std::size_t i = config.knobs.size(); i-- > 0;) {
      if (!moves(config.knobs[i])) continue;
      const Lever lever = lever_of(config, config.knobs[i], current, share);
      if (lever.value <= lever.minimum) continue;
      const std::int64_t wanted = lever.value - std::int64_t{steps} * lever.step;
      return move(lever, Direction::kShrink, cause, static_cast<int>(std::max<std::int64_t>(wanted, lever.minimum)),
                  why);
    }
    hold(Cause::kAtMinimum, fmt::format("{}, but nothing can shrink: {}", why, all_bounds()));
  }
};

void react(Judge& judge, const std::string& retries) {
  const PolicyConfig& config = judge.config;
  if (!retries.empty()) return judge.shrink(Cause::kRetry, retries + ", which counts as above the target");
  if (judge.worst.minus(config.target + config.margin) > 0) {
    return judge.shrink(
        Cause::kAbove, fmt::format("the peak is {} over the target", percent(judge.worst.per_10000() - config.target)));
  }
  if (judge.worst.minus(config.target - config.margin) < 0) return judge.grow();
  judge.hold(Cause::kInBand, fmt::format("inside the band, the plan stays ({})", judge.all_bounds()));
}

void check_bounds(const PolicyConfig& config, const Plan& plan, std::int64_t share) {
  for (Knob knob : config.knobs) {
    if (!moves(knob)) continue;
    const Lever lever = lever_of(config, knob, plan, share);
    if (lever.value >= lever.minimum && lever.value <= lever.maximum) continue;
    fail(ExitCode::kUsage,
         "the first plan has {} {}, outside its bounds {}..{}; change the bounds, or take the knob out of memory.knobs",
         knob_name(knob), lever.value, lever.minimum, lever.maximum);
  }
}

}  // namespace

Decision baseline(const PolicyConfig& config, std::int64_t step, const Plan& plan, std::int64_t share,
                  std::span<const std::int64_t> budgets, PolicyState& state) {
  check(config);
  const bool fixed = config.kind == PolicyKind::kFixed;
  if (!fixed) check_bounds(config, plan, share);
  Decision decision;
  decision.plan = decision.before = plan;
  decision.step = step;
  decision.target = config.target;
  decision.margin = config.margin;
  decision.cause = Cause::kBaseline;
  std::vector<std::string> sizes;
  for (std::int64_t budget : budgets) sizes.push_back(format_bytes(budget));
  const std::string moves =
      fixed ? "the fixed policy keeps it"
            : fmt::format("{}; a decision every {} steps", Judge{config, plan, share, {}, decision}.all_bounds(),
                          config.adjustment_frequency);
  decision.reason = fmt::format("baseline: {}; budgets {}; target {} +- {}; {}", to_string(plan),
                                fmt::join(sizes, ", "), percent(config.target), percent(config.margin), moves);
  state.baseline_done = true;
  return decision;
}

Decision decide(const PolicyConfig& config, const WindowSummary& window, const Plan& current, std::int64_t share,
                PolicyState& state) {
  if (config.kind == PolicyKind::kPredictive)
    fail(ExitCode::kUsage, "memory.policy = \"predictive\" decides from a table of candidates; there is none here");
  const Usage worst = worst_usage(window.ranks);
  Decision decision = describe(config, window, current, worst);
  Judge judge{config, current, share, worst, decision};
  const std::string retries = retry_text(window);
  const std::string also = retries.empty() ? "" : "; " + retries;
  remember_failures(config, window, current, state);
  learn_peaks(window, current, state.calibration);  // no decision follows from it here; the next run may plan with it
  if (config.kind == PolicyKind::kFixed) {
    judge.hold(Cause::kFixed, "the fixed policy keeps its plan" + also);
  } else if (window.steps < config.adjustment_frequency) {
    judge.hold(Cause::kPartial,
               fmt::format("only {} of {} steps, no decision", window.steps, config.adjustment_frequency) + also);
  } else if (state.cooldown > 0) {
    --state.cooldown;
    judge.hold(Cause::kCooldown,
               fmt::format("cooling down after the change at step {}", state.last_change_step) + also);
  } else {
    react(judge, retries);
  }
  note_change(config, decision, state);
  return decision;
}

namespace {

/// The next plan that needs less than `plan`, in the order of escalation; `plan` itself when nothing is left.
Plan escalated(const PolicyConfig& config, const Plan& plan, const TowerBlocks& blocks) {
  const auto named = [&](Knob knob) {
    return std::find(config.knobs.begin(), config.knobs.end(), knob) != config.knobs.end();
  };
  Plan next = plan;
  next.micro_batch = std::min(next.micro_batch, config.micro_batch.minimum);
  next.recompute_blocks = std::max(next.recompute_blocks, blocks.language);
  next.recompute_vision = std::max(next.recompute_vision, blocks.vision);
  next.recompute_expert = std::max(next.recompute_expert, blocks.expert);
  if (next != plan) return next;
  if (named(Knob::kOffload) && !next.offload && next.recompute_blocks > 0) {
    next.offload = true;
  } else if (named(Knob::kResolution) && next.resolution > config.resolution.minimum) {
    next.resolution = std::max(config.resolution.minimum, next.resolution - config.resolution.step);
  }
  return next;
}

}  // namespace

std::optional<Decision> escalate(const PolicyConfig& config, const FailureEntry& failure, const TowerBlocks& blocks,
                                 PolicyState& state) {
  remember(state.failures, failure, config.history);
  if (config.kind == PolicyKind::kPredictive) {
    teach_failure(failure, state);
    const std::vector<FailedRank> ranks{{failure.rank, failure.budget_bytes}};
    begin_wait(config, failure.step, failure.plan, ranks, false, state);
  }
  const Plan next = escalated(config, failure.plan, blocks);
  if (next == failure.plan) return std::nullopt;
  Decision decision;
  decision.before = failure.plan;
  decision.plan = next;
  decision.changed = true;
  decision.direction = Direction::kShrink;
  decision.cause = Cause::kRetry;
  decision.step = failure.step;
  decision.worst_rank = failure.rank;
  decision.target = config.target;
  decision.margin = config.margin;
  decision.reason = fmt::format(
      "step {}: a single sample did not fit on rank {} (request {}) with {}; the step is replayed with {}",
      failure.step, failure.rank, format_bytes(failure.request_bytes), to_string(failure.plan), to_string(next));
  note_change(config, decision, state);
  return decision;
}

}  // namespace plimsoll::memory
