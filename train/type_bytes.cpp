#include "train/type_bytes.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace plimsoll::train {

void compare(std::span<const TypedSample> micro_batch, std::int64_t predicted, std::int64_t measured,
             std::vector<TypeMemory>& types) {
  if (micro_batch.empty() || predicted <= 0 || measured <= 0) return;
  double all = 0;
  std::vector<double> bytes(types.size());
  std::vector<std::int64_t> samples(types.size());
  for (const TypedSample& sample : micro_batch) {
    const auto weight = static_cast<double>(std::max<std::int64_t>(1, sample.bytes));
    all += weight;
    bytes[sample.type] += weight;
    ++samples[sample.type];
  }
  const double error = std::abs(static_cast<double>(predicted - measured)) / static_cast<double>(measured);
  for (std::size_t type = 0; type < types.size(); ++type) {
    if (samples[type] == 0) continue;
    const auto part_of = [&](std::int64_t whole) {
      return static_cast<std::int64_t>(std::llround(static_cast<double>(whole) * (bytes[type] / all)));
    };
    types[type].add({1, samples[type], part_of(predicted), part_of(measured), error, error});
  }
}

namespace {

constexpr std::int64_t kExactFloats = std::int64_t{1} << 24;  // whole numbers below it are exact in fp32

float as_slot(std::int64_t value) { return static_cast<float>(std::clamp<std::int64_t>(value, 0, kExactFloats - 1)); }

std::array<float, 2> as_two_slots(std::int64_t value) {
  const std::int64_t held = std::clamp<std::int64_t>(value, 0, kExactFloats * kExactFloats - 1);
  return {as_slot(held / kExactFloats), as_slot(held % kExactFloats)};
}

std::int64_t of_slot(float slot) { return static_cast<std::int64_t>(slot); }
std::int64_t of_two_slots(float high, float low) { return of_slot(high) * kExactFloats + of_slot(low); }

}  // namespace

void pack_types(std::span<const TypeMemory> types, std::span<float> slots) {
  auto slot = slots.begin();
  for (const TypeMemory& type : types) {
    const auto predicted = as_two_slots(type.predicted), measured = as_two_slots(type.measured);
    const std::array<float, kTypeMemorySlots> values = {as_slot(type.micro_batches),
                                                        as_slot(type.samples),
                                                        predicted[0],
                                                        predicted[1],
                                                        measured[0],
                                                        measured[1],
                                                        static_cast<float>(type.error_sum),
                                                        static_cast<float>(type.largest_error)};
    slot = std::copy(values.begin(), values.end(), slot);
  }
}

std::vector<TypeMemory> sum_types(std::span<const float> slots, std::size_t types) {
  std::vector<TypeMemory> sums(types);
  constexpr auto kOfAType = static_cast<std::size_t>(kTypeMemorySlots);
  for (std::size_t begin = 0; begin < slots.size(); begin += kOfAType) {
    const auto of = slots.subspan(begin, kOfAType);
    sums[begin / kOfAType % types].add(
        {of_slot(of[0]), of_slot(of[1]), of_two_slots(of[2], of[3]), of_two_slots(of[4], of[5]), of[6], of[7]});
  }
  return sums;
}

}  // namespace plimsoll::train
