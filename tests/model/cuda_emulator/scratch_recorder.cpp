#include "tests/model/cuda_emulator/scratch_recorder.h"

#include <c10/core/Allocator.h>

#include <algorithm>
#include <cstdlib>
#include <new>

#include "core/scope.h"

namespace emulator {
namespace {

std::vector<std::int64_t>* recording = nullptr;
int paused = 0;

struct Block {
  void* memory;        ///< null on meta
  std::int64_t bytes;  ///< 0: not recorded
};

void give_back(void* context) {
  const auto* block = static_cast<Block*>(context);
  if (recording != nullptr && block->bytes > 0) recording->push_back(-block->bytes);
  std::free(block->memory);
  delete block;
}

class Recorder final : public c10::Allocator {
 public:
  explicit Recorder(c10::DeviceType device) : device_(device) {}
  c10::DataPtr allocate(std::size_t n) override {
    const bool recorded = recording != nullptr && paused == 0 && plimsoll::LibraryScratch::active();
    void* memory = device_ == c10::kMeta || n == 0 ? nullptr : std::aligned_alloc(64, (n + 63) / 64 * 64);
    if (device_ != c10::kMeta && n > 0 && memory == nullptr) throw std::bad_alloc();
    if (recorded && n > 0) recording->push_back(static_cast<std::int64_t>(n));
    auto* block = new Block{memory, recorded ? static_cast<std::int64_t>(n) : 0};
    return {memory, block, &give_back, c10::Device(device_)};
  }
  void copy_data(void* to, const void* from, std::size_t n) const override { default_copy_data(to, from, n); }

 private:
  c10::DeviceType device_;
};

void install() {
  static Recorder cpu(c10::kCPU), meta(c10::kMeta);
  constexpr std::uint8_t kAboveAll = 255;
  c10::SetAllocator(c10::kCPU, &cpu, kAboveAll);
  c10::SetAllocator(c10::kMeta, &meta, kAboveAll);
}

}  // namespace

std::vector<std::int64_t> scratch_of(const std::function<void()>& body) {
  install();
  std::vector<std::int64_t> events;
  recording = &events;
  body();
  recording = nullptr;
  return events;
}

std::int64_t most_at_once(const std::vector<std::int64_t>& events, std::int64_t unit) {
  std::int64_t now = 0, most = 0;
  for (const std::int64_t event : events) {
    const std::int64_t bytes = (std::abs(event) + unit - 1) / unit * unit;
    now += event > 0 ? bytes : -bytes;
    most = std::max(most, now);
  }
  return most;
}

NotRecorded::NotRecorded() { ++paused; }
NotRecorded::~NotRecorded() { --paused; }

}  // namespace emulator
