#include "memory/cuda/cuda_memory.h"

#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/csrc/cuda/memory_snapshot.h>

#include <algorithm>
#include <fstream>
#include <string>
#include <utility>

namespace plimsoll::memory {
namespace {

namespace caching = c10::cuda::CUDACachingAllocator;

constexpr std::size_t kSnapshotEvents = 100'000;  // of some steps of a large model
constexpr auto kAll = static_cast<std::size_t>(c10::CachingAllocator::StatType::AGGREGATE);

std::pair<std::int64_t, std::int64_t> free_and_total(c10::DeviceIndex device) {
  const c10::cuda::CUDAGuard guard(device);
  std::size_t available = 0, total = 0;
  C10_CUDA_CHECK(cudaMemGetInfo(&available, &total));
  return {static_cast<std::int64_t>(available), static_cast<std::int64_t>(total)};
}

// What emptyCache would leave.
std::int64_t needed_now(c10::DeviceIndex device) {
  const caching::DeviceStats stats = caching::getDeviceStats(device);
  return stats.active_bytes[kAll].current + stats.inactive_split_bytes[kAll].current;
}

}  // namespace

CudaMemory::CudaMemory(c10::DeviceIndex device) : device_(device) {
  total_ = free_and_total(device).second;
  budget_ = total_;
  caching::attachOutOfMemoryObserver([this](std::int64_t where, std::size_t wanted, std::size_t, std::size_t) {
    if (where != device_) return;
    failed_request_ = static_cast<std::int64_t>(wanted);
    write_snapshot();
  });
  // Called for every event, under the allocator's lock, which is recursive.
  caching::attachAllocatorTraceTracker([this](const caching::TraceEntry& entry) {
    if (entry.device_ != device_) return;
    if (entry.action_ == caching::TraceEntry::ALLOC) count();
    if (entry.action_ == caching::TraceEntry::FREE_REQUESTED) note_needed();
  });
}

std::int64_t CudaMemory::live() const { return caching::getDeviceStats(device_).allocated_bytes[kAll].current; }

std::int64_t CudaMemory::peak() const { return std::max({peak_live(), needed_peak_.load(), needed_now(device_)}); }

std::int64_t CudaMemory::peak_live() const { return caching::getDeviceStats(device_).allocated_bytes[kAll].peak; }

void CudaMemory::reset_peak() {
  caching::resetPeakStats(device_);
  needed_peak_ = needed_now(device_);
}

// What is needed falls by frees alone, and a free is traced before its block counts as unused: so the most that was
// needed is seen here, or is needed still.
void CudaMemory::note_needed() {
  const std::int64_t now = needed_now(device_);
  if (now > needed_peak_) needed_peak_ = now;  // no other thread writes: the allocator's lock is held
}

void CudaMemory::set_budget(std::int64_t bytes) {
  limit(bytes);
  if (reserved() > bytes) release_cached();
}

void CudaMemory::limit(std::int64_t bytes) {
  budget_ = bytes;
  const double fraction = static_cast<double>(bytes) / static_cast<double>(total_);
  caching::setMemoryFraction(std::clamp(fraction, 0.0, 1.0), device_);
}

std::int64_t CudaMemory::take_allocator_retries() {
  const std::int64_t now = caching::getDeviceStats(device_).num_alloc_retries;
  return now - retries_seen_.exchange(now);
}

void CudaMemory::release_cached() { caching::emptyCache(); }

void CudaMemory::change_budget_after(std::int64_t after, std::int64_t bytes) {
  change_to_ = bytes;
  change_at_ = allocations_ + after + 1;
}

// The trace has an allocation when it is made: the change counts from the next one on.
void CudaMemory::count() {
  const std::int64_t made = ++allocations_;
  const std::int64_t at = change_at_;
  if (at == 0 || made + 1 < at) return;
  change_at_ = 0;
  limit(change_to_);
  release_due_ = true;  // not here: the allocator is in the middle of a request, and its lock is held
}

void CudaMemory::start_micro_batch() {
  if (release_due_.exchange(false) || change_at_ != 0) release_cached();
}

// Without stacks: there is no Python, and those of C++ would cost every allocation.
void CudaMemory::snapshot_next_failure(const std::filesystem::path& file) {
  torch::cuda::_record_memory_history("all", std::nullopt, "all", kSnapshotEvents);
  const std::lock_guard lock(snapshot_mutex_);
  snapshot_wanted_ = file;
}

std::optional<std::filesystem::path> CudaMemory::take_snapshot() {
  const std::lock_guard lock(snapshot_mutex_);
  return std::exchange(snapshot_written_, std::nullopt);
}

// Observers are called before the failure is thrown, without the allocator's lock: everything is still there.
void CudaMemory::write_snapshot() {
  const std::lock_guard lock(snapshot_mutex_);
  if (!snapshot_wanted_) return;
  const std::filesystem::path file = *std::exchange(snapshot_wanted_, std::nullopt);
  try {
    const std::string pickled = torch::cuda::_memory_snapshot_pickled();
    std::ofstream out(file, std::ios::binary);
    out << pickled;
    if (out.close(); out) snapshot_written_ = file;
  } catch (const std::exception&) {
    // The failure itself is what matters: it must reach the guardian.
  }
}

void CudaMemory::synchronize() {
  const c10::cuda::CUDAGuard guard(device_);
  c10::cuda::device_synchronize();
}

std::int64_t CudaMemory::reserved() const { return caching::getDeviceStats(device_).reserved_bytes[kAll].current; }

std::int64_t CudaMemory::available() const { return free_and_total(device_).first; }

std::int64_t CudaMemory::overhead() const {
  const auto [available, total] = free_and_total(device_);
  return std::max<std::int64_t>(0, total - available - reserved());
}

}  // namespace plimsoll::memory
