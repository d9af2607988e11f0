#include "memory/dry_run.h"

#include <c10/core/Allocator.h>

#include <memory>

#include "core/scope.h"
#include "memory/cpu_allocator.h"

namespace plimsoll::memory {
namespace {

thread_local Ledger* active = nullptr;
thread_local std::uint64_t run_number = 0;
CountingRules counting;

// Stands for a block: meta storage has no data, so its size, label and number travel in the context pointer. `run`
// tells a block that outlives its dry run (a model built in an earlier one) from one of the run in progress.
struct Block {
  std::int64_t bytes;
  const char* label;
  std::uint64_t number;
  std::uint64_t run;
};

void free_meta_block(void* context) {
  const std::unique_ptr<Block> block(static_cast<Block*>(context));
  if (active != nullptr && block->run == run_number) active->remove(block->bytes, block->label, block->number);
}

class MetaAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(std::size_t n) override {
    const auto asked = static_cast<std::int64_t>(n);
    if (active == nullptr || asked < counting.smallest || (LibraryScratch::active() && !counting.scratch)) {
      return {nullptr, nullptr, nullptr, c10::Device(c10::kMeta)};
    }
    const std::int64_t bytes = (asked + counting.granule - 1) / counting.granule * counting.granule;
    const std::uint64_t number = active->add(bytes, AllocationLabel::current());
    auto block = std::make_unique<Block>(Block{bytes, AllocationLabel::current(), number, run_number});
    return {nullptr, block.release(), &free_meta_block, c10::Device(c10::kMeta)};
  }
  void copy_data(void*, const void*, std::size_t) const override {}
};

class MetaRecording {
 public:
  explicit MetaRecording(Ledger& ledger) {
    active = &ledger;
    ++run_number;
  }
  ~MetaRecording() { active = nullptr; }
  MetaRecording(const MetaRecording&) = delete;
  MetaRecording& operator=(const MetaRecording&) = delete;
};

class CpuRecording {
 public:
  explicit CpuRecording(Ledger& ledger) { CpuAllocator::record(&ledger); }
  ~CpuRecording() { CpuAllocator::record(nullptr); }
  CpuRecording(const CpuRecording&) = delete;
  CpuRecording& operator=(const CpuRecording&) = delete;
};

}  // namespace

void count_as(const CountingRules& rules) { counting = rules; }

void install_meta_allocator() {
  static MetaAllocator* const allocator = [] {
    auto* made = new MetaAllocator;
    c10::SetAllocator(c10::kMeta, made, 100);
    return made;
  }();
  static_cast<void>(allocator);
}

Ledger dry_run(const std::function<void()>& body, bool keep_events) {
  install_meta_allocator();
  Ledger ledger(keep_events);
  const MetaRecording from_here(ledger);
  body();
  return ledger;
}

Ledger measured_run(const std::function<void()>& body, bool keep_events) {
  CpuAllocator::install();
  Ledger ledger(keep_events);
  const CpuRecording from_here(ledger);
  body();
  return ledger;
}

}  // namespace plimsoll::memory
