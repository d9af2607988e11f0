#include "train/controller.h"

#include <algorithm>
#include <vector>

#include "core/bytes.h"
#include "core/error.h"

namespace plimsoll::train {

Controller::Controller(const memory::PolicyConfig& config, int world, std::int64_t share, int language_blocks)
    : config_(config), share_(share), language_blocks_(language_blocks), window_(config.adjustment_frequency, world) {}

memory::Decision Controller::start(std::int64_t step, const memory::Plan& plan, std::span<const std::int64_t> budgets) {
  return memory::baseline(config_, step, plan, share_, budgets, state_);
}

std::optional<memory::Decision> Controller::observe(std::int64_t step, std::span<const ddp::Report> reports,
                                                    const ddp::Verdict& verdict, const memory::Plan& plan) {
  std::vector<memory::RankUsage> usage;
  for (const auto& report : reports) {
    usage.push_back({report.budget_bytes, report.measured_peak_bytes, report.retries, report.allocator_retries,
                     report.failed_request_bytes, report.failed, report.predicted_peak_bytes, 0, report.step_ms});
  }
  const bool replay = verdict.action == ddp::Action::kReplay;
  const auto summary = window_.add(step, usage, !replay);
  if (replay) return after_failure(step, reports, verdict, plan);
  if (!summary) return std::nullopt;
  return memory::decide(config_, *summary, plan, share_, state_);
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
  auto decision = memory::escalate(config_, failure, {language_blocks_, 0, 0}, state_);
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
       "Give the rank at least {} (memory.budget), use a smaller data.resolution, or a smaller model",
       rank, report.sample_index, format_bytes(report.failed_request_bytes), format_bytes(report.budget_bytes),
       format_bytes(std::max(report.measured_peak_bytes, report.budget_bytes) + report.failed_request_bytes));
}

}  // namespace plimsoll::train
