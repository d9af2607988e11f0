#include "train/loop.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <chrono>
#include <utility>

#include "core/bytes.h"
#include "ddp/handshake.h"
#include "train/options.h"
#include "train/schedule.h"
#include "train/stop_request.h"

namespace plimsoll::train {
namespace {

using Clock = std::chrono::steady_clock;

double milliseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

// " in forward (2 times) and in backward (once)"
std::string where_failed(const FailedAttempts& failed) {
  const auto times = [](int count) { return count == 1 ? std::string("once") : fmt::format("{} times", count); };
  std::string text;
  if (failed.forward > 0) text += fmt::format(" in forward ({})", times(failed.forward));
  if (failed.backward > 0)
    text += fmt::format("{} in backward ({})", text.empty() ? "" : " and", times(failed.backward));
  return text;
}

}  // namespace

Loop::Loop(Session& session, RunLog& log)
    : session_(session),
      log_(log),
      loader_(session, log),
      last_checkpoint_(session.state.step),
      kept_features_(session.state.features.oldest) {
  if (session.cache) upkeep_.emplace(session, log);
}

Outcome Loop::run() {
  RunState& state = session_.state;
  log_.baseline(session_.controller->start(state.step, session_.plan, session_.budgets));
  while (state.step < session_.steps) {
    const std::int64_t step = state.step + 1;
    const StepResult result = one_step(step);
    // Before anything that may fail and write a checkpoint: the weights are those after this step already.
    replaying_ = result.verdict.action == ddp::Action::kReplay;
    if (!replaying_) state.step = step;
    if (result.verdict.action == ddp::Action::kApply) {
      ++state.updates;
      if (result.live > 0) ++state.adapter_updates;
      session_.balance(step, result);
    }
    if (upkeep_ && !replaying_) upkeep_->conclude(step, result.reports);
    follow(step, result);
    if (result.verdict.stop) {
      if (upkeep_) upkeep_->say_use(state.step);
      checkpoint();
      loader_.recommend();
      return {ExitCode::kStopped, "stopped on request"};
    }
    if (upkeep_ && !replaying_) upkeep_->work(step);
    if (!replaying_ && step % session_.config.train.checkpoint_every == 0) checkpoint();
  }
  checkpoint();
  loader_.recommend();
  return {};
}

StepResult Loop::one_step(std::int64_t step) {
  const auto start = Clock::now();
  session_.communicator.enter(step, "load");
  std::vector<std::shared_ptr<const Sample>> hold;
  StepInput input;
  const auto samples = session_.load_share(step, hold);
  input.step = step;
  input.updates = session_.state.updates;
  input.adapter_updates = session_.state.adapter_updates;
  input.samples = samples;
  input.plan = session_.plan;
  input.table_hash = session_.candidates.hash();
  input.learning_rate_factor =
      learning_rate_factor(session_.state.updates, session_.config.train.warmup_steps, session_.steps);
  input.hash_weights = step % session_.config.memory.adjustment_frequency == 0;
  input.stop_requested = stop_requested();
  input.load_ms = static_cast<std::int64_t>(milliseconds_since(start));
  if (!replaying_) apply_budget_changes(step);
  input.fill = session_.fill(input.plan, step);
  if (upkeep_) input.drift = upkeep_->drift();
  StepResult result = session_.step->run(input);
  session_.learn(result.timed);
  if (session_.cache && result.verdict.action != ddp::Action::kReplay) session_.cache->took(result.features);
  if (result.fatal) {
    // All ranks are here. What was learned so far is kept, unless the ranks do not agree on what that is.
    if (result.fatal->code() == ExitCode::kData) checkpoint();
    throw *result.fatal;
  }
  if (result.verdict.action != ddp::Action::kReplay) {
    const double wall_ms = milliseconds_since(start);
    log_.step({step, session_.plan, input.learning_rate_factor, result, wall_ms, session_.counts_of(step),
               session_.state.balance});
    loader_.took(step, static_cast<double>(input.load_ms), wall_ms);
  }
  return result;
}

void Loop::apply_budget_changes(std::int64_t step) {
  for (const auto& change : session_.config.memory.budget_changes) {
    // Steps that lie behind a resumption leave the budget that they had set.
    const bool behind = first_ && change.step < step;
    if ((change.step != step && !behind) || change.rank != session_.communicator.rank()) continue;
    const std::int64_t budget = changed_budget(change, session_.budget);
    spdlog::info("budget changes from {} to {} after {} allocations of step {}", format_bytes(session_.meter.budget()),
                 format_bytes(budget), change.after_allocations, step);
    if (change.after_allocations == 0 || behind) {
      session_.meter.set_budget(budget);
    } else {
      session_.meter.change_budget_after(change.after_allocations, budget);
    }
  }
  first_ = false;
}

void Loop::follow(std::int64_t step, const StepResult& result) {
  log_.gather(result.reports);
  if (!result.verdict.text.empty()) log_.line(result.verdict.text);
  if (result.guardian.retries > 0) {
    spdlog::info(
        "step {}: out of memory{}, {} wanted; drained and replayed the same samples in smaller pieces ({} replayed)",
        step, where_failed(result.failed), format_bytes(result.guardian.failed_request), result.guardian.retries);
  }
  if (const auto snapshot = session_.meter.take_snapshot())
    spdlog::info("what the memory held then is in {}; PyTorch's memory viewer opens it", snapshot->string());
  if (const auto decision = decide(step, result)) {
    log_.decision(*decision);
    if (session_.loader && decision->plan.resolution != session_.plan.resolution) {
      session_.loader->set_resolution(decision->plan.resolution);
    }
    session_.plan = decision->plan;
  }
  if (session_.controller->window().ranks.empty()) end_window();
}

// A caching allocator holds blocks of shapes that may not come again until its budget is full, and empties its cache
// then, in the middle of a step. As much as the plan needs is left to it: it would only be asked for again.
void Loop::end_window() {
  memory::DeviceMemory& meter = session_.meter;
  if (meter.reserves() && meter.reserved() > session_.predicted_peak(session_.plan)) meter.release_cached();
}

std::optional<memory::Decision> Loop::decide(std::int64_t step, const StepResult& result) {
  try {
    return session_.controller->observe(step, result.reports, result.verdict, session_.plan);
  } catch (const Error& error) {
    checkpoint();  // no plan fits, and all ranks find so here: what was learned so far is kept
    // What the allocator of the rank said names the tensor, and a dry run its peak; here all ranks are.
    const auto& guardian = result.guardian;
    const std::string mine =
        guardian.failed ? fmt::format(". Alone it needs {} in all, live bytes included. The allocator said: {}",
                                      format_bytes(guardian.failed_peak), guardian.error)
                        : "";
    std::string said;
    for (const auto& text : ddp::share_text(session_.communicator, mine)) said = text.empty() ? said : text;
    throw Error(error.code(), error.what() + said);
  }
}

void Loop::checkpoint() {
  RunState& state = session_.state;
  if (state.step == last_checkpoint_) return;
  session_.communicator.enter(state.step, "checkpoint");
  state.skips_in_row = session_.step->agreement().skips_in_row;
  state.plan = session_.plan;
  state.policy = memory::to_json(session_.controller->state());
  state.window = memory::to_json(session_.controller->window());
  log_.sync();
  session_.write_checkpoint();
  last_checkpoint_ = state.step;
  // Two checkpoints are kept: what the one before reads must stay.
  if (session_.cache) session_.cache->clear_older(std::exchange(kept_features_, state.features.oldest));
}

}  // namespace plimsoll::train
