#include "memory/cpu_allocator.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "core/bytes.h"
#include "core/scope.h"
#include "memory/workspace.h"

namespace plimsoll::memory {
namespace {

// Stands before every block, so that a free needs no look-up. 64 bytes keep the data aligned as the default allocator's
// is.
struct alignas(64) Header {
  std::int64_t bytes;
  const char* label;
  std::uint64_t recording;  // the one that saw the allocation; 0: none
  std::uint64_t number;     // its number in that recording's ledger
  bool counted;             // in live and peak
  bool recorded;            // an event of its own, unlike scratch that overflowed the arena
};
static_assert(sizeof(Header) == 64);

struct State {
  std::atomic<std::int64_t> live{0}, peak{0}, budget{std::numeric_limits<std::int64_t>::max()};
  std::atomic<std::int64_t> allocations{0}, fail_at{0}, failed_request{0};
  std::atomic<std::int64_t> change_at{0}, change_to{0};
  std::atomic<std::int64_t> overflow{0}, overflow_peak{0};
  Workspace workspace;
  c10::DataPtr workspace_block;
};

// Never destroyed: tensors in static storage may be freed after main.
State& state() {
  static State* const value = new State;
  return *value;
}

// The recording of this thread. Numbered over all threads, since a block may be freed by another thread or in a later
// recording than the one that numbered it.
struct Recording {
  Ledger* ledger = nullptr;
  std::uint64_t serial = 0;
};
thread_local Recording recording;
std::atomic<std::uint64_t> recordings{0};

void note_allocation(Header& header) {
  if (recording.ledger == nullptr) return;
  header.recording = recording.serial;
  header.number = recording.ledger->add(header.bytes, header.label);
}

void note_free(const Header& header) {
  if (recording.ledger == nullptr) return;
  recording.ledger->remove(header.bytes, header.label, header.recording == recording.serial ? header.number : 0);
}

void raise(std::atomic<std::int64_t>& highest, std::int64_t value) {
  std::int64_t seen = highest.load();
  while (value > seen && !highest.compare_exchange_weak(seen, value)) {
  }
}

[[noreturn]] void throw_out_of_memory(std::int64_t bytes, std::int64_t live) {
  State& s = state();
  s.failed_request = bytes;
  C10_THROW_ERROR(OutOfMemoryError, "out of memory: " + format_bytes(bytes) + " wanted for " +
                                        AllocationLabel::current() + " with " + format_bytes(live) +
                                        " live under a budget of " + format_bytes(s.budget));
}

void count(std::int64_t bytes) {
  State& s = state();
  const std::int64_t number = ++s.allocations;
  if (const std::int64_t at = s.change_at; at != 0 && number >= at) {
    s.change_at = 0;
    s.budget = s.change_to.load();
  }
  const std::int64_t live = s.live += bytes;
  std::int64_t fail_at = number;
  const bool injected = s.fail_at.compare_exchange_strong(fail_at, 0);
  if (injected || live > s.budget) {
    s.live -= bytes;
    throw_out_of_memory(bytes, live - bytes);
  }
  raise(s.peak, live);
}

// The machine itself may run out before the budget does.
void* system_block(std::int64_t bytes, bool counted) {
  void* block = nullptr;
  if (posix_memalign(&block, sizeof(Header), static_cast<std::size_t>(bytes) + sizeof(Header)) == 0) return block;
  if (counted) state().live -= bytes;
  throw_out_of_memory(bytes, state().live);
}

void free_block(void* data) {
  if (data == nullptr) return;
  State& s = state();
  if (s.workspace.owns(data)) return s.workspace.give(data);
  auto* header = reinterpret_cast<Header*>(static_cast<std::byte*>(data) - sizeof(Header));
  if (header->counted) s.live -= header->bytes;
  if (header->recorded) {
    note_free(*header);
  } else if (header->counted) {
    s.overflow -= header->bytes;
  }
  std::free(header);
}

void* counted_block(std::int64_t bytes, bool recorded) {
  const bool counted = bytes >= kSmallestCounted;
  if (counted) count(bytes);
  auto* header = static_cast<Header*>(system_block(bytes, counted));
  *header = {bytes, AllocationLabel::current(), 0, 0, counted, counted && recorded};
  if (header->recorded) note_allocation(*header);
  return header + 1;
}

void* scratch_block(std::int64_t bytes) {
  State& s = state();
  if (void* piece = s.workspace.take(bytes)) return piece;
  void* block = counted_block(bytes, false);
  if (bytes >= kSmallestCounted) raise(s.overflow_peak, s.overflow += bytes);
  return block;
}

class Backend final : public c10::Allocator {
 public:
  c10::DataPtr allocate(std::size_t n) override {
    const auto bytes = static_cast<std::int64_t>(n);
    if (bytes == 0) return {nullptr, nullptr, &free_block, c10::Device(c10::kCPU)};
    void* data = LibraryScratch::active() ? scratch_block(bytes) : counted_block(bytes, true);
    return {data, data, &free_block, c10::Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &free_block; }
  void copy_data(void* to, const void* from, std::size_t n) const override { std::memcpy(to, from, n); }
};

}  // namespace

CpuAllocator& CpuAllocator::install() {
  static Backend* const backend = new Backend;
  static CpuAllocator* const self = [] {
    c10::SetCPUAllocator(backend, 100);
    return new CpuAllocator;
  }();
  return *self;
}

std::int64_t CpuAllocator::live() const { return state().live; }
std::int64_t CpuAllocator::peak() const { return state().peak; }
void CpuAllocator::reset_peak() { state().peak = state().live.load(); }
std::int64_t CpuAllocator::budget() const { return state().budget; }
void CpuAllocator::set_budget(std::int64_t bytes) { state().budget = bytes; }
std::int64_t CpuAllocator::take_failed_request() { return state().failed_request.exchange(0); }

void CpuAllocator::set_workspace(std::int64_t bytes) {
  State& s = state();
  s.workspace.reset(nullptr, 0);
  s.workspace_block.clear();
  s.overflow_peak = 0;
  if (bytes <= 0) return;
  const AllocationLabel label("workspace");
  s.workspace_block = c10::GetCPUAllocator()->allocate(static_cast<std::size_t>(bytes));
  s.workspace.reset(static_cast<std::byte*>(s.workspace_block.get()), bytes);
}

std::int64_t CpuAllocator::workspace() const { return state().workspace.size(); }
std::int64_t CpuAllocator::workspace_peak() const { return state().workspace.peak(); }
std::int64_t CpuAllocator::workspace_overflow() const { return state().overflow_peak; }
std::int64_t CpuAllocator::allocations() const { return state().allocations; }
void CpuAllocator::fail_at(std::int64_t nth) { state().fail_at = nth == 0 ? 0 : state().allocations + nth; }

void CpuAllocator::change_budget_after(std::int64_t after, std::int64_t bytes) {
  state().change_to = bytes;
  state().change_at = state().allocations + after + 1;
}

void CpuAllocator::record(Ledger* ledger) { recording = {ledger, ++recordings}; }

}  // namespace plimsoll::memory
