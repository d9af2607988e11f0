#include "memory/planning/first_plan.h"

#include <algorithm>
#include <tuple>

#include "memory/planning/packing.h"

namespace plimsoll::memory {

std::vector<SampleShape> heaviest(std::vector<SampleShape> shapes, std::size_t count) {
  const auto weight = [](const SampleShape& s) { return std::make_tuple(weight_of(s), s.tokens); };
  count = std::min(count, shapes.size());
  std::partial_sort(shapes.begin(), shapes.begin() + static_cast<std::ptrdiff_t>(count), shapes.end(),
                    [&](const SampleShape& a, const SampleShape& b) { return weight(a) > weight(b); });
  shapes.resize(count);
  return shapes;
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
