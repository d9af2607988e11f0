#include "train/step.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>

#include "core/scope.h"
#include "memory/planning/packing.h"

namespace plimsoll::train {
namespace {

std::int64_t microseconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now() - start).count();
}

std::vector<std::int64_t> weights_of(std::span<const model::StreamSample> samples) {
  std::vector<std::int64_t> weights;
  for (const auto& sample : samples) weights.push_back(memory::weight_of(sample.sample->shape()));
  return weights;
}

std::int64_t weight_of(std::span<const model::StreamSample> samples) {
  std::int64_t weight = 0;
  for (const std::int64_t one : weights_of(samples)) weight += one;
  return weight;
}

std::vector<std::uint8_t> types_of(std::span<const model::StreamSample> samples) {
  std::vector<std::uint8_t> types;
  for (const auto& sample : samples) types.push_back(sample.type);
  return types;
}

std::vector<model::StreamSample> taken(std::span<const model::StreamSample> samples,
                                       std::span<const std::size_t> places) {
  std::vector<model::StreamSample> some;
  for (const std::size_t place : places) some.push_back(samples[place]);
  return some;
}

}  // namespace

std::vector<double> type_means(const StepResult& result, std::span<const std::int64_t> counts) {
  std::vector<double> means;
  for (std::size_t type = 0; type < counts.size(); ++type)
    means.push_back(counts[type] > 0 ? result.type_losses[type] / static_cast<double>(counts[type]) : 0.0);
  return means;
}

memory::MicroBatchShape shape_of(std::span<const model::StreamSample> samples) {
  memory::MicroBatchShape total{static_cast<std::int64_t>(samples.size()), 0, 0};
  for (const auto& sample : samples) total += sample.sample->shape();
  return total;
}

model::Recompute recompute_of(const memory::Plan& plan) {
  return {plan.recompute_blocks, plan.recompute_vision, plan.recompute_expert, plan.offload};
}

at::Tensor forward_backward(const model::VlaModel& model, const model::PackedBatch& batch,
                            const model::Recompute& recompute, std::int64_t effective_batch, const model::Shown& shown,
                            bool* in_backward) {
  const at::AutoGradMode grad(true);
  const AllocationLabel label("backward");  // the model's parts label what they make; the rest is backward's
  const at::Tensor losses = model.sample_losses(batch, recompute, shown);
  if (in_backward != nullptr) *in_backward = true;
  // Every sample counts its weight / B, however the batch is cut: that is why splitting never changes the gradient.
  const at::Tensor weights = batch.loss_weight * (1.0 / static_cast<double>(effective_batch));
  torch::autograd::backward({losses}, {weights});
  return losses.detach();
}

namespace {

/// A share in the order in which the step takes it, and the way in which it is run.
struct ArrangedShare {
  std::vector<model::StreamSample> samples;
  memory::Plan way;
  std::vector<std::size_t> ends = {};  ///< of micro-batches that are cut by bytes, in that order
};

// All that the plan says but for the count: of that as many as fit.
ArrangedShare pack_by_bytes(std::span<const model::StreamSample> share, const memory::Plan& plan, std::int64_t bytes,
                            const StepOptions& options, memory::Predictor& predictor) {
  const auto fits = [&](std::span<const std::size_t> places) {
    return places.size() <= options.most_samples && predictor.fits(shape_of(taken(share, places)), plan, bytes);
  };
  ArrangedShare arranged{{}, plan};
  for (const auto& places : memory::packed(weights_of(share), types_of(share), options.diversity, fits)) {
    const auto samples = taken(share, places);
    arranged.samples.insert(arranged.samples.end(), samples.begin(), samples.end());
    arranged.ends.push_back(arranged.samples.size());
  }
  arranged.way.micro_batch = static_cast<int>(share.size());
  return arranged;
}

ArrangedShare arrange(std::span<const model::StreamSample> share, const memory::Plan& plan, const memory::Fill& fill,
                      memory::Predictor& predictor) {
  const auto weights = weights_of(share);
  const auto fits = [&](const memory::Plan& way, std::span<const std::size_t> places) {
    return predictor.fits_in_time(shape_of(taken(share, places)), way, fill.bytes);
  };
  const memory::Plan way = memory::way_of_share(weights, plan, fill, fits);
  return {taken(share, memory::balanced_order(weights, static_cast<std::size_t>(way.micro_batch))), way};
}

}  // namespace

Step::Step(const model::VlaModel& model, const model::PackingRules& rules, at::Device device, FlatBuffers& buffers,
           ddp::Communicator& communicator, memory::DeviceMemory& meter, memory::Predictor& predictor,
           const StepOptions& options)
    : model_(model),
      rules_(rules),
      device_(device),
      buffers_(buffers),
      communicator_(communicator),
      meter_(meter),
      predictor_(predictor),
      options_(options),
      guardian_(meter) {
  const SumSlots& sums = options.sums;
  if (sums.layer() > 0) type_gradients_.emplace(sums.types, sums.out, sums.in, device);
}

namespace {

// Samples that run the whole model first, then those that come with their hidden states: a micro-batch is of one kind.
std::vector<model::StreamSample> by_kind(std::span<const model::StreamSample> samples, std::size_t& live) {
  std::vector<model::StreamSample> sorted(samples.begin(), samples.end());
  const auto cached = std::stable_partition(sorted.begin(), sorted.end(),
                                            [](const auto& item) { return !item.sample->vlm.has_states(); });
  live = static_cast<std::size_t>(cached - sorted.begin());
  return sorted;
}

void take_in(std::span<const model::StreamSample> samples, const FeatureKeeper& keeper, bool once,
             std::int64_t microseconds, FeatureTimes& times) {
  std::int64_t with = 0, without = 0;
  for (const auto& item : samples) {
    const bool comes_with = item.sample->vlm.has_states() || item.sample->vlm.has_features();
    with += comes_with ? 1 : 0;
    without += !comes_with && keeper.can_keep(*item.sample) ? 1 : 0;
  }
  times.came_with += with;
  if (once && with == std::ssize(samples)) {
    times.with += with;
    times.with_us += microseconds;
  } else if (once && without == std::ssize(samples)) {
    times.without += without;
    times.without_us += microseconds;
  }
}

void add(memory::GuardianReport& sum, const memory::GuardianReport& part, std::size_t offset) {
  sum.micro_batches += part.micro_batches;
  sum.retries += part.retries;
  sum.splits += part.splits;
  sum.predicted_peak = std::max(sum.predicted_peak, part.predicted_peak);
  sum.failed_request = std::max(sum.failed_request, part.failed_request);
  if (part.failed && !sum.failed) {
    sum.failed_sample = offset + part.failed_sample;
    sum.failed_peak = part.failed_peak;
  }
  sum.failed = sum.failed || part.failed;
  if (!part.error.empty()) sum.error = part.error;
}

}  // namespace

memory::GuardianReport Step::run_part(const StepInput& asked, StepResult& result) {
  const bool by_bytes = options_.pack_by_bytes && !out_of_memory_ && asked.fill.bytes > 0;
  StepInput input = asked;
  if (by_bytes) input.fill.bytes = packing_room_.of(asked.fill.bytes);
  const auto arranging = std::chrono::steady_clock::now();
  const ArrangedShare share =
      by_bytes ? pack_by_bytes(asked.samples, asked.plan, input.fill.bytes, options_, predictor_)
               : arrange(asked.samples, asked.plan, out_of_memory_ ? memory::Fill{} : asked.fill, predictor_);
  result.arranging_us += microseconds_since(arranging);
  ends_ = share.ends;
  const auto start = std::chrono::steady_clock::now();  // what arranging takes, no way of running changes
  input.samples = share.samples;
  way_ = share.way;
  other_way_ = other_way_ || way_ != input.plan;
  auto report = guardian_.run(input.samples.size(), static_cast<std::size_t>(way_.micro_batch), work(input));
  if (report.failed) failed_sample_ = input.samples[report.failed_sample].sample->index;
  const bool live = !input.samples.front().sample->vlm.has_states();
  const bool once = report.retries == 0 && report.splits == 0 && !report.failed;
  const std::int64_t took = microseconds_since(start);
  if (live && once) result.timed = {way_, std::ssize(input.samples), weight_of(input.samples), took};
  if (keeper_ != nullptr) take_in(input.samples, *keeper_, once, took, result.features);
  compare_peaks();  // after what is timed
  return report;
}

StepResult Step::run(const StepInput& input) {
  const auto start = std::chrono::steady_clock::now();
  // What an evaluation or a checkpoint needed is no micro-batch's, and must not correct a prediction of one.
  meter_.reset_peak();
  peak_ = 0;
  type_memory_.assign(options_.sums.types, {});
  noted_.clear();  // of a step that was left by an error
  out_of_memory_ = other_way_ = other_recompute_ = pack_failed_ = false;
  failed_ = {};
  communicator_.enter(input.step, "compute");
  buffers_.start_step();
  if (keeper_ != nullptr) keeper_->start_step(input.step);
  non_finite_sample_ = failed_sample_ = -1;
  StepResult result;
  std::size_t live = 0;
  const auto sorted = by_kind(input.samples, live);
  const std::span<const model::StreamSample> whole = sorted;
  StepInput part = input;
  part.samples = whole.first(live);
  if (live > 0) result.guardian = run_part(part, result);
  part.samples = whole.subspan(live);
  if (live < whole.size() && !result.guardian.failed) add(result.guardian, run_part(part, result), live);
  result.failed = failed_;
  packing_room_.took(pack_failed_);
  const SumSlots& sums = options_.sums;
  const int rank = communicator_.rank();
  pack_types(type_memory_, train::part(buffers_.extra(), {sums.memory(rank), sums.memory(rank + 1)}));
  const std::span<float> slots = buffers_.extra().subspan(static_cast<std::size_t>(sums.size()));
  ddp::pack(report(input, result.guardian, microseconds_since(start) / 1000), rank, slots);

  communicator_.enter(input.step, "reduce");
  buffers_.reduce([this](std::span<float> all) { communicator_.all_reduce_sum(all); });

  result.reports = ddp::unpack(slots, communicator_.world());
  try {
    result.verdict = ddp::agree(result.reports, agreement_);
  } catch (const Error& error) {
    result.fatal = error;
    return result;
  }
  agreement_ = result.verdict.next;
  take_sums(result);
  if (result.verdict.action == ddp::Action::kApply) {
    result.gradient_norm = apply_gradients(
        buffers_, options_, {input.learning_rate_factor, input.updates, input.adapter_updates, result.live});
  }
  return result;
}

void Step::take_sums(StepResult& result) {
  const std::span<const float> sums = buffers_.extra();
  result.loss = sums[0] / sums[1];
  result.live = static_cast<std::int64_t>(sums[2]);
  const SumSlots& slots = options_.sums;
  const auto of_types = sums.subspan(kLossSlots, slots.types);
  result.type_losses.assign(of_types.begin(), of_types.end());
  for (std::size_t type = 0; slots.layer() > 0 && type < slots.types; ++type) {
    const auto begin = slots.gradients() + static_cast<std::int64_t>(type) * slots.layer();
    double squares = 0;
    const std::span<const float> gradient = part(sums, {begin, begin + slots.layer()});
    for (const float value : gradient) squares += double{value} * double{value};
    result.type_norms.push_back(std::sqrt(squares));
  }
  result.type_memory = sum_types(part(sums, {slots.memory(0), slots.size()}), slots.types);
}

memory::MicroBatchWork Step::work(const StepInput& input) {
  return {[this, &input](memory::Piece piece) { forward_backward(input, piece); },
          [this] {
            ++(in_backward_ ? failed_.backward : failed_.forward);
            buffers_.discard_staging();
            if (type_gradients_) type_gradients_->discard();
            if (keeper_ != nullptr) keeper_->discard();
          },
          [this, &input](memory::Piece piece, std::int64_t room) {
            const auto samples = input.samples.subspan(piece.begin, piece.count);
            return predictor_.attempt_bytes(shape_of(samples), plan_of(input, piece), room);
          },
          [this, &input](memory::Piece piece) { return keep_to_plan(input, piece); },
          [this] { return keeper_ != nullptr ? keeper_->give_up_device() : 0; },
          [this](std::size_t begin) { return most_from(begin); }};
}

memory::Plan Step::plan_of(const StepInput& input, memory::Piece piece) {
  if (out_of_memory_) return input.plan;
  // The budget may have fallen within the step.
  const std::int64_t room = std::min(input.fill.bytes, meter_.budget() - meter_.live());
  const auto fits = [&](const memory::Plan& tried) {
    return predictor_.fits_in_time(shape_of(input.samples.subspan(piece.begin, piece.count)), tried, room);
  };
  return memory::way_of_micro_batch(way_, input.fill, fits);
}

// To the end of the micro-batch, where the share was cut by bytes.
std::size_t Step::most_from(std::size_t begin) const {
  const auto end = std::ranges::upper_bound(ends_, begin);
  return end == ends_.end() || out_of_memory_ ? std::numeric_limits<std::size_t>::max() : *end - begin;
}

// What was foreseen, a budget having fallen within the step, says nothing against predictions; and a single sample is
// made smaller by no other cut.
bool Step::packed_too_much(const StepInput& input, memory::Piece piece) {
  if (out_of_memory_ || ends_.empty() || piece.count == 1) return false;
  const auto shape = shape_of(input.samples.subspan(piece.begin, piece.count));
  return predictor_.fits(shape, plan_of(input, piece), meter_.budget() - meter_.live());
}

// The rest of a step that ran out of memory is run as its plan says.
std::size_t Step::keep_to_plan(const StepInput& input, memory::Piece piece) {
  pack_failed_ = pack_failed_ || packed_too_much(input, piece);
  const auto most = static_cast<std::size_t>(input.plan.micro_batch);
  const bool other =
      !out_of_memory_ && (!memory::recomputes_alike(plan_of(input, piece), input.plan) || piece.count > most);
  out_of_memory_ = true;
  return other ? most : 0;
}

// Where samples have types, each micro-batch has its own peak, to be held against its prediction.
void Step::take_peak() {
  if (options_.sums.types == 0) return;
  peak_ = std::max(peak_, meter_.peak());
  meter_.reset_peak();
}

void Step::note_peak(std::span<const model::StreamSample> samples, const memory::Plan& way, std::int64_t live) {
  if (options_.sums.types == 0) return;
  const auto predicted = predictor_.known_bytes(shape_of(samples), way);
  if (!predicted) return;  // a bound was enough for the guardian, and says nothing of how exact predictions are
  noted_.push_back({samples, way, *predicted, meter_.peak() - live});
}

void Step::compare_peaks() {
  for (const NotedPeak& noted : noted_) {
    const auto first = noted.samples.front().type;
    const bool mixed = std::ranges::any_of(noted.samples, [&](const auto& item) { return item.type != first; });
    std::vector<TypedSample> typed;
    for (const auto& item : noted.samples) {
      const auto alone = mixed ? bytes_alone(item, noted.way) : std::optional<std::int64_t>(1);
      if (alone) typed.push_back({item.type, *alone});
    }
    if (typed.size() == noted.samples.size()) compare(typed, noted.predicted, noted.measured, type_memory_);
  }
  noted_.clear();
}

// Of so many sizes of single samples a run can pay dry runs, whatever its samples are.
std::optional<std::int64_t> Step::bytes_alone(const model::StreamSample& item, const memory::Plan& way) {
  constexpr int kMostLookedAt = 256;
  const memory::MicroBatchShape shape = shape_of(std::span<const model::StreamSample>(&item, 1));
  if (const auto known = predictor_.known_bytes(shape, way)) return known;
  if (looked_alone_ == kMostLookedAt) return std::nullopt;
  ++looked_alone_;
  return predictor_.bytes(shape, way);
}

void Step::forward_backward(const StepInput& input, memory::Piece piece) {
  in_backward_ = false;
  meter_.start_micro_batch();
  take_peak();
  const std::int64_t live = meter_.live();
  const auto samples = input.samples.subspan(piece.begin, piece.count);
  const model::PackedBatch batch = model::pack(samples, rules_, device_);
  const memory::Plan way = plan_of(input, piece);
  other_recompute_ = other_recompute_ || !memory::recomputes_alike(way, input.plan);
  model::Shown shown = keeper_ != nullptr ? keeper_->shown(samples) : model::Shown{};
  if (type_gradients_) shown.last_layer = type_gradients_->watch(types_of(samples));
  commit(samples,
         train::forward_backward(model_, batch, recompute_of(way), options_.effective_batch, shown, &in_backward_));
  note_peak(samples, way, live);
}

void Step::commit(std::span<const model::StreamSample> samples, const at::Tensor& losses) {
  buffers_.check_sinks();
  const at::Tensor on_host = losses.cpu();  // waits for the device, which is done with this micro-batch then
  const float* values = on_host.data_ptr<float>();
  std::int64_t bad = -1;
  for (std::size_t i = samples.size(); i-- > 0;) {
    if (!std::isfinite(values[i])) bad = samples[i].sample->index;
  }
  if (bad < 0 && !buffers_.staging_finite()) bad = samples.front().sample->index;
  if (bad >= 0) {
    if (non_finite_sample_ < 0) non_finite_sample_ = bad;
    if (keeper_ != nullptr) keeper_->discard();
    if (type_gradients_) type_gradients_->discard();
    return buffers_.discard_staging();
  }
  buffers_.commit_staging();
  const SumSlots& slots = options_.sums;
  if (type_gradients_) type_gradients_->commit(part(buffers_.extra(), {slots.gradients(), slots.memory(0)}));
  if (keeper_ != nullptr) keeper_->commit();
  for (std::size_t i = 0; i < samples.size(); ++i) {
    buffers_.extra()[0] += values[i];
    if (slots.types > 0) buffers_.extra()[kLossSlots + samples[i].type] += values[i];
  }
  buffers_.extra()[1] += static_cast<float>(samples.size());
  if (!samples.front().sample->vlm.has_states()) buffers_.extra()[2] += static_cast<float>(samples.size());
}

ddp::Report Step::report(const StepInput& input, const memory::GuardianReport& guardian, std::int64_t step_ms) {
  ddp::Report report;
  report.budget_bytes = meter_.budget();
  report.measured_peak_bytes = std::max(peak_, meter_.peak());
  report.predicted_peak_bytes = guardian.predicted_peak;
  report.other_way = other_way_ || other_recompute_;
  report.other_recompute = other_recompute_;
  report.failed_request_bytes = guardian.failed_request;
  report.retries = guardian.retries;
  report.allocator_retries = meter_.take_allocator_retries();
  report.step_ms = step_ms;
  report.load_ms = input.load_ms;
  report.failed = guardian.failed;
  report.non_finite = non_finite_sample_ >= 0;
  report.probed = input.drift.samples;
  report.drift_sum = input.drift.distances;
  report.angle_sum = input.drift.angles;
  report.stop_requested = input.stop_requested;
  report.sample_index = guardian.failed ? failed_sample_ : non_finite_sample_;
  report.plan_hash = memory::plan_hash(input.plan) ^ input.table_hash;
  report.weight_hash = input.hash_weights ? buffers_.weight_hash() : 0;
  return report;
}

double apply_gradients(FlatBuffers& buffers, const StepOptions& options, const UpdateInput& input) {
  const FlatKernels& kernels = buffers.kernels();
  const double clip = options.clip_norm;
  const auto scale_for = [clip](double norm) {
    return clip > 0 && norm > clip ? static_cast<float>(clip / (norm + 1e-6)) : 1.0F;
  };
  const double joint = options.clip_apart ? 0.0 : kernels.l2_norm(buffers.gradients());
  double squares = 0.0;
  for (const auto group : {model::ParameterGroup::kVlm, model::ParameterGroup::kExpert}) {
    const bool adapters = group == model::ParameterGroup::kVlm;
    const FlatRange range = buffers.group(group);
    float factor = scale_for(joint);
    if (options.clip_apart) {
      if (adapters && input.live == 0) continue;
      // The sum over all samples by their number becomes the mean over those that are live.
      const double mean = adapters && input.live > 0
                              ? static_cast<double>(options.effective_batch) / static_cast<double>(input.live)
                              : 1.0;
      const double norm = range.begin == range.end ? 0.0 : mean * kernels.l2_norm(part(buffers.gradients(), range));
      squares += norm * norm;
      factor = scale_for(norm) * static_cast<float>(mean);
    }
    const bool own_time = adapters && input.adapter_updates >= 0;
    AdamWOptions adamw = adapters ? options.adapters : options.expert;
    adamw.learning_rate *= input.learning_rate_factor;
    kernels.adamw(part(buffers.parameters(), range), part(buffers.gradients(), range),
                  part(buffers.first_moment(), range), part(buffers.second_moment(), range),
                  adamw_factors(adamw, (own_time ? input.adapter_updates : input.updates) + 1, factor));
  }
  return options.clip_apart ? std::sqrt(squares) : joint;
}

}  // namespace plimsoll::train
