#pragma once
// What the VLM makes of samples, outside of any step: in evaluation mode, micro-batch by micro-batch, as many at once
// as are predicted to fit the budget. For the feature cache.

#include <cstdint>
#include <functional>
#include <span>
#include <string>

#include "train/session.h"

namespace plimsoll::train {

/// Calls `take` with some of the samples and their features [rows, hidden], until it has had all, in order. Every rank
/// does its own; not collective. Samples have pictures of the plan's resolution. Throws Error(kMemory) naming the
/// sample that does not fit alone.
void encode(Session& session, model::Features which, std::span<const std::int64_t> indices,
            const std::function<void(std::span<const model::StreamSample> samples, const at::Tensor& features)>& take);

/// Deals samples to the ranks, so that each has its turn of every few, and encodes them as above; all ranks meet again
/// and again, so that none is taken for lost that has heavier ones. What `take` has done is done on all ranks when it
/// returns. `enough` ends a rank's part early; `say` is told now and then how far all are. Collective.
void encode_dealt(Session& session, model::Features which, std::span<const std::int64_t> samples,
                  const std::function<void(std::span<const model::StreamSample>, const at::Tensor&)>& take,
                  const std::function<bool()>& enough, const std::function<void(const std::string&)>& say);

}  // namespace plimsoll::train
