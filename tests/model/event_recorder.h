#pragma once
// Writes down what a piece of code allocates and frees on the CPU or on meta, so that tests can compare the two lists.
// The rules are the budgeted allocator's: under 64 bytes nothing counts, nor does what a library asks for inside a
// LibraryScratch.

#include <c10/core/CPUAllocator.h>
#include <torch/torch.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "core/scope.h"

namespace plimsoll::model::testing {

/// Bytes of each allocation (positive) and free (negative) of the calling thread, in order.
using EventList = std::vector<std::int64_t>;

inline EventList*& recording() {
  thread_local EventList* list = nullptr;
  return list;
}

/// Over all threads and both devices.
struct Totals {
  std::atomic<std::int64_t> live{0};     ///< counted bytes
  std::atomic<std::int64_t> count{0};    ///< counted allocations so far
  std::atomic<std::int64_t> fail_at{0};  ///< the counted allocation that throws c10::OutOfMemoryError; 0: none
  std::atomic<std::int64_t> scratch{0}, scratch_peak{0};  ///< inside LibraryScratch
};

inline Totals& totals() {
  static Totals value;
  return value;
}

/// Stands before the data on the CPU (torch wants the pointer to the data to be all that a free needs), alone on meta.
struct alignas(64) Block {
  std::int64_t bytes;
  bool counted;
  bool scratch;
};

inline void count_block(const Block& block) {
  Totals& t = totals();
  if (block.scratch) t.scratch_peak = std::max<std::int64_t>(t.scratch_peak, t.scratch += block.bytes);
  if (!block.counted) return;
  TORCH_CHECK_WITH(OutOfMemoryError, ++t.count != t.fail_at, "injected");
  t.live += block.bytes;
  if (recording() != nullptr) recording()->push_back(block.bytes);
}

inline void drop(Block* block) {
  if (block->scratch) totals().scratch -= block->bytes;
  if (block->counted) totals().live -= block->bytes;
  if (block->counted && recording() != nullptr) recording()->push_back(-block->bytes);
  std::free(block);
}
inline void drop_cpu(void* data) {
  if (data != nullptr) drop(static_cast<Block*>(data) - 1);
}
inline void drop_meta(void* block) { drop(static_cast<Block*>(block)); }

/// Serves both devices; on meta there is nothing behind the pointer.
class RecordingAllocator final : public c10::Allocator {
 public:
  explicit RecordingAllocator(c10::DeviceType device) : device_(device) {}
  c10::DataPtr allocate(std::size_t bytes) override {
    const bool scratch = LibraryScratch::active(), counted = bytes >= 64 && !scratch;
    const bool cpu = device_ == c10::kCPU;
    if (cpu && bytes == 0) return {nullptr, nullptr, &drop_cpu, c10::Device(device_)};
    count_block({static_cast<std::int64_t>(bytes), counted, scratch});
    void* memory = nullptr;
    if (posix_memalign(&memory, 64, sizeof(Block) + (cpu ? bytes : 0)) != 0) throw std::bad_alloc();
    auto* block = new (memory) Block{static_cast<std::int64_t>(bytes), counted, scratch};
    if (!cpu) return {nullptr, block, &drop_meta, c10::Device(device_)};
    return {block + 1, block + 1, &drop_cpu, c10::Device(device_)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return device_ == c10::kCPU ? &drop_cpu : nullptr; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { std::memcpy(to, from, bytes); }

 private:
  c10::DeviceType device_;
};

inline void install_recorder() {
  static RecordingAllocator cpu(c10::kCPU), meta(c10::kMeta);
  static const bool once = [] {
    c10::SetCPUAllocator(&cpu, 200);
    c10::SetAllocator(c10::kMeta, &meta, 200);
    return true;
  }();
  (void)once;
}

/// What `body` allocates and frees. Tensors made before and freed inside count as frees on both devices.
inline EventList events_of(const std::function<void()>& body) {
  struct Recording {
    EventList list;
    Recording() { recording() = &list; }
    ~Recording() { recording() = nullptr; }  // also when body throws
  };
  Recording now;
  body();
  return now.list;
}

/// "" when both lists are equal, else where they part, with what came just before on both sides.
inline std::string difference(const EventList& cpu, const EventList& meta) {
  const auto parting = std::mismatch(cpu.begin(), cpu.end(), meta.begin(), meta.end());
  if (parting.first == cpu.end() && parting.second == meta.end()) return "";
  const auto at = parting.first - cpu.begin();
  std::string text = "event " + std::to_string(at) + " of " + std::to_string(cpu.size()) + " (cpu), " +
                     std::to_string(meta.size()) + " (meta):";
  for (auto i = std::max<std::ptrdiff_t>(0, at - 6); i < at + 6; ++i) {
    const auto show = [i](const EventList& list) {
      return i < static_cast<std::ptrdiff_t>(list.size()) ? std::to_string(list[static_cast<std::size_t>(i)]) : "-";
    };
    text += "\n  " + show(cpu) + "  " + show(meta);
  }
  return text;
}

}  // namespace plimsoll::model::testing
