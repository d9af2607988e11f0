#include "train/device_tier.h"

#include <ATen/core/grad_mode.h>
#include <torch/torch.h>

#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "cache/row_ranges.h"
#include "core/scope.h"

namespace plimsoll::train {

struct DeviceTier::State {
  struct Kept {
    std::int64_t stamp = 0;
    std::shared_ptr<const model::DeviceRows> rows;
    std::multimap<std::uint64_t, std::int64_t>::iterator place;  ///< in by_next
  };
  at::Tensor block;
  std::mutex mutex;  ///< of what follows
  cache::RowRanges ranges;
  std::unordered_map<std::int64_t, Kept> kept;
  std::multimap<std::uint64_t, std::int64_t> by_next;  ///< samples, by when they are needed next
  std::int64_t hits = 0;

  explicit State(std::int64_t rows) : ranges(rows) {}

  // What samples that are loaded ahead hold would give no place yet.
  std::unordered_map<std::int64_t, Kept>::iterator last_unused_after(std::uint64_t next) {
    for (auto last = by_next.rbegin(); last != by_next.rend() && last->first > next; ++last)
      if (const auto found = kept.find(last->second); found->second.rows.use_count() == 1) return found;
    return kept.end();
  }
};

namespace {

/// Rows that were let go of under the lock, which giving them back takes too: they end when this does.
using Ended = std::vector<std::shared_ptr<const model::DeviceRows>>;

}  // namespace

DeviceTier::DeviceTier(std::int64_t bytes, std::int64_t width, at::ScalarType dtype, at::Device device) {
  const auto row = width * static_cast<std::int64_t>(c10::elementSize(dtype));
  if (bytes < row) return;
  const AllocationLabel label("cache");
  state_ = std::make_shared<State>(bytes / row);
  state_->block = at::empty({bytes / row, width}, at::TensorOptions(dtype).device(device));
}

std::int64_t DeviceTier::bytes() const { return state_ ? static_cast<std::int64_t>(state_->block.nbytes()) : 0; }

std::int64_t DeviceTier::hits() const {
  if (!state_) return 0;
  const std::scoped_lock lock(state_->mutex);
  return state_->hits;
}

std::shared_ptr<const model::DeviceRows> DeviceTier::find(std::int64_t sample, std::int64_t stamp, std::uint64_t next) {
  if (!state_) return nullptr;
  State& state = *state_;
  const std::scoped_lock lock(state.mutex);
  const auto found = state.kept.find(sample);
  if (found == state.kept.end() || found->second.stamp != stamp) return nullptr;
  ++state.hits;
  state.by_next.erase(found->second.place);
  found->second.place = state.by_next.emplace(next, sample);
  return found->second.rows;
}

void DeviceTier::keep(std::int64_t sample, std::int64_t stamp, std::span<const std::byte> bytes, std::uint64_t next) {
  if (!state_ || bytes.empty()) return;
  State& state = *state_;
  const std::int64_t width = state.block.size(1);
  const auto count = static_cast<std::int64_t>(bytes.size() / state.block.element_size()) / width;
  const auto forget = [&state](auto found, Ended& ended) {
    ended.push_back(std::move(found->second.rows));
    state.by_next.erase(found->second.place);
    state.kept.erase(found);
  };
  std::optional<std::int64_t> first;
  while (!first) {
    Ended ended;
    const std::scoped_lock lock(state.mutex);
    const auto old = state.kept.find(sample);
    if (old != state.kept.end()) {
      if (old->second.stamp == stamp) return;
      forget(old, ended);
      continue;
    }
    first = state.ranges.take(count);
    if (first) break;
    const auto last = state.last_unused_after(next);
    if (last == state.kept.end()) return;
    forget(last, ended);
  }
  const at::NoGradGuard no_graph;
  at::Tensor rows = state.block.narrow(0, *first, count);
  rows.copy_(at::from_blob(const_cast<std::byte*>(bytes.data()), rows.sizes(), at::TensorOptions(rows.scalar_type())));
  const std::shared_ptr<State> shared = state_;
  auto kept = std::make_shared<const model::DeviceRows>(rows, [shared, first = *first, count] {
    const std::scoped_lock lock(shared->mutex);
    shared->ranges.give_back(first, count);
  });
  const std::scoped_lock lock(state.mutex);
  state.kept[sample] = {stamp, std::move(kept), state.by_next.emplace(next, sample)};
}

}  // namespace plimsoll::train
