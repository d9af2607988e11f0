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

/// Rows that were let go of under the lock, which giving them back takes too: they end when this does.
using Ended = std::vector<std::shared_ptr<const model::DeviceRows>>;

struct DeviceTier::State {
  struct Kept {
    std::int64_t stamp = 0;
    std::shared_ptr<const model::DeviceRows> rows;
    std::multimap<std::uint64_t, std::int64_t>::iterator place;  ///< in by_next
  };
  using Entry = std::unordered_map<std::int64_t, Kept>::iterator;

  at::Tensor block;
  std::mutex mutex;  ///< of what follows
  cache::RowRanges ranges;
  std::unordered_map<std::int64_t, Kept> kept;
  std::multimap<std::uint64_t, std::int64_t> by_next;                         ///< samples, by when they are needed next
  std::unordered_map<std::int64_t, std::weak_ptr<model::DeviceRows>> handed;  ///< all rows, by the first of them

  explicit State(std::int64_t rows) : ranges(rows) {}

  void forget(Entry found, Ended& ended) {
    ended.push_back(std::move(found->second.rows));
    by_next.erase(found->second.place);
    kept.erase(found);
  }

  // What samples that are loaded ahead hold would give no place yet.
  static bool may_go(const Kept& entry, std::uint64_t next) {
    return entry.place->first > next && entry.rows.use_count() == 1;
  }

  // Samples whose rows may make room for what is needed at `next`: the one that is needed last in front.
  std::vector<std::int64_t> those_that_may_go(std::uint64_t next) {
    std::vector<std::int64_t> samples;
    for (auto last = by_next.rbegin(); last != by_next.rend() && last->first > next; ++last)
      if (may_go(kept.at(last->second), next)) samples.push_back(last->second);
    return samples;
  }

  // Other threads may have asked for it meanwhile.
  void forget_if_it_may_go(std::int64_t sample, std::uint64_t next, Ended& ended) {
    if (const auto found = kept.find(sample); found != kept.end() && may_go(found->second, next)) forget(found, ended);
  }
};

std::int64_t DeviceTier::whole_rows(std::int64_t bytes, std::int64_t width, at::ScalarType dtype) {
  const auto row = width * static_cast<std::int64_t>(c10::elementSize(dtype));
  return bytes / row * row;
}

DeviceTier::DeviceTier(std::int64_t bytes, std::int64_t width, at::ScalarType dtype, at::Device device) {
  const auto row = width * static_cast<std::int64_t>(c10::elementSize(dtype));
  if (bytes < row) return;
  const AllocationLabel label("cache");
  auto state = std::make_shared<State>(bytes / row);
  state->block = at::empty({bytes / row, width}, at::TensorOptions(dtype).device(device));
  state_ = std::move(state);
}

// Rows know the state, and the state knows them.
DeviceTier::~DeviceTier() {
  if (!state_) return;
  std::unordered_map<std::int64_t, State::Kept> ended;
  const std::scoped_lock lock(state_->mutex);
  state_->by_next.clear();
  ended.swap(state_->kept);
}

std::int64_t DeviceTier::bytes() const { return keeps() ? static_cast<std::int64_t>(state_->block.nbytes()) : 0; }

std::shared_ptr<const model::DeviceRows> DeviceTier::find(std::int64_t sample, std::int64_t stamp, std::uint64_t next) {
  if (!state_) return nullptr;
  State& state = *state_;
  Ended ended;
  const std::scoped_lock lock(state.mutex);
  const auto found = state.kept.find(sample);
  if (found == state.kept.end()) return nullptr;
  if (found->second.stamp != stamp) {
    state.forget(found, ended);
    return nullptr;
  }
  state.by_next.erase(found->second.place);
  found->second.place = state.by_next.emplace(next, sample);
  return found->second.rows;
}

void DeviceTier::forget(std::int64_t sample) {
  if (!state_) return;
  Ended ended;
  const std::scoped_lock lock(state_->mutex);
  if (const auto found = state_->kept.find(sample); found != state_->kept.end()) state_->forget(found, ended);
}

namespace {

// Not by the device's allocator, which on the CPU counts what it gives.
at::Tensor in_host_memory(const at::Tensor& rows) {
  auto bytes = std::make_shared<std::vector<std::byte>>(rows.nbytes());
  const at::Tensor copy = at::from_blob(
      bytes->data(), rows.sizes(), [bytes](void*) {}, at::TensorOptions(rows.scalar_type()));
  return copy.copy_(rows);
}

}  // namespace

std::int64_t DeviceTier::give_up() {
  const std::int64_t bytes = this->bytes();
  if (bytes == 0) return 0;
  State& state = *state_;
  gone_ = true;
  {
    Ended ended;
    const std::scoped_lock lock(state.mutex);
    while (!state.kept.empty()) state.forget(state.kept.begin(), ended);
    state.block.reset();
  }
  std::vector<std::shared_ptr<model::DeviceRows>> in_use;
  {
    const std::scoped_lock lock(state.mutex);
    for (const auto& [first, rows] : state.handed)
      if (auto held = rows.lock()) in_use.push_back(std::move(held));
  }
  const at::NoGradGuard no_graph;
  for (const auto& rows : in_use) rows->rows = in_host_memory(rows->rows);
  return bytes;
}

// So many rows side by side, by forgetting what is needed later; nothing where that does not give as many.
std::optional<std::int64_t> DeviceTier::take_rows(std::int64_t count, std::uint64_t next) {
  State& state = *state_;
  std::vector<std::int64_t> samples;
  {
    const std::scoped_lock lock(state.mutex);
    if (const auto first = state.ranges.take(count)) return first;
    samples = state.those_that_may_go(next);
    std::int64_t possible = state.ranges.free();
    for (const std::int64_t sample : samples) possible += state.kept.at(sample).rows->rows.size(0);
    if (possible < count) return std::nullopt;
  }
  for (const std::int64_t sample : samples) {
    {
      Ended ended;  // ending gives the rows back, before they are taken
      const std::scoped_lock lock(state.mutex);
      state.forget_if_it_may_go(sample, next, ended);
    }
    const std::scoped_lock lock(state.mutex);
    if (const auto first = state.ranges.take(count)) return first;
  }
  return std::nullopt;
}

void DeviceTier::keep(std::int64_t sample, std::int64_t stamp, std::span<const std::byte> bytes, std::uint64_t next) {
  if (!keeps() || bytes.empty()) return;
  State& state = *state_;
  const auto count = static_cast<std::int64_t>(bytes.size()) / (state.block.size(1) * state.block.element_size());
  {
    Ended ended;
    const std::scoped_lock lock(state.mutex);
    if (const auto old = state.kept.find(sample); old != state.kept.end()) {
      if (old->second.stamp == stamp) return;
      state.forget(old, ended);
    }
  }
  const auto first = take_rows(count, next);
  if (!first) return;
  const std::shared_ptr<State> shared = state_;
  const auto kept =
      std::make_shared<model::DeviceRows>(state.block.narrow(0, *first, count), [shared, first = *first, count] {
        const std::scoped_lock lock(shared->mutex);
        shared->handed.erase(first);
        shared->ranges.give_back(first, count);
      });
  {
    const at::NoGradGuard no_graph;
    const at::Tensor& rows = kept->rows;
    rows.copy_(
        at::from_blob(const_cast<std::byte*>(bytes.data()), rows.sizes(), at::TensorOptions(rows.scalar_type())));
  }
  const std::scoped_lock lock(state.mutex);
  state.handed[*first] = kept;
  state.kept[sample] = {stamp, kept, state.by_next.emplace(next, sample)};
}

}  // namespace plimsoll::train
