#include "train/forecast.h"

#include <algorithm>

#include "core/bytes.h"
#include "memory/planning/first_plan.h"
#include "memory/planning/policy.h"
#include "memory/planning/predictive.h"
#include "memory/reserved.h"
#include "train/candidates.h"
#include "train/device.h"
#include "train/device_tier.h"
#include "train/feature_cache.h"
#include "train/options.h"

namespace plimsoll::train {
namespace {

constexpr std::int64_t kTimeUnit = 1'000'000;  // of a sample, in made-up microseconds

}  // namespace

memory::CostModel analytic_costs(const model::VlaModel& model) {
  memory::CostModel costs;
  costs.language_blocks = std::max(1, model.language_blocks());
  costs.vision_blocks = std::max(1, model.vision_blocks());
  costs.expert_blocks = std::max(1, model.expert_blocks());
  costs.language_recompute = 4000;
  costs.vision_recompute = model.vision_blocks() > 0 ? 2000 : 0;
  for (const int samples : {1, 2}) costs.points.push_back({samples, kTimeUnit / 10 + samples * kTimeUnit});
  return costs;
}

Forecast::Forecast(const Config& config, const ForecastSamples& samples, int ranks)
    : config_(config),
      share_((config.batch.effective + ranks - 1) / ranks),
      heaviest_(memory::heaviest(samples.heaviest, static_cast<std::size_t>(share_), samples.times)),
      target_(target_of(config.memory)),
      dry_(std::make_unique<DryStep>(
          vla_options(config, samples.dims), static_cast<std::uint64_t>(config.run.seed), config.batch.effective,
          sum_slots(config, vla_options(config, samples.dims), samples.types, ranks), ranks)) {}

memory::MicroBatchShape Forecast::heaviest(int samples) const {
  memory::MicroBatchShape total{samples, 0, 0};
  // Fewer shapes than samples only where all are alike.
  for (int i = 0; i < samples; ++i) total += heaviest_[std::min(static_cast<std::size_t>(i), heaviest_.size() - 1)];
  return total;
}

std::int64_t Forecast::workspace() {
  if (workspace_ >= 0) return workspace_;
  if (dry_runs_stand_for_a_gpu()) return workspace_ = kCudaWorkspace;
  const auto most = std::min(share_, config_.batch.max_micro);
  std::vector<SampleShape> shapes;
  for (std::int64_t i = 0; i < most; ++i)
    shapes.push_back(heaviest_[std::min(static_cast<std::size_t>(i), heaviest_.size() - 1)]);
  const std::int64_t evaluation = config_.train.eval_samples > 0 ? dry_->evaluation_scratch_bytes(shapes) : 0;
  return workspace_ = std::max(dry_->scratch_bytes(shapes), evaluation);
}

std::int64_t Forecast::cache_bytes() const {
  if (!keeps_features(config_) || config_.cache.mode == "auto") return 0;
  // What "auto" comes to depends on the dataset and on what it leaves.
  const std::int64_t bytes = bytes_or_auto(config_.cache.device_bytes, "cache.device_bytes").value_or(0);
  const auto rules = dry_->model().packing_rules(0, false);
  return DeviceTier::whole_rows(bytes, rules.hidden, rules.compute);
}

std::int64_t Forecast::evaluation_bytes(const memory::MicroBatchShape& shape) const {
  return config_.train.eval_samples > 0 ? dry_->evaluation_bytes(shape) : 0;
}

// Of the phase that needs most.
memory::Ledger Forecast::ledger(const memory::Plan& plan) const {
  const auto shape = heaviest(plan.micro_batch);
  memory::Ledger training = dry_->micro_batch(shape, plan);
  if (config_.train.eval_samples == 0) return training;
  memory::Ledger evaluation = dry_->evaluation(shape);
  return evaluation.peak() > training.peak() ? evaluation : training;
}

std::int64_t Forecast::live(const memory::Plan& plan) {
  const std::array key = {plan.resolution,       plan.micro_batch,      plan.recompute_blocks,
                          plan.recompute_vision, plan.recompute_expert, plan.offload ? 1 : 0};
  if (const auto found = known_.find(key); found != known_.end()) return found->second;
  ++dry_runs_;
  return known_[key] = dry_->static_bytes() + cache_bytes() + workspace() + activation_bytes(plan);
}

std::int64_t Forecast::activation_bytes(const memory::Plan& plan) const {
  const auto shape = heaviest(plan.micro_batch);
  return std::max(dry_->activation_bytes(shape, plan), evaluation_bytes(shape));
}

PlanBytes Forecast::bytes(const memory::Plan& plan, std::int64_t usable, bool expandable_segments) {
  if (!dry_runs_stand_for_a_gpu()) {  // the CPU's allocator keeps nothing that is not live
    const std::int64_t needed = live(plan);
    return {plan, needed, needed, 0, 0, needed <= usable};
  }
  const std::array<std::int64_t, 2> held = {cache_bytes(), workspace()};
  const memory::ReservedBytes reserved(dry_->static_events(), held, {expandable_segments, usable});
  ++dry_runs_;
  const memory::AllocatorStats stats = reserved.run(ledger(plan).events());
  return {plan, live(plan), stats.peak_reserved, stats.fragmentation(), stats.retries, stats.failures == 0};
}

memory::Breakdown Forecast::breakdown(const memory::Plan& plan) {
  memory::Breakdown parts = dry_->static_breakdown();
  parts["cache"] += cache_bytes();
  parts["workspace"] += workspace();
  for (const auto& [label, size] : ledger(plan).breakdown_at_peak()) parts["activations: " + label] += size;
  std::erase_if(parts, [](const auto& entry) { return entry.second == 0; });
  return parts;
}

const memory::CandidateTable& Forecast::candidates() {
  if (candidates_.empty()) {
    auto plans = allowed_plans(config_, dry_->model(), share_);
    // The samples are known at one resolution only.
    std::erase_if(plans, [&](const memory::Plan& plan) { return plan.resolution != config_.data.resolution; });
    candidates_ = memory::make_table(plans, analytic_costs(dry_->model()), share_,
                                     [this](const memory::Plan& plan) { return live(plan); });
  }
  return candidates_;
}

CardForecast Forecast::card(std::int64_t card_bytes, std::int64_t overhead, std::size_t runners,
                            bool expandable_segments) {
  CardForecast result{card_bytes, card_bytes - overhead, std::nullopt, {}};
  const std::int64_t allowed = result.usable / 10000 * target_;
  for (const auto& candidate : candidates().all()) {
    if (candidate.bytes > allowed) continue;
    if (result.best) {
      if (result.runners_up.size() < runners) result.runners_up.push_back(candidate);
    } else if (const auto tried = bytes(candidate.plan, result.usable, expandable_segments); tried.within(allowed)) {
      result.best = tried;
    }
  }
  return result;
}

std::optional<PlanBytes> Forecast::largest_micro_batch(std::int64_t usable, memory::Plan plan,
                                                       bool expandable_segments) {
  const int most = static_cast<int>(std::min(share_, config_.batch.max_micro));
  const std::int64_t allowed = usable / 10000 * target_;
  plan.micro_batch = memory::largest_micro_batch(1, most, [&](int samples) {
    plan.micro_batch = samples;
    return live(plan) <= allowed;
  });
  for (; plan.micro_batch > 0; --plan.micro_batch)
    if (const auto found = bytes(plan, usable, expandable_segments); found.within(allowed)) return found;
  return std::nullopt;
}

}  // namespace plimsoll::train
