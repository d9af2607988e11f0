#include "memory/planning/simulation.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>

#include "core/error.h"
#include "memory/planning/decision_parts.h"
#include "memory/planning/first_plan.h"
#include "memory/planning/packing.h"
#include "memory/planning/predictive.h"
#include "memory/planning/ways.h"

namespace plimsoll::memory {
namespace {

/// What one attempt at a step brought on all ranks.
struct StepUse {
  std::vector<RankUsage> ranks;
  std::int64_t microseconds = 0;  ///< of the slowest rank, reduction included
  std::int64_t retries = 0;
  std::int64_t splits = 0;
  int failed_rank = -1;  ///< the first whose single sample did not fit
};

/// The guardian (memory/guardian.h) at work on one rank's share.
class ShareRun {
 public:
  ShareRun(const SyntheticWorld& world, const Plan& plan, const Fill& fill, int rank, std::int64_t step)
      : world_(world), plan_(plan), fill_(fill), rank_(rank), step_(step) {
    usage.budget_bytes = world.budget(rank, step);
    const std::vector<std::int64_t> drawn = world.lengths(rank, step);
    const auto fits = [&](const Plan& way, std::span<const std::size_t> samples) {
      std::int64_t length = 0;
      for (const std::size_t i : samples) length += drawn[i];
      return world.predicted(way, length) <= fill.bytes;
    };
    way_ = way_of_share(drawn, plan, fill, fits);
    for (const std::size_t i : balanced_order(drawn, static_cast<std::size_t>(way_.micro_batch)))
      lengths_.push_back(drawn[i]);
  }

  void run() {
    const auto share = static_cast<std::int64_t>(lengths_.size());
    std::int64_t limit = way_.micro_batch;
    for (std::int64_t done = 0; done < share;) {
      const std::int64_t count = piece(done, std::min(limit, share - done));
      if (attempt(length(done, count))) {
        done += count;
        continue;
      }
      const bool other = !recomputes_alike(plan_of(length(done, count)), plan_) || count > plan_.micro_batch;
      const bool leaner = usage.retries == 0 && other;
      if (count == 1 && !leaner) {
        usage.failed = true;
        return;
      }
      limit = (count + 1) / 2;
      if (leaner) limit = std::min<std::int64_t>(limit, plan_.micro_batch);
      ++usage.retries;
      way_ = plan_;
    }
  }

  RankUsage usage;
  std::int64_t microseconds = 0;
  std::int64_t splits = 0;

 private:
  std::int64_t length(std::int64_t begin, std::int64_t count) const {
    return std::accumulate(lengths_.begin() + begin, lengths_.begin() + begin + count, std::int64_t{0});
  }

  /// As many samples as are predicted to fit.
  std::int64_t piece(std::int64_t begin, std::int64_t count) {
    const std::int64_t wanted = count;
    while (count > 1 && predicted(length(begin, count)) > usage.budget_bytes) --count;
    if (count < wanted) ++splits;
    return count;
  }

  /// As the step does it (train/step.cpp).
  Plan plan_of(std::int64_t length) const {
    if (usage.retries > 0) return plan_;
    const std::int64_t room = std::min(fill_.bytes, usage.budget_bytes);
    return way_of_micro_batch(way_, fill_, [&](const Plan& tried) { return world_.predicted(tried, length) <= room; });
  }
  std::int64_t predicted(std::int64_t length) const { return world_.predicted(plan_of(length), length); }

  bool attempt(std::int64_t length) {
    const Plan tried = plan_of(length);
    const std::int64_t needed = world_.needed(tried, length, rank_, step_, 0);
    usage.predicted_peak_bytes = std::max(usage.predicted_peak_bytes, world_.predicted(tried, length));
    usage.other_recompute = usage.other_recompute || !recomputes_alike(tried, plan_);
    usage.other_way = usage.other_way || way_ != plan_ || usage.other_recompute;
    usage.peak_bytes = std::max(usage.peak_bytes, std::min(needed, usage.budget_bytes));
    const std::int64_t whole = world_.microseconds(tried, length);
    if (needed <= usage.budget_bytes) {
      microseconds += whole;
      return true;
    }
    // Memory peaks where forward ends and backward begins; an attempt that fails has done about half of its work.
    microseconds += whole / 2;
    usage.failed_request_bytes = std::max(usage.failed_request_bytes, needed - usage.budget_bytes);
    return false;
  }

  const SyntheticWorld& world_;
  const Plan& plan_;
  const Fill& fill_;
  Plan way_;
  int rank_;
  std::int64_t step_;
  std::vector<std::int64_t> lengths_;
};

/// `fill`: by rank.
StepUse run_step(const SyntheticWorld& world, const Plan& plan, const std::function<Fill(int)>& fill,
                 std::int64_t step) {
  StepUse use;
  for (int rank = 0; rank < world.ranks(); ++rank) {
    const Fill filled = fill(rank);
    ShareRun share(world, plan, filled, rank, step);
    share.run();
    use.microseconds = std::max(use.microseconds, share.microseconds);
    use.retries += share.usage.retries;
    use.splits += share.splits;
    if (share.usage.failed && use.failed_rank < 0) use.failed_rank = rank;
    use.ranks.push_back(share.usage);
  }
  use.microseconds += world.scenario().model.reduction_us;
  return use;
}

void note_change(Outcome& outcome, const Decision& decision, const PolicyConfig& config) {
  outcome.last = decision.plan;
  if (!decision.changed) return;
  outcome.changes.push_back(decision.step);
  outcome.settled = (decision.step + config.adjustment_frequency - 1) / config.adjustment_frequency;
}

/// The decision that `decide` makes.
Decision decided(const AroundDecision& around, const std::function<Decision()>& decide) {
  if (!around) return decide();
  Decision decision;
  around([&] { decision = decide(); });
  return decision;
}

/// The closed loop of one run.
class Run {
 public:
  Run(const SyntheticWorld& world, const SimulationOptions& options)
      : world_(world), options_(options), window_(options.config.adjustment_frequency, world.ranks()) {
    check(options.config);
    plan_epoch(0);
    outcome_.policy = policy_name(options.config.kind);
    outcome_.window = options.config.adjustment_frequency;
    outcome_.ranks = world.ranks();
  }

  Outcome go() {
    const std::vector<std::int64_t> budgets = world_.budgets(1);
    plan_ = first_plan(budgets);
    outcome_.last = plan_;
    show(baseline(options_.config, 0, plan_, world_.share(), budgets, state_));
    for (std::int64_t step = 1; step <= world_.scenario().steps && outcome_.finished; ++step) {
      if (step > 1 && world_.epoch(step) != world_.epoch(step - 1)) plan_epoch(world_.epoch(step));
      make(step);
    }
    return outcome_;
  }

 private:
  void plan_epoch(std::int64_t epoch) {
    table_ = world_.table(epoch, options_.config);
    ways_ = ways_of(table_.all(), world_.costs(), world_.share());
  }

  /// Predictive: the planner's choice. Else the largest micro-batch that fits with nothing recomputed, or if none does,
  /// with everything: what a careful person finds out by hand.
  Plan first_plan(const std::vector<std::int64_t>& budgets) const {
    if (options_.config.kind == PolicyKind::kPredictive) {
      if (const Candidate* chosen = first_choice(table_, {budgets, options_.config.target, 0}, state_))
        return chosen->plan;
      no_plan(budgets);
    }
    for (int blocks : {0, world_.scenario().model.language_blocks}) {
      Plan best;
      best.micro_batch = 0;
      for (const Candidate& candidate : table_.all()) {
        if (candidate.plan.recompute_blocks == blocks && fits(candidate, budgets) &&
            candidate.plan.micro_batch > best.micro_batch)
          best = candidate.plan;
      }
      if (best.micro_batch > 0) return best;
    }
    no_plan(budgets);
  }

  bool fits(const Candidate& candidate, const std::vector<std::int64_t>& budgets) const {
    return std::all_of(budgets.begin(), budgets.end(),
                       [&](std::int64_t budget) { return candidate.bytes * 10000 <= budget * options_.config.target; });
  }

  [[noreturn]] void no_plan(const std::vector<std::int64_t>& budgets) const {
    fail(ExitCode::kMemory, "scenario \"{}\": no plan fits {} bytes on every rank", world_.scenario().name,
         *std::min_element(budgets.begin(), budgets.end()));
  }

  /// The predictive policy's plans are filled up; a plan that is no candidate is not. A rank fills up to the budget
  /// that it had at the end of the last step: what happens within the next one it cannot know.
  Fill fill(int rank, std::int64_t step) const {
    const PolicyConfig& config = options_.config;
    const Candidate* candidate = config.kind == PolicyKind::kPredictive ? table_.find(plan_) : nullptr;
    if (candidate == nullptr) return {};
    const std::int64_t budget = world_.budget(rank, std::max<std::int64_t>(1, step - 1));
    return {ways_, fill_bytes(*candidate, {rank, budget, config.target, step}, state_)};
  }

  /// One step, with its replays.
  void make(std::int64_t step) {
    for (bool concluded = false; !concluded && outcome_.finished;) {
      const StepUse use = run_step(
          world_, plan_, [&](int rank) { return fill(rank, step); }, step);
      outcome_.microseconds += use.microseconds;
      outcome_.retries += use.retries;
      outcome_.splits += use.splits;
      if (use.retries > 0 || use.failed_rank >= 0) outcome_.retried.push_back(step);
      concluded = use.failed_rank < 0;
      const std::optional<WindowSummary> summary = window_.add(step, use.ranks, concluded);
      if (!concluded) {
        ++outcome_.failures;
        outcome_.lost_samples += world_.scenario().effective;
        after_failure(step, use);
      } else {
        ++outcome_.steps;
        outcome_.samples += world_.scenario().effective;
        after_step(step, use, summary);
      }
    }
  }

  void after_failure(std::int64_t step, const StepUse& use) {
    const RankUsage& rank = use.ranks[static_cast<std::size_t>(use.failed_rank)];
    const FailureEntry failure =
        failure_of(step, static_cast<std::size_t>(use.failed_rank), rank, plan_, rank.predicted_peak_bytes);
    const TowerBlocks blocks{.language = world_.scenario().model.language_blocks};
    const auto decision = escalate(options_.config, failure, blocks, state_);
    window_.restart();
    if (!decision) return void(outcome_.finished = false);
    take(*decision);
  }

  void after_step(std::int64_t step, const StepUse& use, const std::optional<WindowSummary>& summary) {
    const PolicyConfig& config = options_.config;
    if (config.kind == PolicyKind::kPredictive) {
      if (const auto at_once = respond(config, step, use.ranks, plan_, table_, state_)) {
        window_.restart();
        take(*at_once);
      } else if (summary) {
        after_window(*summary);
      }
    } else if (summary) {
      take(decided(options_.around, [&] { return decide(config, *summary, plan_, world_.share(), state_); }));
    }
  }

  void after_window(const WindowSummary& summary) {
    const PolicyConfig& config = options_.config;
    const Decision decision =
        decided(options_.around, [&] { return decide_predictive(config, summary, plan_, table_, state_); });
    take(decision);
    if (decision.changed || !settled(config, summary, plan_, table_, state_))
      outcome_.unsettled.push_back(summary.last_step);
  }

  void take(const Decision& decision) {
    show(decision);
    note_change(outcome_, decision, options_.config);
    plan_ = decision.plan;
  }

  void show(const Decision& decision) const {
    if (options_.show) options_.show(decision);
  }

  const SyntheticWorld& world_;
  const SimulationOptions& options_;
  WindowAccumulator window_;
  PolicyState state_;
  CandidateTable table_;
  std::vector<Candidate> ways_;
  Plan plan_;
  Outcome outcome_;
};

/// How many blocks the recorded run could recompute: as many as any of its plans does.
TowerBlocks most_blocks(const Trace& trace) {
  TowerBlocks blocks;
  const auto take = [&blocks](const Plan& plan) {
    blocks.language = std::max(blocks.language, plan.recompute_blocks);
    blocks.vision = std::max(blocks.vision, plan.recompute_vision);
    blocks.expert = std::max(blocks.expert, plan.recompute_expert);
  };
  for (const Candidate& candidate : trace.candidates) take(candidate.plan);
  for (const TraceStep& step : trace.steps) {
    if (step.plan) take(*step.plan);
  }
  return blocks;
}

/// The open loop over a trace, step by step as the controller of a run goes (train/controller.h).
class Playback {
 public:
  Playback(const Trace& trace, const ReplayOptions& options)
      : trace_(trace),
        options_(options),
        table_(trace.candidates),
        blocks_(most_blocks(trace)),
        window_(options.config.adjustment_frequency, static_cast<int>(trace.steps.front().ranks.size())),
        state_(options.state),
        plan_(options.first) {
    outcome_.policy = policy_name(options.config.kind);
    outcome_.window = options.config.adjustment_frequency;
    outcome_.ranks = static_cast<std::int64_t>(trace.steps.front().ranks.size());
    outcome_.last = plan_;
  }

  Outcome go() {
    const TraceStep& first = trace_.steps.front();
    std::vector<std::int64_t> budgets;
    for (const RankUsage& rank : first.failed.empty() ? first.ranks : first.failed.front().ranks)
      budgets.push_back(rank.budget_bytes);
    take(baseline(options_.config, first.step - 1, plan_, options_.share, budgets, state_));
    for (const TraceStep& step : trace_.steps) {
      for (const TraceAttempt& attempt : step.failed) after_failure(step, attempt);
      if (!outcome_.finished) break;
      after_step(step);
    }
    return outcome_;
  }

 private:
  void after_failure(const TraceStep& step, const TraceAttempt& attempt) {
    if (!outcome_.finished) return;
    ++outcome_.failures;
    outcome_.lost_samples += step.samples;
    window_.add(step.step, attempt.ranks, false);
    const auto failed =
        std::find_if(attempt.ranks.begin(), attempt.ranks.end(), [](const RankUsage& rank) { return rank.failed; });
    const auto rank = static_cast<std::size_t>(failed - attempt.ranks.begin());
    const FailureEntry failure = failure_of(step.step, rank, *failed, plan_, failed->predicted_peak_bytes);
    const auto decision = escalate(options_.config, failure, blocks_, state_);
    window_.restart();
    if (!decision) return void(outcome_.finished = false);
    take(*decision);
  }

  void after_step(const TraceStep& step) {
    count(step);
    const auto summary = window_.add(step.step, step.ranks);
    const bool predictive = options_.config.kind == PolicyKind::kPredictive;
    if (predictive) {
      if (const auto decision = respond(options_.config, step.step, step.ranks, plan_, table_, state_)) {
        window_.restart();
        return take(*decision);
      }
    }
    if (!summary) return;
    take(decided(options_.around, [&] {
      return predictive ? decide_predictive(options_.config, *summary, plan_, table_, state_)
                        : decide(options_.config, *summary, plan_, options_.share, state_);
    }));
  }

  void count(const TraceStep& step) {
    ++outcome_.steps;
    outcome_.samples += step.samples;
    outcome_.microseconds += step.step_ms * 1000;
    std::int64_t retries = 0;
    for (const RankUsage& rank : step.ranks) retries += rank.retries;
    outcome_.retries += retries;
    if (retries > 0) outcome_.retried.push_back(step.step);
  }

  void take(const Decision& decision) {
    if (options_.show) options_.show(decision);
    note_change(outcome_, decision, options_.config);
    plan_ = decision.plan;
  }

  const Trace& trace_;
  const ReplayOptions& options_;
  CandidateTable table_;
  TowerBlocks blocks_;
  WindowAccumulator window_;
  PolicyState state_;
  Plan plan_;
  Outcome outcome_;
};

}  // namespace

const char* policy_name(PolicyKind kind) {
  if (kind == PolicyKind::kFixed) return "fixed";
  return kind == PolicyKind::kReactive ? "reactive" : "predictive";
}

std::int64_t Outcome::rate() const {
  return microseconds > 0 ? samples * 1'000'000 / ((microseconds + 999) / 1000) : 0;
}

Outcome simulate(const SyntheticWorld& world, const SimulationOptions& options) { return Run(world, options).go(); }

Outcome replay(const Trace& trace, const ReplayOptions& options) {
  check(options.config);
  if (options.config.kind == PolicyKind::kPredictive && trace.candidates.empty()) {
    fail(ExitCode::kUsage,
         "the predictive policy chooses from candidates, and the trace has none: put a first line {} before its steps, "
         "or use --policy reactive",
         "{\"candidates\": [{\"micro_batch\": 4, \"bytes\": 9000000000, \"microseconds\": 800000}, ...]}");
  }
  return Playback(trace, options).go();
}

Trace script_trace(const Scenario& scenario) {
  constexpr std::int64_t kBudget = 10'000'000'000;
  Trace trace;
  for (const ScriptPart& part : scenario.script) {
    for (int i = 0; i < part.steps; ++i) {
      TraceStep& step = trace.steps.emplace_back();
      step.step = static_cast<std::int64_t>(trace.steps.size());
      RankUsage usage;
      usage.budget_bytes = kBudget;
      usage.peak_bytes = kBudget / 10000 * part.usage;
      step.ranks.assign(static_cast<std::size_t>(scenario.ranks), usage);
    }
  }
  if (trace.steps.empty()) fail(ExitCode::kUsage, "scenario \"{}\" has no script", scenario.name);
  return trace;
}

std::string to_string(const Outcome& outcome) {
  const std::int64_t rate = outcome.rate();
  std::string text = fmt::format(
      "{}: {} steps, {} samples in {}.{:03} s = {}.{:03} samples/s; {} changes, {} retries, {} splits, {} failed steps",
      outcome.policy, outcome.steps, outcome.samples, outcome.microseconds / 1'000'000,
      outcome.microseconds / 1000 % 1000, rate / 1000, rate % 1000, outcome.changes.size(), outcome.retries,
      outcome.splits, outcome.failures);
  text += outcome.settled == 0 ? "; the first plan stayed" : fmt::format("; last change in window {}", outcome.settled);
  text += fmt::format("; effective batch {}", outcome.effective_batch_kept ? "kept" : "not kept");
  if (!outcome.finished) text += "; ended early: a single sample did not fit and no plan was left";
  return text + "; last plan: " + to_string(outcome.last);
}

std::string to_json(const Outcome& outcome) {
  const std::int64_t rate = outcome.rate();
  return nlohmann::ordered_json{{"summary", outcome.policy},
                                {"steps", outcome.steps},
                                {"samples", outcome.samples},
                                {"microseconds", outcome.microseconds},
                                {"samples_per_1000_seconds", rate},
                                {"changes", outcome.changes},
                                {"retries", outcome.retries},
                                {"splits", outcome.splits},
                                {"failed_steps", outcome.failures},
                                {"retried_steps", outcome.retried},
                                {"last_change_in_window", outcome.settled},
                                {"effective_batch_kept", outcome.effective_batch_kept},
                                {"finished", outcome.finished},
                                {"last_plan", to_string(outcome.last)}}
      .dump();
}

}  // namespace plimsoll::memory
