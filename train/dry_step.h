#pragma once
// The trainer's dry run: the same model and the same step, on meta. Nothing of the model is allocated.

#include <cstdint>
#include <memory>
#include <span>

#include "memory/event.h"
#include "memory/predictor.h"
#include "model/vla.h"
#include "train/step.h"

namespace plimsoll::train {

/// A model without data and the bytes of its steps. One thread.
class DryStep {
 public:
  /// `sums` and `world` make what lies behind the gradients in the reduction buffer (FlatBuffers).
  DryStep(const model::VlaOptions& options, std::uint64_t seed, std::int64_t effective_batch, const SumSlots& sums,
          int world);
  ~DryStep();

  /// Live between micro-batches: weights, adapters, expert, flat buffers; without the workspace arena. By label.
  const memory::Breakdown& static_breakdown() const;
  std::int64_t static_bytes() const;
  /// The allocations and frees that making the model and its buffers takes.
  const std::vector<memory::Event>& static_events() const;

  /// Peak of one forward and backward above the static bytes.
  std::int64_t activation_bytes(const memory::MicroBatchShape& shape, const memory::Plan& plan) const;
  /// The same with every event kept: what its breakdown at the peak is made of, and what a real run must equal.
  memory::Ledger micro_batch(const memory::MicroBatchShape& shape, const memory::Plan& plan) const;
  /// Peak of sampling actions for such a batch (evaluation) above the static bytes, and with every event kept.
  std::int64_t evaluation_bytes(const memory::MicroBatchShape& shape) const;
  memory::Ledger evaluation(const memory::MicroBatchShape& shape) const;
  /// Peak of VlaModel::encode for such a batch above the static bytes, and with every event kept.
  std::int64_t encode_bytes(const memory::MicroBatchShape& shape, model::Features which) const;
  memory::Ledger encoding(const memory::MicroBatchShape& shape, model::Features which) const;
  /// Most library scratch that an operator takes at once in a micro-batch of these samples, or in sampling their
  /// actions: what the workspace arena must hold.
  std::int64_t scratch_bytes(std::span<const SampleShape> shapes) const;
  std::int64_t evaluation_scratch_bytes(std::span<const SampleShape> shapes) const;
  const model::VlaModel& model() const;
  /// FlatBuffers::layout_hash of such a model.
  std::uint64_t layout_hash() const;

 private:
  void run_once(std::span<const SampleShape> shapes, const model::Recompute& recompute) const;
  memory::Ledger run(const memory::MicroBatchShape& shape, const memory::Plan& plan, bool keep_events) const;
  memory::Ledger evaluate(const memory::MicroBatchShape& shape, bool keep_events) const;
  memory::Ledger encode(const memory::MicroBatchShape& shape, model::Features which, bool keep_events) const;

  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace plimsoll::train
