#pragma once
// How good the policy is on episodes that it never saw: its sampled actions against the expert's.

#include <cstdint>
#include <functional>
#include <vector>

#include "memory/guardian.h"
#include "train/action_error.h"
#include "train/session.h"

namespace plimsoll::train {

/// Whose actions are measured, on which samples, and how many of them at once. All of it outlives the measuring.
struct Examinee {
  const model::VlaModel& model;
  const data::SampleSource& source;
  c10::Device place;            ///< where the model is
  memory::DeviceMemory& meter;  ///< that device's
  std::uint64_t seed = 0;       ///< of the noise that sampled actions start from
  std::int64_t at_once = 1;     ///< samples of a micro-batch, at most
  /// Bytes of a micro-batch, as memory::MicroBatchWork has it.
  std::function<std::int64_t(const memory::MicroBatchShape&, std::int64_t room)> predicted = nullptr;
  std::function<std::int64_t()> give_up = nullptr;  ///< as there
};

/// The `count` held-out samples that are measured on, spread evenly over all of them; fewer if there are fewer.
std::vector<std::int64_t> evaluated_samples(const data::SampleSource& source, std::int64_t count);

/// Measures on `count` held-out samples spread evenly over all of them (fewer if there are fewer), dealt over the
/// ranks, micro-batch by micro-batch under the guardian. What a sample's noise is depends on the seed and on its place
/// among these samples alone. Collective. All zeros when nothing is held out. Throws Error(kMemory) when a single
/// sample does not fit.
ActionError measure_action_error(const Examinee& examinee, std::int64_t count, ddp::Communicator& communicator);

/// The same of a run's model, by its seed and in micro-batches of its plan, whose bytes are predicted.
ActionError measure_action_error(Session& session, std::int64_t count);

}  // namespace plimsoll::train
