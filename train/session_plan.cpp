// Session's choices before the first step: what predictions count, the budget that is fixed after a warm-up, the
// workspace arena, the first plan, the plan after a resumption.

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>

#include "core/bytes.h"
#include "core/error.h"
#include "core/scope.h"
#include "ddp/handshake.h"
#include "memory/guardian.h"
#include "memory/planning/packing.h"
#include "memory/planning/wide.h"
#include "train/calibration_file.h"
#include "train/candidates.h"
#include "train/costs.h"
#include "train/options.h"
#include "train/plan_table_file.h"
#include "train/session.h"
#include "train/stopwatch.h"

namespace plimsoll::train {
namespace {

// What steps take beside what dry runs within them may that only look for a faster way or compare a prediction.
constexpr std::int64_t kStepsOfDryRun = 50;

memory::MicroBatchShape total(std::span<const SampleShape> shapes) {
  memory::MicroBatchShape sum{static_cast<std::int64_t>(shapes.size()), 0, 0};
  for (const auto& shape : shapes) sum += shape;
  return sum;
}

}  // namespace

// Only where a budget bounds reserved bytes are events kept; elsewhere live bytes are their peak. What is reserved, as
// what a GPU's libraries take for scratch, is no convex function of the shape.
void Session::make_predictors() {
  const bool convex = device.place.is_cpu() && !meter.reserves();
  predictor = std::make_unique<memory::Predictor>(
      [this](const auto& shape, const memory::Plan& tried) {
        return meter.reserves() ? bytes_of(dry->micro_batch(shape, tried)) : dry->activation_bytes(shape, tried);
      },
      convex);
  evaluation_predictor = std::make_unique<memory::Predictor>(
      [this](const auto& shape, const memory::Plan&) {
        return meter.reserves() ? bytes_of(dry->evaluation(shape)) : dry->evaluation_bytes(shape);
      },
      convex);
}

// What a dry run reserves above what is live. The allocator at rest is made when it is first asked for, which on a GPU
// is when plans are chosen: its libraries and the cache have their blocks by then. What loading has left unused between
// live blocks, beyond what the model of the allocator says, stays.
std::int64_t Session::bytes_of(const memory::Ledger& dry_run) const {
  if (!at_rest_) {
    const std::vector<std::int64_t> held = {held_by_libraries_, meter.workspace(), cache ? cache->device_bytes() : 0};
    at_rest_ = std::make_unique<memory::ReservedBytes>(dry->static_events(), held);
    const memory::AllocatorStats& rest = at_rest_->at_rest();
    meter.release_cached();
    unused_at_rest_ = std::max<std::int64_t>(0, (meter.reserved() - meter.live()) - (rest.reserved - rest.allocated));
  }
  return at_rest_->above_live(dry_run.events()) + unused_at_rest_;
}

// What kernels and communicators hold outside of the allocator comes with their first use, and stays: a budget that is
// a part of what a card leaves is fixed after that.
void Session::settle_budget() {
  if (!device.overhead) return;
  const std::int64_t before = device.overhead();
  warm_up();
  const std::int64_t overhead = device.overhead();
  if (!budget_is_a_size(config.memory, communicator.rank())) {
    budget -= std::max<std::int64_t>(0, overhead - before);
    meter.set_budget(budget);
  }
  spdlog::info("rank {}: {} has {} outside of the allocator (context, kernels, communicators); the budget is {}",
               communicator.rank(), device.name, format_bytes(overhead), format_bytes(budget));
}

// One sample through every operator, in the way that needs least, and one reduction of a step's size.
void Session::warm_up() {
  const Sample sample = source.load_at(middling(source), config.data.resolution);
  const model::StreamSample alone{&sample, 0};
  model::Recompute lean;
  lean.language_blocks = model->language_blocks();
  const std::int64_t live = meter.live();
  bool failed = false;
  try {
    const auto rules = model->packing_rules(static_cast<std::uint64_t>(config.run.seed), false);
    forward_backward(*model, model::pack({&alone, 1}, rules, device.place), lean, config.batch.effective);
    meter.synchronize();
  } catch (const std::exception&) {
    if (!memory::is_out_of_memory()) throw;
    failed = true;
  }
  const auto discard = [this] { buffers->discard_staging(); };
  failed ? memory::clean_up(meter, live, discard) : discard();
  buffers->reduce([this](std::span<float> all) { communicator.all_reduce_sum(all); });
  buffers->start_step();
  meter.release_cached();
}

void Session::size_workspace() {
  const Setting& setting = config.memory.workspace;
  if (!device.place.is_cpu()) {  // the libraries of a GPU hold theirs already (memory/device_memory.h)
    if (!setting.is("auto") && communicator.rank() == 0) spdlog::warn("memory.workspace is not read on a GPU");
    return;
  }
  const auto asked = bytes_or_auto(setting, "memory.workspace");
  if (!asked) return meter.set_workspace(choose_workspace());
  const std::int64_t bytes = *asked;
  if (meter.live() + bytes > budget) {
    fail(ExitCode::kMemory,
         "rank {}: the model and a workspace of {} (memory.workspace) need {} and the budget is {} (memory.budget)",
         communicator.rank(), format_bytes(bytes), format_bytes(meter.live() + bytes), format_bytes(budget));
  }
  meter.set_workspace(bytes);
}

// The arena must hold the scratch of the largest micro-batch that the policy may ever choose, all heaviest samples.
// Where that leaves no room for the smallest plan (at the lowest resolution, if that may move), the policy gets a lower
// bound instead, the same on all ranks.
std::int64_t Session::choose_workspace() {
  const auto smallest = std::min(heaviest.size(), static_cast<std::size_t>(config.batch.min_micro));
  memory::Plan leanest;
  leanest.recompute_blocks =
      configured_recompute(config.memory, model->language_blocks()).value_or(model->language_blocks());
  const auto lower = lower_resolutions(config);
  const auto lightest = lower.empty() ? heaviest : heaviest_at(lower.back());
  const std::int64_t least = meter.live() + predictor->bytes(total(std::span(lightest).first(smallest)), leanest);
  const auto scratch = [&](std::size_t micro) {
    const auto held_out = std::span(evaluated).first(std::min(micro, evaluated.size()));
    const std::int64_t of_step = dry->scratch_bytes(std::span(heaviest).first(micro));
    return held_out.empty() ? of_step : std::max(of_step, dry->evaluation_scratch_bytes(held_out));
  };
  const auto whole = std::min(heaviest.size(), static_cast<std::size_t>(config.batch.max_micro));
  auto micro = whole;
  while (micro > smallest && least + scratch(micro) > budget) micro = std::max(smallest, micro / 2);
  if (least + scratch(micro) > budget) {  // other ways to recompute may need less; most runs need not ask
    const auto shape = total(std::span(lightest).first(smallest));
    const auto needed = meter.live() + leanest_bytes(shape, leanest) + scratch(micro);
    if (needed > budget) refuse_budget(communicator.rank(), static_cast<std::int64_t>(smallest), needed, budget);
  }
  const std::vector<std::int64_t> mine = {static_cast<std::int64_t>(micro)};
  for (const auto& numbers : ddp::share_numbers(communicator, mine))
    micro = std::min(micro, static_cast<std::size_t>(numbers.at(0)));
  if (micro < whole) config.batch.max_micro = static_cast<std::int64_t>(micro);
  return scratch(micro);
}

// Of the way to recompute that needs least; the other policies start with one way only.
std::int64_t Session::leanest_bytes(const memory::MicroBatchShape& shape, const memory::Plan& usual) const {
  std::int64_t least = predictor->bytes(shape, usual);
  if (config.memory.policy != "predictive") return least;
  for (const auto& tried : allowed_plans(config, *model, share))
    least = std::min(least, predictor->bytes(shape, tried));
  return least;
}

memory::MicroBatchShape Session::heaviest_evaluation(const memory::Plan& wanted) const {
  return total(std::span(evaluated).first(std::min(static_cast<std::size_t>(wanted.micro_batch), evaluated.size())));
}

// It recomputes nothing, so that only the micro-batch counts.
std::int64_t Session::evaluation_bytes(const memory::Plan& wanted) const {
  return evaluated.empty() ? 0 : evaluation_predictor->bytes(heaviest_evaluation(wanted), {});
}

std::int64_t Session::micro_batch_bytes(const memory::Plan& wanted) const {
  return predictor->bytes(draws_at(wanted.resolution).heaviest(wanted.micro_batch), wanted);
}

std::int64_t Session::predicted_peak(const memory::Plan& wanted) const {
  return meter.live() + std::max(micro_batch_bytes(wanted), evaluation_bytes(wanted));
}

void Session::take_over(const memory::Plan& wanted, std::int64_t micro_batch, std::int64_t evaluation) const {
  predictor->take_over(draws_at(wanted.resolution).heaviest(wanted.micro_batch), wanted, micro_batch);
  if (!evaluated.empty()) evaluation_predictor->take_over(heaviest_evaluation(wanted), {}, evaluation);
}

namespace {

// The largest predicted peak that is within `aim` when it is corrected: by the class's offset, and by the largest scale
// of the rank, since packs go beyond what plans of the class needed.
std::int64_t before_correction(const memory::Calibration& calibration, int rank, const memory::Plan& plan,
                               std::int64_t aim) {
  std::int64_t offset = 0, scale = 10000;
  for (const auto& entry : calibration.entries()) {
    if (entry.rank != rank) continue;
    scale = std::max(scale, entry.scale);
    if (entry.shape_class == memory::shape_class(plan)) offset = entry.offset_bytes;
  }
  return std::min(aim - offset, memory::saturated(memory::wide(aim) * 10000 / memory::wide(scale)));
}

}  // namespace

memory::Fill Session::fill(const memory::Plan& wanted, std::int64_t number) const {
  memory::Fill with;
  const bool judged = candidates.find(wanted) != nullptr;
  if (judged) with = fill(wanted, number, controller->state());
  if (config.batch.packing != "bytes") return with;
  const auto room_of = [&](std::int64_t aim) {
    return before_correction(controller->state().calibration, communicator.rank(), wanted, aim) - meter.live();
  };
  const std::int64_t target = target_of(config.memory);
  if (!judged) with.bytes = room_of(meter.budget() / 10000 * target);
  const Setting& most = config.batch.max_memory;
  if (!most.is("budget"))
    with.bytes = std::min(with.bytes, room_of(bytes_or_auto(most, "batch.max_memory").value_or(meter.budget())));
  with.bytes = std::max<std::int64_t>(1, with.bytes);  // what fits nowhere is run alone
  return with;
}

memory::Fill Session::fill(const memory::Plan& wanted, std::int64_t number, const memory::PolicyState& known) const {
  const std::int64_t target = target_of(config.memory);
  const memory::FillLimits limits{communicator.rank(), meter.budget(), target, number};
  // What the plan was judged on, with what is live on this rank.
  const memory::Candidate judged{wanted, predicted_peak(wanted), 1};
  return {ways, memory::fill_bytes(judged, limits, known) - meter.live()};
}

[[noreturn]] void Session::refuse_budget(int rank, std::int64_t micro, std::int64_t needed, std::int64_t bytes) const {
  const bool may_recompute = config.memory.recompute.is("auto") || config.memory.recompute.is("all");
  const bool may_shrink = config.batch.micro.is("auto") || micro <= 1;
  fail(
      ExitCode::kMemory,
      "rank {}: a micro-batch of {} needs {} and the budget is {} (memory.budget); no plan fits. Raise the budget, {}{}"
      "or lower data.resolution",
      rank, micro, format_bytes(needed), format_bytes(bytes), may_shrink ? "" : "set batch.micro = \"auto\", ",
      may_recompute ? "" : "set memory.recompute = \"all\", ");
}

void Session::choose_plan() {
  plan.resolution = static_cast<int>(config.data.resolution);
  if (config.memory.policy == "predictive") {
    choose_candidate();
  } else {
    warn_of_unread_table("only the predictive policy starts from it (memory.policy)");
    choose_largest();
  }
  if (config.memory.policy == "fixed" && !config.batch.accumulation.is("auto")) {
    memory::check_fixed(plan.micro_batch, config.batch.accumulation.as_integer(), communicator.world(),
                        config.batch.effective);
  }
}

// The predictive policy's: the fastest candidate that fits all ranks.
void Session::choose_candidate() {
  calibration = read_calibration(*this);
  // One search for the sample serves the timings and what steps are compared with.
  const std::int64_t middle = middling(source);
  costs = measure_costs(*this, middle);
  way_times = {costs, memory::weight_of(source.shape_at(middle, config.data.resolution))};
  memory::PolicyState fresh;
  fresh.calibration = calibration;
  const memory::ChoiceLimits limits{budgets, target_of(config.memory), 0};
  candidates = make_candidates(*this);
  meter.reset_peak();  // the runs that were timed belong to no step: their peak must not correct a prediction
  const memory::CandidateTable start = start_candidates();
  const memory::Candidate* chosen = memory::first_choice(start, limits, fresh);
  if (chosen == nullptr) {
    const auto tightest = std::min_element(budgets.begin(), budgets.end());
    const memory::Candidate* least = memory::smallest(start, budgets, fresh);
    const int rank = static_cast<int>(tightest - budgets.begin());
    refuse_budget(rank, least->plan.micro_batch, calibration.corrected(rank, least->plan, least->bytes), *tightest);
  }
  plan = chosen->plan;
  start_from_table(limits, fresh);
  if (!turns(config, "micro_batch")) candidates = candidates_of(plan.micro_batch);  // it stays what it is now
  ways = way_times.ways(candidates.all(), share);
}

void Session::learn(const memory::TimedShare& timed) {
  if (candidates.empty()) return;
  // Where samples have types, what is compared is shown, and worth its dry runs.
  if (tasks.names.empty()) predictor->grant(timed.microseconds / kStepsOfDryRun);
  if (!way_times.took(timed)) return;
  ways = way_times.ways(candidates.all(), share);
}

// The measured plan of the table's row, where the dry run agrees that it fits.
void Session::start_from_table(const memory::ChoiceLimits& limits, const memory::PolicyState& known) {
  if (!config.batch.micro.is("auto")) return warn_of_unread_table("batch.micro says where to begin");
  const std::int64_t smallest = *std::min_element(budgets.begin(), budgets.end());
  const auto found = find_table(*this);
  if (!found) return;
  const auto* row = memory::matching_row(found->table, table_key(*this), share, smallest, found->file);
  const auto* candidate = row == nullptr ? nullptr : candidates.find(row->plan);
  if (candidate == nullptr || memory::choose(memory::CandidateTable({*candidate}), limits, known) == nullptr) {
    spdlog::info("memory.table: no row of {} serves here; the plan is the predicted one", found->file);
    return;
  }
  plan = row->plan;
  spdlog::info("memory.table: starting with the row of {} for {}: {}", found->file, format_bytes(row->budget),
               memory::to_string(plan));
}

void Session::warn_of_unread_table(const char* why) const {
  const bool named = config.memory.table != "auto" && config.memory.table != "off";
  if (named && communicator.rank() == 0)
    spdlog::warn("memory.table = \"{}\" is not read: {}", config.memory.table, why);
}

memory::CandidateTable Session::candidates_of(std::int64_t micro_batch) const {
  std::vector<memory::Candidate> some;
  for (const auto& candidate : candidates.all()) {
    if (candidate.plan.micro_batch == micro_batch) some.push_back(candidate);
  }
  return memory::CandidateTable(std::move(some));
}

// Where batch.micro says with how many samples to begin, only candidates of that size.
memory::CandidateTable Session::start_candidates() const {
  return config.batch.micro.is("auto") ? candidates : candidates_of(config.batch.micro.as_integer());
}

// The other policies': the largest micro-batch at the configured recompute. Each rank says what fits under its own
// budget; all take the least.
void Session::choose_largest() {
  const auto configured = configured_recompute(config.memory, model->language_blocks());
  const auto fits = [&](int micro, std::int64_t fraction) {
    memory::Plan tried = plan;
    tried.micro_batch = micro;
    return memory::wide(predicted_peak(tried)) * 10000 <= memory::wide(fraction) * memory::wide(budget);
  };
  const std::int64_t target = target_of(config.memory);
  const int smallest = static_cast<int>(std::min(config.batch.min_micro, share));
  const int largest = static_cast<int>(std::min(config.batch.max_micro, share));
  const int wish = configured ? *configured : (fits(smallest, target) ? 0 : model->language_blocks());
  const std::vector<std::int64_t> recompute_wish = {wish};
  for (const auto& numbers : ddp::share_numbers(communicator, recompute_wish)) {
    plan.recompute_blocks = std::max(plan.recompute_blocks, static_cast<int>(numbers.at(0)));
  }
  plan.offload = config.memory.offload.is("on") && plan.recompute_blocks > 0;
  int micro = memory::largest_micro_batch(smallest, largest, [&](int n) { return fits(n, target); });
  // A single sample may use the band above the target; more than the budget it may not.
  if (micro == 0 && fits(smallest, 10000)) micro = smallest;
  if (!config.batch.micro.is("auto")) micro = static_cast<int>(config.batch.micro.as_integer());
  plan.micro_batch = smallest;
  const std::vector<std::int64_t> mine = {micro, predicted_peak(plan), budget};
  const auto all = ddp::share_numbers(communicator, mine);
  for (std::size_t rank = 0; rank < all.size(); ++rank) {
    if (all[rank][0] == 0) refuse_budget(static_cast<int>(rank), smallest, all[rank][1], all[rank][2]);
    micro = std::min(micro, static_cast<int>(all[rank][0]));
  }
  plan.micro_batch = micro;
}

// The plan that the run had settled on (batch.micro is only where it began), where the settings leave it free and it
// still fits every rank; else the one just chosen.
void Session::adopt_saved_plan() {
  if (config.memory.policy != "predictive") plan.resolution = state.plan.resolution;
  if (config.memory.policy == "fixed") return;
  memory::Plan saved = state.plan;
  const auto most = std::max<std::int64_t>(1, std::min(share, config.batch.max_micro));
  const auto least = std::min(most, config.batch.min_micro);
  saved.micro_batch = static_cast<int>(std::clamp<std::int64_t>(saved.micro_batch, least, most));
  const bool known = candidates.empty() || candidates.find(saved) != nullptr;
  const bool same =
      known && configured_recompute(config.memory, model->language_blocks()).value_or(saved.recompute_blocks) ==
                   saved.recompute_blocks;
  const std::vector<std::int64_t> fits = {same && predicted_peak(saved) <= budget ? 1 : 0};
  for (const auto& numbers : ddp::share_numbers(communicator, fits)) {
    if (numbers.at(0) == 0) return;
  }
  plan = saved;
}

std::string Session::plan_text() {
  auto breakdown = dry->static_breakdown();
  breakdown["workspace"] += meter.workspace();
  if (cache && cache->device_bytes() > 0) breakdown["cache"] += cache->device_bytes();
  auto shape = draws_at(plan.resolution).heaviest(plan.micro_batch);
  const bool evaluation = evaluation_bytes(plan) > predictor->bytes(shape, plan);
  if (evaluation) shape = heaviest_evaluation(plan);
  const auto ledger = evaluation ? dry->evaluation(shape) : dry->micro_batch(shape, plan);
  for (const auto& [label, bytes] : ledger.breakdown_at_peak()) {
    breakdown[fmt::format("activations: {}", family_of_label(label))] += bytes;
  }
  std::int64_t sum = 0;
  std::string text;
  for (const auto& [label, bytes] : breakdown) {
    text += fmt::format("  {:<28} {:>12}\n", label, format_bytes(bytes));
    sum += bytes;
  }
  if (const std::int64_t unused = meter.reserves() ? predicted_peak(plan) - sum : 0; unused > 0) {
    text += fmt::format("  {:<28} {:>12}\n", "reserved, unused", format_bytes(unused));
    sum += unused;
  }
  const std::string host =
      cache && cache->host_bytes() > 0
          ? fmt::format("beside the budget, up to {} of host memory for features (cache.host_bytes)\n",
                        format_bytes(cache->host_bytes()))
          : "";
  return fmt::format(
      "plan: {}, effective batch {} over {} rank{}\npredicted peak of the heaviest micro-batch{} ({} samples, {} "
      "tokens, {} patches):\n{}  {:<28} {:>12}  {:.1f} % of {}\n{}",
      memory::to_string(plan), config.batch.effective, communicator.world(), communicator.world() == 1 ? "" : "s",
      evaluation ? " of the evaluation" : "", shape.samples, shape.tokens, shape.patches, text, "sum",
      format_bytes(sum), 100.0 * static_cast<double>(sum) / static_cast<double>(budget), format_bytes(budget), host);
}

}  // namespace plimsoll::train
