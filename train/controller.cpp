#include "train/controller.h"

#include <algorithm>
#include <vector>

#include "core/bytes.h"
#include "core/error.h"

namespace plimsoll::train {

namespace {

std::vector<memory::RankUsage> usage_of(std::span<const ddp::Report> reports) {
  std::vector<memory::RankUsage> usage;
  for (const auto& report : reports) {
    memory::RankUsage& rank = usage.emplace_back();
    rank.budget_bytes = report.budget_bytes;
    rank.peak_bytes = report.measured_peak_bytes;
    rank.retries = report.retries;
    rank.allocator_retries = report.allocator_retries;
    rank.failed_request_bytes = report.failed_request_bytes;
    rank.failed = report.failed;
    rank.predicted_peak_bytes = report.predicted_peak_bytes;
    rank.other_way = report.other_way;
    rank.other_recompute = report.other_recompute;
  }
  return usage;
}

}  // namespace

Controller::Controller(const memory::PolicyConfig& config, int world, std::int64_t share,
                       const memory::TowerBlocks& blocks, const memory::CandidateTable& candidates)
    : config_(config),
      share_(share),
      blocks_(blocks),
      candidates_(candidates),
      window_(config.adjustment_frequency, world) {}

memory::Decision Controller::start(std::int64_t step, const memory::Plan& plan, std::span<const std::int64_t> budgets) {
  return memory::baseline(config_, step, plan, share_, budgets, state_);
}

std::optional<memory::Decision> Controller::observe(std::int64_t step, std::span<const ddp::Report> reports,
                                                    const ddp::Verdict& verdict, const memory::Plan& plan) {
  const auto usage = usage_of(reports);
  const bool replay = verdict.action == ddp::Action::kReplay;
  const auto summary = window_.add(step, usage, !replay);
  judged_ = summary;
  if (replay) return after_failure(step, reports, verdict, plan);
  if (config_.kind == memory::PolicyKind::kPredictive) return predict(step, usage, summary, plan);
  if (!summary) return std::nullopt;
  return memory::decide(config_, *summary, plan, share_, state_);
}

std::optional<memory::Decision> Controller::predict(std::int64_t step, std::span<const memory::RankUsage> usage,
                                                    const std::optional<memory::WindowSummary>& window,
                                                    const memory::Plan& plan) {
  if (auto at_once = memory::respond(config_, step, usage, plan, candidates_, state_)) {
    window_.restart();
    judged_.reset();
    return at_once;
  }
  if (!window) return std::nullopt;
  return memory::decide_predictive(config_, *window, plan, candidates_, state_);
}

std::optional<bool> Controller::settled(const memory::Plan& plan) const {
  if (config_.kind != memory::PolicyKind::kPredictive || !judged_) return std::nullopt;
  return memory::settled(config_, *judged_, plan, candidates_, state_);
}

memory::Decision Controller::after_failure(std::int64_t step, std::span<const ddp::Report> reports,
                                           const ddp::Verdict& verdict, const memory::Plan& plan) {
  const int rank = verdict.ranks.front();
  const ddp::Report& report = reports[static_cast<std::size_t>(rank)];
  const memory::FailureEntry failure{step,
                                     rank,
                                     report.failed_request_bytes,
                                     plan,
                                     report.budget_bytes,
                                     report.measured_peak_bytes,
                                     report.predicted_peak_bytes};
  auto decision = memory::escalate(config_, failure, blocks_, state_);
  window_.restart();
  if (decision) {
    decision->worst_rank = rank;
    decision->peak_bytes = report.measured_peak_bytes;
    decision->budget_bytes = report.budget_bytes;
    decision->usage = report.measured_peak_bytes * 10000 / std::max<std::int64_t>(1, report.budget_bytes);
    return *decision;
  }
  fail(ExitCode::kMemory,
       "rank {}: sample {} does not fit even alone with every block recomputed: a tensor of {} was wanted under a "
       "budget of {}. "
       "Give the rank more than {} (memory.budget), {}use a smaller data.resolution, or a smaller model",
       rank, report.sample_index, format_bytes(report.failed_request_bytes), format_bytes(report.budget_bytes),
       format_bytes(std::max(report.measured_peak_bytes, report.budget_bytes)),
       plan.offload || plan.recompute_blocks == 0 ? "" : "set memory.offload = \"on\", ");
}

}  // namespace plimsoll::train
