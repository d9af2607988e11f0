#include "memory/planning/first_plan.h"

#include <algorithm>

namespace plimsoll::memory {

std::vector<SampleShape> heaviest(std::span<const SampleShape> shapes, std::size_t count, std::size_t times) {
  const auto most = [&](std::int64_t SampleShape::*field) {
    std::vector<std::int64_t> values;
    for (const SampleShape& shape : shapes) values.push_back(shape.*field);
    std::ranges::sort(values, std::greater<>());
    return values;
  };
  const auto tokens = most(&SampleShape::tokens), patches = most(&SampleShape::patches);
  std::vector<SampleShape> bounds;
  for (std::size_t i = 0; i < std::min(count, shapes.size() * times); ++i)
    bounds.push_back({tokens[i / times], patches[i / times]});
  return bounds;
}

int largest_micro_batch(int smallest, int largest, const std::function<bool(int)>& fits) {
  if (largest < smallest || !fits(smallest)) return 0;
  int known = smallest, unknown = largest + 1;
  while (unknown - known > 1) {
    const int middle = known + (unknown - known) / 2;
    (fits(middle) ? known : unknown) = middle;
  }
  return known;
}

}  // namespace plimsoll::memory
