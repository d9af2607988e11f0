#include "train/type_bytes.h"

#include <algorithm>
#include <cmath>

namespace plimsoll::train {

void compare(std::span<const TypedSample> micro_batch, std::int64_t predicted, std::int64_t measured,
             std::vector<TypeBytes>& types) {
  if (micro_batch.empty() || predicted <= 0 || measured <= 0) return;
  std::int64_t all = 0;
  std::vector<std::int64_t> tokens(types.size()), samples(types.size());
  for (const TypedSample& sample : micro_batch) {
    const std::int64_t weight = std::max<std::int64_t>(1, sample.tokens);
    all += weight;
    tokens[sample.type] += weight;
    ++samples[sample.type];
  }
  const double error = std::abs(static_cast<double>(predicted - measured)) / static_cast<double>(measured);
  for (std::size_t type = 0; type < types.size(); ++type) {
    if (samples[type] == 0) continue;
    const auto part_of = [&](std::int64_t bytes) {
      return std::llround(static_cast<double>(bytes) * static_cast<double>(tokens[type]) / static_cast<double>(all));
    };
    TypeBytes& one = types[type];
    ++one.micro_batches;
    one.samples += samples[type];
    one.predicted += part_of(predicted);
    one.measured += part_of(measured);
    one.error_sum += error;
    one.largest_error = std::max(one.largest_error, error);
  }
}

}  // namespace plimsoll::train
