#pragma once
// The trainer's dry run: the same model and the same step, on meta. Nothing of the model is allocated.

#include <cstdint>
#include <memory>
#include <span>

#include "memory/event.h"
#include "memory/predictor.h"
#include "model/vla.h"

namespace plimsoll::train {

/// A model without data and the bytes of its steps. One thread.
class DryStep {
 public:
  /// `extra`: floats behind the gradients in the reduction buffer (FlatBuffers).
  DryStep(const model::VlaOptions& options, std::uint64_t seed, std::int64_t effective_batch, std::int64_t extra);
  ~DryStep();

  /// Live between micro-batches: weights, adapters, expert, flat buffers; without the workspace arena. By label.
  const memory::Breakdown& static_breakdown() const;
  std::int64_t static_bytes() const;

  /// Peak of one forward and backward above the static bytes.
  std::int64_t activation_bytes(const memory::MicroBatchShape& shape, int recompute_blocks) const;
  /// The same with every event kept: what its breakdown at the peak is made of, and what a real run must equal.
  memory::Ledger micro_batch(const memory::MicroBatchShape& shape, int recompute_blocks) const;
  /// Most library scratch that an operator takes at once in a micro-batch of these samples: what the workspace arena
  /// must hold.
  std::int64_t scratch_bytes(std::span<const SampleShape> shapes) const;
  int language_blocks() const;

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace plimsoll::train
