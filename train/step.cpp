#include "train/step.h"

#include <chrono>
#include <cmath>

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

std::vector<model::StreamSample> taken(std::span<const model::StreamSample> samples,
                                       std::span<const std::size_t> places) {
  std::vector<model::StreamSample> some;
  for (const std::size_t place : places) some.push_back(samples[place]);
  return some;
}

}  // namespace

memory::MicroBatchShape shape_of(std::span<const model::StreamSample> samples) {
  memory::MicroBatchShape total{static_cast<std::int64_t>(samples.size()), 0, 0};
  for (const auto& sample : samples) total += sample.sample->shape();
  return total;
}

model::Recompute recompute_of(const memory::Plan& plan) {
  return {plan.recompute_blocks, plan.recompute_vision, plan.recompute_expert, plan.offload};
}

at::Tensor forward_backward(const model::VlaModel& model, const model::PackedBatch& batch,
                            const model::Recompute& recompute, std::int64_t effective_batch,
                            const std::function<void(const at::Tensor&)>& keep) {
  const at::AutoGradMode grad(true);
  const AllocationLabel label("backward");  // the model's parts label what they make; the rest is backward's
  const at::Tensor losses = model.sample_losses(batch, recompute, keep);
  // Every sample counts 1 / B, however the batch is cut: that is why splitting never changes the gradient.
  const at::Tensor weights = at::full(losses.sizes(), 1.0 / static_cast<double>(effective_batch), losses.options());
  torch::autograd::backward({losses}, {weights});
  return losses.detach();
}

namespace {

/// A share in the order in which the step takes it, and the way in which it is run.
struct ArrangedShare {
  std::vector<model::StreamSample> samples;
  memory::Plan way;
};

ArrangedShare arrange(std::span<const model::StreamSample> share, const memory::Plan& plan, const memory::Fill& fill,
                      memory::Predictor& predictor) {
  const auto weights = weights_of(share);
  const auto fits = [&](const memory::Plan& way, std::span<const std::size_t> places) {
    return predictor.fits(shape_of(taken(share, places)), way, fill.bytes);
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
      guardian_(meter) {}

StepResult Step::run(const StepInput& asked) {
  const auto start = std::chrono::steady_clock::now();
  // What an evaluation or a checkpoint needed is no micro-batch's, and must not correct a prediction of one.
  meter_.reset_peak();
  const ArrangedShare share = arrange(asked.samples, asked.plan, asked.fill, predictor_);
  StepInput input = asked;
  input.samples = share.samples;
  way_ = share.way;
  out_of_memory_ = other_recompute_ = false;
  communicator_.enter(input.step, "compute");
  buffers_.start_step();
  non_finite_sample_ = -1;
  StepResult result;
  result.guardian = guardian_.run(input.samples.size(), static_cast<std::size_t>(way_.micro_batch), work(input));
  const std::span<float> slots = buffers_.extra().subspan(kLossSlots);
  const std::int64_t took = microseconds_since(start);
  if (result.guardian.retries == 0 && result.guardian.splits == 0 && !result.guardian.failed)
    result.timed = {way_, std::ssize(input.samples), weight_of(input.samples), took};
  ddp::pack(report(input, result.guardian, took / 1000), communicator_.rank(), slots);

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
  result.loss = buffers_.extra()[0] / buffers_.extra()[1];
  if (result.verdict.action == ddp::Action::kApply) {
    result.gradient_norm = apply_gradients(buffers_, options_, input.learning_rate_factor, input.updates);
  }
  return result;
}

memory::MicroBatchWork Step::work(const StepInput& input) {
  return {[this, &input](memory::Piece piece) { forward_backward(input, piece); },
          [this] {
            buffers_.discard_staging();
            if (keeper_ != nullptr) keeper_->discard();
          },
          [this, &input](memory::Piece piece, std::int64_t room) {
            const auto samples = input.samples.subspan(piece.begin, piece.count);
            return predictor_.attempt_bytes(shape_of(samples), plan_of(input, piece), room);
          },
          [this, &input](memory::Piece piece) { return keep_to_plan(input, piece); }};
}

memory::Plan Step::plan_of(const StepInput& input, memory::Piece piece) {
  if (out_of_memory_) return input.plan;
  // The budget may have fallen within the step.
  const std::int64_t room = std::min(input.fill.bytes, meter_.budget() - meter_.live());
  const auto fits = [&](const memory::Plan& tried) {
    return predictor_.fits(shape_of(input.samples.subspan(piece.begin, piece.count)), tried, room);
  };
  return memory::way_of_micro_batch(way_, input.fill, fits);
}

// The rest of a step that ran out of memory is run as its plan says.
std::size_t Step::keep_to_plan(const StepInput& input, memory::Piece piece) {
  const auto most = static_cast<std::size_t>(input.plan.micro_batch);
  const bool other =
      !out_of_memory_ && (!memory::recomputes_alike(plan_of(input, piece), input.plan) || piece.count > most);
  out_of_memory_ = true;
  return other ? most : 0;
}

void Step::forward_backward(const StepInput& input, memory::Piece piece) {
  const auto samples = input.samples.subspan(piece.begin, piece.count);
  const model::PackedBatch batch = model::pack(samples, rules_, device_);
  const memory::Plan way = plan_of(input, piece);
  other_recompute_ = other_recompute_ || !memory::recomputes_alike(way, input.plan);
  std::function<void(const at::Tensor&)> keep;
  if (keeper_ != nullptr) keep = [&](const at::Tensor& features) { keeper_->stage(samples, features); };
  commit(samples, train::forward_backward(model_, batch, recompute_of(way), options_.effective_batch, keep));
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
    return buffers_.discard_staging();
  }
  buffers_.commit_staging();
  if (keeper_ != nullptr) keeper_->commit();
  for (std::size_t i = 0; i < samples.size(); ++i) buffers_.extra()[0] += values[i];
  buffers_.extra()[1] += static_cast<float>(samples.size());
}

ddp::Report Step::report(const StepInput& input, const memory::GuardianReport& guardian, std::int64_t step_ms) {
  ddp::Report report;
  report.budget_bytes = meter_.budget();
  report.measured_peak_bytes = meter_.peak();
  report.predicted_peak_bytes = guardian.predicted_peak;
  report.other_way = way_ != input.plan || other_recompute_;
  report.other_recompute = other_recompute_;
  report.failed_request_bytes = guardian.failed_request;
  report.retries = guardian.retries;
  report.allocator_retries = meter_.take_allocator_retries();
  report.step_ms = step_ms;
  report.load_ms = input.load_ms;
  report.failed = guardian.failed;
  report.non_finite = non_finite_sample_ >= 0;
  report.stop_requested = input.stop_requested;
  report.sample_index = guardian.failed ? input.samples[guardian.failed_sample].sample->index : non_finite_sample_;
  report.plan_hash = memory::plan_hash(input.plan) ^ input.table_hash;
  report.weight_hash = input.hash_weights ? buffers_.weight_hash() : 0;
  return report;
}

double apply_gradients(FlatBuffers& buffers, const StepOptions& options, double learning_rate_factor,
                       std::int64_t updates) {
  const FlatKernels& kernels = buffers.kernels();
  const double norm = kernels.l2_norm(buffers.gradients());
  const double clip = options.clip_norm;
  const float scale = clip > 0 && norm > clip ? static_cast<float>(clip / (norm + 1e-6)) : 1.0F;
  for (const auto group : {model::ParameterGroup::kVlm, model::ParameterGroup::kExpert}) {
    const FlatRange range = buffers.group(group);
    AdamWOptions adamw = group == model::ParameterGroup::kVlm ? options.adapters : options.expert;
    adamw.learning_rate *= learning_rate_factor;
    kernels.adamw(part(buffers.parameters(), range), part(buffers.gradients(), range),
                  part(buffers.first_moment(), range), part(buffers.second_moment(), range),
                  adamw_factors(adamw, updates + 1, scale));
  }
  return norm;
}

}  // namespace plimsoll::train
