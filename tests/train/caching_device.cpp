#include "tests/train/caching_device.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstring>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "core/bytes.h"
#include "core/scope.h"
#include "memory/cpu_allocator.h"
#include "memory/event.h"

namespace plimsoll::train {
namespace {

constexpr std::uint8_t kBudgeted = 100,
                       kInFront = kBudgeted + 1;  // priorities: the first is memory/cpu_allocator.cpp's

// The budgeted allocator of the CPU, which has the bytes.
c10::Allocator& host_allocator() {
  static c10::Allocator* const found = [] {
    memory::CpuAllocator::install();
    return c10::GetCPUAllocator();
  }();
  return *found;
}

// Which blocks are the device's, and whose that is. Tensors may outlive it: then nobody is told of their end.
struct Owner {
  std::mutex mutex;
  CachingDevice* device = nullptr;
  std::unordered_map<const void*, std::uint64_t> blocks;
  /// Of those, the start of the workspace arena while a piece of it begins there: what ends next there is the piece.
  std::unordered_set<const void*> pieces;
};

Owner& owner() {
  static Owner* const made = new Owner;
  return *made;
}

std::uint64_t forget(const void* data) {
  Owner& all = owner();
  if (all.pieces.erase(data) > 0) return 0;
  const auto found = all.blocks.find(data);
  if (found == all.blocks.end()) return 0;
  const std::uint64_t block = found->second;
  all.blocks.erase(found);
  return block;
}

void give_back(void* data) {
  if (data == nullptr) return;
  {
    const std::lock_guard lock(owner().mutex);
    if (const std::uint64_t block = forget(data); block != 0) owner().device->give(block);
  }
  host_allocator().raw_deleter()(data);
}

class CountedAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(std::size_t n) override {
    if (n == 0) return {nullptr, nullptr, &give_back, c10::Device(c10::kCPU)};
    const std::lock_guard lock(owner().mutex);
    const auto bytes = static_cast<std::int64_t>(n);
    const bool counted = owner().device != nullptr && bytes >= memory::kSmallestCounted && !LibraryScratch::active();
    const std::uint64_t block = counted ? owner().device->take(bytes) : 0;
    void* data = host_allocator().raw_allocate(n);
    if (block != 0) {
      owner().blocks[data] = block;
    } else if (owner().blocks.contains(data)) {
      owner().pieces.insert(data);
    }
    return {data, data, &give_back, c10::Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &give_back; }
  void copy_data(void* to, const void* from, std::size_t n) const override { std::memcpy(to, from, n); }
};

void put_in_front(CachingDevice* device) {
  static CountedAllocator* const counted = new CountedAllocator;
  c10::Allocator& host = host_allocator();
  const std::lock_guard lock(owner().mutex);
  owner().device = device;
  owner().blocks.clear();
  owner().pieces.clear();
  c10::SetCPUAllocator(device != nullptr ? counted : &host, kInFront);
}

}  // namespace

CachingDevice::CachingDevice(std::int64_t card) : card_(card), budget_(card), model_({false, card}) {
  memory::CpuAllocator& host = memory::CpuAllocator::install();
  budget_of_host_ = host.budget();
  host.set_budget(std::numeric_limits<std::int64_t>::max());
  host.set_workspace(0);
  put_in_front(this);
}

CachingDevice::~CachingDevice() {
  memory::CpuAllocator::install().set_workspace(0);
  put_in_front(nullptr);
  memory::CpuAllocator::install().set_budget(budget_of_host_);
}

Device CachingDevice::device() {
  Device made;
  made.place = c10::kCPU;
  made.memory = this;
  made.name = "a made-up card";
  made.total = card_;
  made.available = [this] { return card_ - reserved() - outside(); };
  if (outside_ > 0) made.overhead = [this] { return outside(); };
  return made;
}

void CachingDevice::hold_outside(std::int64_t always, std::int64_t after_backward) {
  const std::lock_guard lock(mutex_);
  outside_ = always;
  outside_after_backward_ = after_backward;
}

std::int64_t CachingDevice::outside() const {
  const std::lock_guard lock(mutex_);
  return outside_ + (ran_backward_ ? outside_after_backward_ : 0);
}

memory::AllocatorStats CachingDevice::stats() const {
  const std::lock_guard lock(mutex_);
  return model_.stats();
}

std::int64_t CachingDevice::most_reserved() const {
  const std::lock_guard lock(mutex_);
  return most_reserved_;
}

void CachingDevice::reset_peak() {
  const std::lock_guard lock(mutex_);
  model_.reset_peaks();
}

std::int64_t CachingDevice::budget() const {
  const std::lock_guard lock(mutex_);
  return budget_;
}

void CachingDevice::set_budget(std::int64_t bytes) {
  const std::lock_guard lock(mutex_);
  budget_ = bytes;
  model_.set_limit(bytes);
  if (model_.stats().reserved > bytes) model_.release_cached();
}

void CachingDevice::release_cached() {
  const std::lock_guard lock(mutex_);
  model_.release_cached();
}

std::int64_t CachingDevice::take_failed_request() {
  const std::lock_guard lock(mutex_);
  return std::exchange(failed_request_, 0);
}

std::int64_t CachingDevice::take_allocator_retries() {
  const std::lock_guard lock(mutex_);
  const std::int64_t now = model_.stats().retries;
  return now - std::exchange(retries_seen_, now);
}

void CachingDevice::set_workspace(std::int64_t bytes) { memory::CpuAllocator::install().set_workspace(bytes); }
std::int64_t CachingDevice::workspace() const { return memory::CpuAllocator::install().workspace(); }

std::int64_t CachingDevice::allocations() const {
  const std::lock_guard lock(mutex_);
  return allocations_;
}

void CachingDevice::change_budget_after(std::int64_t after, std::int64_t bytes) {
  const std::lock_guard lock(mutex_);
  change_to_ = bytes;
  change_at_ = allocations_ + after + 1;
}

void CachingDevice::start_micro_batch() {
  const std::lock_guard lock(mutex_);
  if (std::exchange(release_due_, false) || change_at_ != 0) model_.release_cached();
}

std::uint64_t CachingDevice::take(std::int64_t bytes) {
  const std::lock_guard lock(mutex_);
  ran_backward_ = ran_backward_ || std::string_view(AllocationLabel::current()) == "backward";
  if (!model_.allocate(bytes, ++blocks_)) {
    failed_request_ = bytes;
    C10_THROW_ERROR(OutOfMemoryError,
                    "out of memory: " + format_bytes(bytes) + " wanted for " + AllocationLabel::current() + " with " +
                        format_bytes(model_.stats().reserved) + " reserved under a budget of " + format_bytes(budget_));
  }
  most_reserved_ = std::max(most_reserved_, model_.stats().reserved);
  ++allocations_;
  change_budget();
  return blocks_;
}

// A change counts from the next allocation on.
void CachingDevice::change_budget() {
  if (change_at_ == 0 || allocations_ + 1 < change_at_) return;
  change_at_ = 0;
  budget_ = change_to_;
  model_.set_limit(change_to_);
  release_due_ = true;
}

void CachingDevice::give(std::uint64_t block) {
  const std::lock_guard lock(mutex_);
  model_.free(block);
}

}  // namespace plimsoll::train
