#include "memory/planning/packing.h"

#include <algorithm>
#include <numeric>
#include <tuple>

namespace plimsoll::memory {
namespace {

struct MicroBatch {
  std::int64_t weight = 0;
  std::size_t room = 0;
  std::vector<std::size_t> samples;
};

std::vector<MicroBatch> empty_micro_batches(std::size_t samples, std::size_t micro_batch) {
  std::vector<MicroBatch> all;
  for (std::size_t left = samples; left > 0; left -= all.back().room)
    all.push_back({0, std::min(left, micro_batch), {}});
  return all;
}

void deal(std::span<const std::int64_t> weights, std::span<const std::size_t> heaviest_first,
          std::vector<MicroBatch>& all) {
  for (const std::size_t sample : heaviest_first) {
    MicroBatch* lightest = nullptr;
    for (MicroBatch& one : all) {
      if (one.samples.size() == one.room) continue;
      // Of two that weigh the same the smaller one: the rest takes few samples, so it may take a heavy one.
      if (lightest == nullptr || std::tie(one.weight, one.room) < std::tie(lightest->weight, lightest->room))
        lightest = &one;
    }
    lightest->samples.push_back(sample);
    lightest->weight += weights[sample];
  }
}

}  // namespace

std::vector<std::size_t> balanced_order(std::span<const std::int64_t> weights, std::size_t micro_batch) {
  std::vector<std::size_t> as_given(weights.size());
  std::iota(as_given.begin(), as_given.end(), std::size_t{0});
  if (micro_batch < 2 || micro_batch >= weights.size()) return as_given;
  std::vector<std::size_t> heaviest_first = as_given;
  std::stable_sort(heaviest_first.begin(), heaviest_first.end(),
                   [&](std::size_t a, std::size_t b) { return weights[a] > weights[b]; });
  auto all = empty_micro_batches(weights.size(), micro_batch);
  deal(weights, heaviest_first, all);
  std::vector<std::size_t> order;
  for (MicroBatch& one : all) {
    std::sort(one.samples.begin(), one.samples.end());
    order.insert(order.end(), one.samples.begin(), one.samples.end());
  }
  const bool lighter =
      heaviest_micro_batch(weights, order, micro_batch) < heaviest_micro_batch(weights, as_given, micro_batch);
  return lighter ? order : as_given;
}

std::int64_t heaviest_micro_batch(std::span<const std::int64_t> values, std::span<const std::size_t> order,
                                  std::size_t micro_batch) {
  std::int64_t most = 0;
  for (std::size_t begin = 0; begin < order.size(); begin += micro_batch) {
    std::int64_t sum = 0;
    for (const std::size_t sample : order.subspan(begin, std::min(micro_batch, order.size() - begin)))
      sum += values[sample];
    most = std::max(most, sum);
  }
  return most;
}

}  // namespace plimsoll::memory
