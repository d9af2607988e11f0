#include "train/run_log.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <utility>

#include "core/error.h"
#include "core/file.h"
#include "report/exit_file.h"

namespace plimsoll::train {
namespace {

constexpr double kWhole = 10000.0;  // the policy's fractions are whole numbers of 1/10000

std::vector<report::RankMemory> rank_memory(const std::vector<ddp::Report>& reports) {
  std::vector<report::RankMemory> ranks;
  for (const auto& r : reports)
    ranks.push_back({r.measured_peak_bytes, r.predicted_peak_bytes, r.budget_bytes, r.retries, r.allocator_retries,
                     r.failed_request_bytes, r.failed, r.other_way, r.other_recompute});
  return ranks;
}

// The rank whose peak is the largest part of its budget: the one that the policy looks at.
const report::RankMemory& fullest(const std::vector<report::RankMemory>& ranks) {
  const report::RankMemory* worst = &ranks.front();
  for (const auto& r : ranks) {
    if (static_cast<double>(r.peak) * static_cast<double>(worst->budget) >
        static_cast<double>(worst->peak) * static_cast<double>(r.budget)) {
      worst = &r;
    }
  }
  return *worst;
}

// Peaks since the window began, in which `now` is the newest step.
void merge(const std::vector<report::RankMemory>& now, std::vector<report::RankMemory>& window) {
  window.resize(now.size());
  for (std::size_t rank = 0; rank < now.size(); ++rank) {
    window[rank].peak = std::max(window[rank].peak, now[rank].peak);
    window[rank].predicted = std::max(window[rank].predicted, now[rank].predicted);
    window[rank].budget = now[rank].budget;
    window[rank].retries += now[rank].retries;
    window[rank].allocator_retries += now[rank].allocator_retries;
    window[rank].failed_request = std::max(window[rank].failed_request, now[rank].failed_request);
    window[rank].failed = window[rank].failed || now[rank].failed;
    window[rank].other_way = window[rank].other_way || now[rank].other_way;
    window[rank].other_recompute = window[rank].other_recompute || now[rank].other_recompute;
  }
}

std::int64_t slowest(const std::vector<ddp::Report>& reports, std::int64_t ddp::Report::*field) {
  std::int64_t most = 0;
  for (const auto& r : reports) most = std::max(most, r.*field);
  return most;
}

std::unique_ptr<report::MlflowLog> mlflow_log(const Config& config, std::int64_t resume_step) {
  if (config.report.mlflow_uri.empty()) return nullptr;
  report::MlflowOptions options;
  options.run_dir = config.run.dir;
  options.uri = config.report.mlflow_uri;
  options.experiment = config.report.mlflow_experiment;
  options.configuration = config_to_toml(config);
  options.resumed = resume_step > 0 || report::attempt_number() > 1;
  // The other ranks wait for this one meanwhile.
  const double seconds = std::min(config.report.mlflow_flush, config.launch.timeout / 2);
  options.flush = std::chrono::milliseconds(static_cast<std::int64_t>(seconds * 1000.0));
  return std::make_unique<report::MlflowLog>(options);
}

}  // namespace

RunLog::RunLog(const Session& session, std::int64_t resume_step)
    : session_(session), active_(session.communicator.rank() == 0) {
  if (!active_) return;
  const std::filesystem::path dir = session.config.run.dir;
  std::filesystem::create_directories(dir);
  metrics_ = std::make_unique<report::JsonLines>(dir / "metrics.jsonl", resume_step);
  decisions_ = std::make_unique<report::JsonLines>(dir / "decisions.jsonl", resume_step);
  if (session.cache) cache_ = std::make_unique<report::JsonLines>(dir / "cache.jsonl", resume_step);
  mlflow_ = mlflow_log(session.config, resume_step);
  if (!session.candidates.empty()) {
    write_file_durably(dir / "candidates.json", memory::to_json(session.candidates));
    // A resumed run goes on from its checkpoint's state; this one is that of before step 1.
    if (resume_step == 0) write_file_durably(dir / "policy.json", memory::to_json(session.controller->state()) + "\n");
  }
  console_ = std::make_unique<report::Console>(stdout, report::watched_by_a_person(), session.config.report.every,
                                               report::terminal_columns());
}

void RunLog::line(const std::string& text) {
  if (active_) console_->line(text);
}

report::PlanView RunLog::view(const memory::Plan& plan) const {
  const std::int64_t accumulation = (session_.share + plan.micro_batch - 1) / plan.micro_batch;
  return {plan.micro_batch,      accumulation,          plan.resolution, plan.recompute_blocks,
          plan.recompute_vision, plan.recompute_expert, plan.offload,    memory::plan_hash(plan)};
}

void RunLog::baseline(const memory::Decision& decision) {
  if (!active_) return;
  line(decision.reason);
  status(decision, 0);
}

void RunLog::status(const memory::Decision& decision, std::int64_t window) {
  report::MemoryStatus status;
  status.window = window;
  status.rank = decision.worst_rank;
  status.world = session_.communicator.world();
  status.current = session_.meter.live();
  status.current_budget = session_.meter.budget();
  status.peak = window == 0 ? session_.meter.peak() : decision.peak_bytes;
  status.budget = decision.budget_bytes > 0 ? decision.budget_bytes : session_.budget;
  status.target = static_cast<double>(session_.controller->config().target) / kWhole;
  status.plan = view(decision.before);
  status.blocks = session_.model->language_blocks();
  const auto& policy = session_.controller->config();
  const auto turns = [&](memory::Knob knob) {
    return policy.kind != memory::PolicyKind::kFixed &&
           std::find(policy.knobs.begin(), policy.knobs.end(), knob) != policy.knobs.end();
  };
  if (turns(memory::Knob::kMicroBatch)) {
    status.max_micro = std::min<std::int64_t>(policy.micro_batch.maximum, session_.share);
    status.min_micro = std::min<std::int64_t>(policy.micro_batch.minimum, status.max_micro);
  }
  if (turns(memory::Knob::kResolution)) {
    status.min_resolution = policy.resolution.minimum;
    status.max_resolution = policy.resolution.maximum;
  }
  status.retries = decision.retries;
  status.note = window == 0 ? "" : decision.reason;
  line(report::status_line(status));
}

void RunLog::step(const StepView& v) {
  if (!active_) return;
  const auto& result = v.result;
  const auto& config = session_.config;
  report::StepRecord record;
  record.step = v.step;
  record.epoch =
      static_cast<double>(v.step * config.batch.effective) / static_cast<double>(session_.stream.epoch_length());
  record.loss = result.loss;
  record.grad_norm = result.gradient_norm;
  record.lr = config.train.lr * v.learning_rate_factor;
  record.vl_lr = config.train.vl_lr * v.learning_rate_factor;
  record.samples = config.batch.effective;
  record.live = result.live;
  record.first_sample = (v.step - 1) * config.batch.effective;
  record.step_ms = static_cast<double>(slowest(result.reports, &ddp::Report::step_ms));
  record.micro_batches = result.guardian.micro_batches;
  record.failed_forward = result.failed.forward;
  record.failed_backward = result.failed.backward;
  record.load_ms = static_cast<double>(slowest(result.reports, &ddp::Report::load_ms));
  record.skipped = result.verdict.action == ddp::Action::kSkip;
  record.plan = view(v.plan);
  record.ranks = rank_memory(result.reports);
  record.failed_attempts = std::exchange(failed_attempts_, {});
  record.wall_ms = v.wall_ms;
  add_tasks(v, record);
  record.attempt = report::attempt_number();
  metrics_->append(report::to_json(record));
  if (mlflow_) mlflow_->step(record);

  smooth_ms_ = smooth_ms_ == 0.0 ? v.wall_ms : 0.9 * smooth_ms_ + 0.1 * v.wall_ms;
  auto window = window_;  // gather() takes this step in only after it has been followed
  merge(record.ranks, window);
  const auto& worst = fullest(window);
  report::Progress progress{
      v.step,
      session_.steps,
      result.loss,
      1000.0 * static_cast<double>(config.batch.effective) / smooth_ms_,
      worst.peak,
      worst.budget,
      std::chrono::duration<double>(smooth_ms_ / 1000.0 * static_cast<double>(session_.steps - v.step))};
  console_->progress(progress);
}

void RunLog::add_tasks(const StepView& v, report::StepRecord& record) const {
  const auto means = type_means(v.result, v.counts);
  const auto& weights = v.balance.weights;
  for (std::size_t type = 0; type < v.counts.size(); ++type) {
    const std::string& name = session_.tasks.names[type];
    record.task_counts.emplace_back(name, v.counts[type]);
    if (v.counts[type] > 0) record.task_losses.emplace_back(name, means[type]);
    const TypeMemory& memory = v.result.type_memory[type];
    if (memory.micro_batches > 0) record.task_memory.emplace_back(name, memory);
    if (v.result.type_norms.empty()) continue;
    record.task_weights.emplace_back(name, weights.empty() ? 1.0 : weights[type]);
    record.task_norms.emplace_back(name, v.result.type_norms[type]);
  }
}

void RunLog::gather(const std::vector<ddp::Report>& reports) {
  if (!active_) return;
  const auto ranks = rank_memory(reports);
  merge(ranks, window_);
  const bool failed = std::any_of(ranks.begin(), ranks.end(), [](const auto& rank) { return rank.failed; });
  if (failed) failed_attempts_.push_back({view(session_.plan), ranks});
}

void RunLog::decision(const memory::Decision& decision) {
  if (!active_) return;
  report::DecisionRecord record;
  record.step = decision.step;
  record.window = ++windows_;
  record.policy = session_.config.memory.policy;
  record.ranks = std::exchange(window_, {});
  record.worst_rank = decision.worst_rank;
  record.peak_fraction = static_cast<double>(decision.usage) / kWhole;
  record.target = static_cast<double>(decision.target) / kWhole;
  record.margin = static_cast<double>(decision.margin) / kWhole;
  record.before = view(decision.before);
  record.after = view(decision.plan);
  record.predicted_peak = session_.predicted_peak(decision.plan);
  record.changed = decision.changed;
  record.settled = session_.controller->settled(decision.plan);
  record.reason = decision.reason;
  decisions_->append(report::to_json(record));
  status(decision, windows_);
}

void RunLog::cache_use(const report::CacheUseRecord& use) {
  if (!active_) return;
  cache_->append(report::to_json(use));
  line(report::to_line(use));
}

void RunLog::drift(const report::DriftRecord& drift) {
  if (!active_) return;
  cache_->append(report::to_json(drift));
  line(
      fmt::format("feature cache: after step {} the features of {} probe samples have moved by {:.4f} (relative L2), "
                  "cosine {:.6f}",
                  drift.step - 1, drift.probed, drift.drift, drift.cosine));
}

void RunLog::cache_decision(std::int64_t step, const std::string& what, const std::string& reason, std::int64_t drift) {
  if (!active_) return;
  report::CacheRecord record{step, what, reason, std::nullopt};
  if (drift >= 0) record.drift = static_cast<double>(drift) / 1e6;
  decisions_->append(report::to_json(record));
}

void RunLog::sync() {
  if (!active_) return;
  metrics_->sync();
  decisions_->sync();
  if (cache_) cache_->sync();
  if (mlflow_) mlflow_->sync();
}

void RunLog::finish(ExitCode code) {
  if (mlflow_) mlflow_->finish(code);
}

}  // namespace plimsoll::train
