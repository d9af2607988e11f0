#include "train/tune.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <optional>

#include "core/bytes.h"
#include "core/error.h"
#include "train/forecast.h"
#include "train/plan_table_file.h"
#include "train/session.h"
#include "train/source.h"

namespace plimsoll::train {
namespace {

using Clock = std::chrono::steady_clock;

/// Trains `steps` steps under the plan, after one to warm up.
MeasuredPlan time_steps(Session& session, const memory::Candidate& candidate, std::int64_t steps, std::int64_t& step) {
  MeasuredPlan measured;
  memory::TableRow& row = measured.row;
  row.budget = session.budget;
  row.plan = candidate.plan;
  row.predicted_peak = candidate.bytes;
  session.plan = candidate.plan;
  session.meter.release_cached();
  if (session.loader) session.loader->set_resolution(candidate.plan.resolution);
  std::vector<std::shared_ptr<const Sample>> hold;
  std::chrono::duration<double> spent{};
  for (std::int64_t i = 0; i <= steps; ++i) {
    const auto samples = session.load_share(++step, hold);
    StepInput input;
    input.step = step;
    input.updates = step - 1;
    input.samples = samples;
    input.plan = candidate.plan;
    const auto start = Clock::now();
    const StepResult result = session.step->run(input);
    if (i > 0) spent += Clock::now() - start;
    if (result.fatal) throw *result.fatal;
    measured.ran_out = result.guardian.failed || result.guardian.retries > 0;
    if (measured.ran_out) return measured;
    const ddp::Report& report = result.reports.front();
    measured.live = std::max(measured.live, session.meter.peak_live());
    row.measured_peak = std::max(row.measured_peak, report.measured_peak_bytes);
    row.predicted_peak = std::max(row.predicted_peak, report.predicted_peak_bytes);
    row.accumulation = std::max<std::int64_t>(row.accumulation, result.guardian.micro_batches);
  }
  const double samples = static_cast<double>(steps * session.config.batch.effective);
  row.milli_samples_per_second = static_cast<std::int64_t>(1000.0 * samples / std::max(1e-9, spent.count()));
  return measured;
}

/// time_steps(), and what the caching allocator holds beside it, where there is one.
MeasuredPlan measure(Session& session, const memory::Candidate& candidate, std::int64_t steps, std::int64_t& step,
                     Forecast* forecast) {
  MeasuredPlan measured = time_steps(session, candidate, steps, step);
  if (forecast == nullptr || measured.ran_out) return measured;
  measured.reserved = session.meter.reserved();  // nothing is given back while plans fit
  const PlanBytes predicted = forecast->bytes(candidate.plan, session.budget, false);
  measured.predicted_reserved = predicted.reserved;
  measured.predicted_live = predicted.live;
  return measured;
}

std::vector<memory::Candidate> by_hand(const Session& session, const TuneOptions& options) {
  std::vector<memory::Candidate> wanted;
  for (const auto& [budget, micro_batch] : options.by_hand) {
    if (budget != session.budget) continue;
    memory::Candidate candidate;
    candidate.plan.resolution = static_cast<int>(session.config.data.resolution);
    candidate.plan.micro_batch = static_cast<int>(std::min(micro_batch, session.share));
    candidate.plan.recompute_blocks = session.model->language_blocks();
    candidate.bytes = session.predicted_peak(candidate.plan);
    if (candidate.bytes <= session.budget) wanted.push_back(candidate);
  }
  return wanted;
}

std::optional<memory::TableRow> best_row(Session& session, const TuneOptions& options, const TuneWatch& watch) {
  std::optional<memory::TableRow> best;
  std::int64_t step = 0, tried = 0;
  const std::int64_t allowed = session.budget / 10000 * target_of(session.config.memory);
  std::optional<Forecast> forecast;
  if (dry_runs_stand_for_a_gpu())
    forecast.emplace(session.config,
                     ForecastSamples{session.source.dims(), session.heaviest, session.tasks.names.size()},
                     session.communicator.world());
  // As the plan says, without what a run makes of lighter steps: the fastest by that, and where none of them fits, what
  // shows smaller pictures.
  std::vector<memory::Candidate> all = session.ways;
  for (const auto& candidate : session.candidates.all())
    if (candidate.plan.resolution != session.config.data.resolution) all.push_back(candidate);
  for (const auto& candidate : all) {
    if (tried == options.contenders) break;
    // Smaller pictures are for where nothing else fits.
    if (best && candidate.plan.resolution != best->plan.resolution) break;
    if (candidate.bytes > allowed) continue;
    ++tried;
    const auto measured = measure(session, candidate, options.steps, step, forecast ? &*forecast : nullptr);
    watch.measured(measured);
    if (measured.ran_out) continue;
    if (!best || measured.row.milli_samples_per_second > best->milli_samples_per_second) best = measured.row;
  }
  for (const memory::Candidate& candidate : by_hand(session, options)) {
    MeasuredPlan measured = measure(session, candidate, options.steps, step, forecast ? &*forecast : nullptr);
    measured.by_hand = true;
    watch.measured(measured);
  }
  return best;
}

}  // namespace

memory::PlanTable tune(const Config& config, std::span<const std::int64_t> budgets, const TuneOptions& options,
                       const TuneWatch& watch) {
  const Device device = open_device(config.run.device, 0);
  for (const std::int64_t budget : budgets) {
    if (budget > device.total)
      fail(ExitCode::kUsage, "--budget {}: more than the {} of {}, where plans are measured; give less",
           format_bytes(budget), format_bytes(device.total), device.place.is_cpu() ? "this machine" : device.name);
  }
  Config tried = config;
  tried.memory.policy = "predictive";
  tried.memory.calibration = "off";
  tried.memory.table = "off";
  tried.memory.budget_changes.clear();
  tried.cache.mode = "off";
  tried.batch.micro = "auto";
  // One rank alone does what each of launch.ranks will have to do.
  tried.batch.effective = (config.batch.effective + config.launch.ranks - 1) / config.launch.ranks;
  const auto source = make_source(tried);
  const auto communicator = ddp::make_solo();
  memory::PlanTable table;
  table.share = tried.batch.effective;
  table.note = fmt::format("{}, {}, LoRA rank {}", config.model.path, config.model.dtype, config.lora.rank);
  for (const std::int64_t budget : budgets) {
    watch.begun(budget);
    tried.memory.budget = std::to_string(budget);
    try {
      Session session(tried, *communicator, *source, device);
      table.key = table_key(session);
      if (const auto row = best_row(session, options, watch)) table.rows.push_back(*row);
    } catch (const Error& error) {
      if (error.code() != ExitCode::kMemory) throw;
      watch.nothing_fits(budget, error.what());
    }
  }
  std::sort(table.rows.begin(), table.rows.end(), [](const auto& a, const auto& b) { return a.budget < b.budget; });
  return table;
}

}  // namespace plimsoll::train
