#pragma once
// Peaks of micro-batches beside their predictions, by the types of their samples ([tasks]). Without torch.

#include <cstdint>
#include <span>
#include <vector>

namespace plimsoll::train {

/// Of one type in one step, on one rank. Bytes are those of activations: above what is live between micro-batches.
struct TypeBytes {
  std::int64_t micro_batches = 0;  ///< with samples of the type, that were compared
  std::int64_t samples = 0;        ///< of the type, in those
  /// The type's part of the bytes of those micro-batches, by tokens.
  std::int64_t predicted = 0, measured = 0;
  /// Of |predicted - measured| / measured of those micro-batches.
  double error_sum = 0, largest_error = 0;
};

/// What a sample counts by.
struct TypedSample {
  std::size_t type = 0;
  std::int64_t tokens = 0;
};

/// Takes a micro-batch in that was predicted to need `predicted` bytes and took `measured`, both above 0; one without
/// samples or bytes changes nothing. `types` has an entry for every type.
void compare(std::span<const TypedSample> micro_batch, std::int64_t predicted, std::int64_t measured,
             std::vector<TypeBytes>& types);

}  // namespace plimsoll::train
