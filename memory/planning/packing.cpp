#include "memory/planning/packing.h"

#include <algorithm>
#include <numeric>
#include <tuple>
#include <utility>

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

void deal(std::span<const std::int64_t> weights, std::span<const std::size_t> ordered, std::vector<MicroBatch>& all) {
  for (const std::size_t sample : ordered) {
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

namespace {

std::vector<std::size_t> heaviest_first(std::span<const std::int64_t> weights) {
  std::vector<std::size_t> order(weights.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return weights[a] > weights[b]; });
  return order;
}

// Part of the micro-batch's samples that are of another type.
double newness(const MicroBatch& one, std::span<const std::uint8_t> types, std::size_t sample) {
  if (types.empty()) return 0;
  const auto alike = std::count_if(one.samples.begin(), one.samples.end(),
                                   [&](std::size_t other) { return types[other] == types[sample]; });
  return 1 - static_cast<double>(alike) / static_cast<double>(one.samples.size());
}

}  // namespace

std::vector<std::vector<std::size_t>> packed(std::span<const std::int64_t> weights, std::span<const std::uint8_t> types,
                                             double diversity,
                                             const std::function<bool(std::span<const std::size_t>)>& fits) {
  std::vector<MicroBatch> all;
  std::int64_t heaviest = 1;
  for (const std::size_t sample : heaviest_first(weights)) {
    MicroBatch* best = nullptr;
    double most = -1;
    for (MicroBatch& one : all) {
      one.samples.push_back(sample);
      const bool fit = fits(one.samples);
      one.samples.pop_back();
      if (!fit) continue;
      const double fullness = static_cast<double>(one.weight + weights[sample]) /
                              static_cast<double>(std::max(heaviest, one.weight + weights[sample]));
      const double score = (1 - diversity) * fullness + diversity * newness(one, types, sample);
      if (score <= most) continue;
      most = score;
      best = &one;
    }
    if (best == nullptr) best = &all.emplace_back();
    best->samples.push_back(sample);
    best->weight += weights[sample];
    heaviest = std::max(heaviest, best->weight);
  }
  std::vector<std::vector<std::size_t>> places;
  for (MicroBatch& one : all) {
    std::sort(one.samples.begin(), one.samples.end());
    places.push_back(std::move(one.samples));
  }
  return places;
}

namespace {

constexpr int kMostEighths = 48;  // a six-hundredth is left: no micro-batch has two samples any more
constexpr std::int64_t kLongestRest = std::int64_t{1} << 40;

}  // namespace

std::int64_t PackingRoom::of(std::int64_t bytes) const {
  for (int i = 0; i < eighths_; ++i) bytes -= bytes / 8;
  return std::max<std::int64_t>(1, bytes);
}

void PackingRoom::took(bool failed) {
  if (failed) {
    eighths_ = std::min(kMostEighths, eighths_ + 1);
    wait_ = std::min(kLongestRest, 2 * wait_);
    well_ = 0;
  } else if (eighths_ > 0 && ++well_ >= wait_) {
    --eighths_;
    well_ = 0;
  }
}

std::vector<std::size_t> balanced_order(std::span<const std::int64_t> weights, std::size_t micro_batch) {
  std::vector<std::size_t> as_given(weights.size());
  std::iota(as_given.begin(), as_given.end(), std::size_t{0});
  if (micro_batch < 2 || micro_batch >= weights.size()) return as_given;
  auto all = empty_micro_batches(weights.size(), micro_batch);
  deal(weights, heaviest_first(weights), all);
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
