#include "train/dry_step.h"

#include <functional>
#include <numeric>
#include <optional>
#include <utility>
#include <vector>

#include "core/scope.h"
#include "memory/dry_run.h"
#include "train/flat_buffers.h"

namespace plimsoll::train {
namespace {

// Memory depends on the totals only, so any way to deal them out to the samples serves. Patches come in fours, one
// token each.
std::vector<SampleShape> deal(const memory::MicroBatchShape& total) {
  std::vector<SampleShape> shapes(static_cast<std::size_t>(total.samples));
  for (std::int64_t i = 0; i < total.samples; ++i) {
    const auto part = [&](std::int64_t whole) { return whole / total.samples + (i < whole % total.samples ? 1 : 0); };
    shapes[static_cast<std::size_t>(i)] = {part(total.tokens), part(total.patches / 4) * 4, part(total.features),
                                           part(total.states)};
  }
  return shapes;
}

}  // namespace

struct DryStep::Parts {
  std::unique_ptr<model::VlaModel> model;
  std::unique_ptr<FlatBuffers> buffers;
  std::optional<TypeGradients> type_gradients;
  model::PackingRules rules, evaluation_rules;
  std::int64_t effective_batch;
  memory::Breakdown breakdown;
  std::vector<memory::Event> events;
};

DryStep::DryStep(const model::VlaOptions& options, std::uint64_t seed, std::int64_t effective_batch,
                 const SumSlots& sums, int world)
    : parts_(std::make_unique<Parts>()) {
  parts_->effective_batch = effective_batch;
  const auto ledger = memory::dry_run(
      [&] {
        parts_->model = std::make_unique<model::VlaModel>(options, at::Device(at::kMeta));
        parts_->buffers =
            std::make_unique<FlatBuffers>(parts_->model->parameters(), sums.size() + ddp::slot_count(world));
        if (sums.layer() > 0) parts_->type_gradients.emplace(sums.types, sums.out, sums.in, at::Device(at::kMeta));
      },
      true);
  parts_->rules = parts_->model->packing_rules(seed, false);
  parts_->evaluation_rules = parts_->model->packing_rules(seed, true);
  parts_->events = ledger.events();
  for (const auto& event : parts_->events) parts_->breakdown[event.label] += event.bytes;
  // One block of memory, in which the adapters lie first.
  const FlatRange adapters = parts_->buffers->group(model::ParameterGroup::kVlm);
  const std::int64_t of_adapters = (adapters.end - adapters.begin) * static_cast<std::int64_t>(sizeof(float));
  const std::int64_t trained = std::exchange(parts_->breakdown["trainable"], 0);
  parts_->breakdown["adapters"] += of_adapters;
  parts_->breakdown["expert and sensor"] += trained - of_adapters;
  std::erase_if(parts_->breakdown, [](const auto& entry) { return entry.second == 0; });
}

DryStep::~DryStep() = default;

const memory::Breakdown& DryStep::static_breakdown() const { return parts_->breakdown; }

const std::vector<memory::Event>& DryStep::static_events() const { return parts_->events; }

std::int64_t DryStep::static_bytes() const {
  return std::accumulate(parts_->breakdown.begin(), parts_->breakdown.end(), std::int64_t{0},
                         [](std::int64_t sum, const auto& entry) { return sum + entry.second; });
}

void DryStep::run_once(std::span<const SampleShape> shapes, const model::Recompute& recompute) const {
  model::Shown shown;
  if (parts_->type_gradients)
    shown.last_layer = parts_->type_gradients->watch(std::vector<std::uint8_t>(shapes.size(), 0));
  forward_backward(*parts_->model, model::pack_shapes(shapes, parts_->rules), recompute, parts_->effective_batch,
                   shown);
}

memory::Ledger DryStep::run(const memory::MicroBatchShape& shape, const memory::Plan& plan, bool keep_events) const {
  const auto shapes = deal(shape);
  return memory::dry_run([&] { run_once(shapes, recompute_of(plan)); }, keep_events);
}

std::int64_t DryStep::activation_bytes(const memory::MicroBatchShape& shape, const memory::Plan& plan) const {
  return run(shape, plan, false).peak();
}

memory::Ledger DryStep::micro_batch(const memory::MicroBatchShape& shape, const memory::Plan& plan) const {
  return run(shape, plan, true);
}

memory::Ledger DryStep::evaluate(const memory::MicroBatchShape& shape, bool keep_events) const {
  const auto shapes = deal(shape);
  return memory::dry_run([&] { parts_->model->sample_actions(model::pack_shapes(shapes, parts_->evaluation_rules)); },
                         keep_events);
}

std::int64_t DryStep::evaluation_bytes(const memory::MicroBatchShape& shape) const {
  return evaluate(shape, false).peak();
}

memory::Ledger DryStep::encode(const memory::MicroBatchShape& shape, model::Features which, bool keep_events) const {
  const auto shapes = deal(shape);
  return memory::dry_run([&] { parts_->model->encode(model::pack_shapes(shapes, parts_->evaluation_rules), which); },
                         keep_events);
}

std::int64_t DryStep::encode_bytes(const memory::MicroBatchShape& shape, model::Features which) const {
  return encode(shape, which, false).peak();
}

memory::Ledger DryStep::encoding(const memory::MicroBatchShape& shape, model::Features which) const {
  return encode(shape, which, true);
}

memory::Ledger DryStep::evaluation(const memory::MicroBatchShape& shape) const { return evaluate(shape, true); }

namespace {

std::int64_t scratch_noted(const std::function<void()>& body) {
  ScratchNote::largest() = 0;
  memory::dry_run(body);
  return ScratchNote::largest();
}

}  // namespace

std::int64_t DryStep::scratch_bytes(std::span<const SampleShape> shapes) const {
  return scratch_noted([&] { run_once(shapes, {}); });
}

std::int64_t DryStep::evaluation_scratch_bytes(std::span<const SampleShape> shapes) const {
  return scratch_noted([&] { parts_->model->sample_actions(model::pack_shapes(shapes, parts_->evaluation_rules)); });
}

const model::VlaModel& DryStep::model() const { return *parts_->model; }

std::uint64_t DryStep::layout_hash() const { return parts_->buffers->layout_hash(); }

}  // namespace plimsoll::train
