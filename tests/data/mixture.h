#pragma once
// What a stream draws of samples that have types.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "data/sample_stream.h"

namespace plimsoll::data {

/// Types of `sizes` samples each, whose numbers begin at multiples of a thousand; without a target one type.
inline std::shared_ptr<const StreamOrder> mixture(const std::vector<std::int64_t>& sizes,
                                                  const std::vector<std::int64_t>& target, std::uint64_t seed = 1) {
  auto order = std::make_shared<StreamOrder>();
  order->seed = seed;
  order->target = target;
  for (std::size_t type = 0; type < sizes.size(); ++type) {
    for (std::int64_t i = 0; i < sizes[type]; ++i) {
      order->samples.push_back(static_cast<std::int64_t>(type) * 1000 + i);
      order->types.push_back(static_cast<std::uint8_t>(type));
    }
  }
  return order;
}

/// Types of samples of several datasets, sizes[type][dataset] of each; without a target one type. The numbers of a
/// type's dataset begin at a multiple of a thousand, the type's, and of a hundred, the dataset's.
inline std::shared_ptr<const StreamOrder> weighted_mixture(const std::vector<std::vector<std::int64_t>>& sizes,
                                                           const std::vector<std::int64_t>& target,
                                                           const std::vector<double>& weights, std::uint64_t seed = 1) {
  auto order = std::make_shared<StreamOrder>();
  order->seed = seed;
  order->target = target;
  order->weights = weights;
  for (std::size_t type = 0; type < sizes.size(); ++type) {
    for (std::size_t dataset = 0; dataset < sizes[type].size(); ++dataset) {
      for (std::int64_t i = 0; i < sizes[type][dataset]; ++i) {
        order->samples.push_back(static_cast<std::int64_t>(type * 1000 + dataset * 100) + i);
        order->types.push_back(static_cast<std::uint8_t>(type));
        order->datasets.push_back(static_cast<std::uint16_t>(dataset));
      }
    }
  }
  return order;
}

}  // namespace plimsoll::data
