#pragma once
// Peaks of micro-batches beside their predictions, by the types of their samples ([tasks]): what each rank compares,
// and how it travels in the reduction. Without torch; pure; any thread.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "report/records.h"

namespace plimsoll::train {

/// Of one type, in one step: as it is written down.
using TypeMemory = report::TaskMemory;

/// What a sample counts by.
struct TypedSample {
  std::size_t type = 0;
  std::int64_t bytes = 0;  ///< that it is predicted to need alone; in a micro-batch of one type any number serves
};

/// Takes a micro-batch in that was predicted to need `predicted` bytes and took `measured`, both above 0; one without
/// samples or bytes changes nothing. `types` has an entry for every type, of one step on one rank.
void compare(std::span<const TypedSample> micro_batch, std::int64_t predicted, std::int64_t measured,
             std::vector<TypeMemory>& types);

/// Floats of one type of one rank: whole numbers below 2^24 (bytes as two of them) but for the errors, so that a sum in
/// which all other ranks have zeros carries them exactly.
inline constexpr std::int64_t kTypeMemorySlots = 8;

/// Writes them: types.size() x kTypeMemorySlots. Counts from 2^24 on and bytes from 2^48 on become the largest number
/// that fits.
void pack_types(std::span<const TypeMemory> types, std::span<float> slots);

/// What the slots of all ranks, one after another, come to: sums, and the largest error of any.
std::vector<TypeMemory> sum_types(std::span<const float> slots, std::size_t types);

}  // namespace plimsoll::train
