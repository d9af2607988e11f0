#include <memory>
#include <utility>
#include <vector>

#include "ddp/device_communicator.h"

namespace plimsoll::ddp {
namespace {

/// A broken reduction may still write to its buffer (ddp/communicator.h), so that is kept until the process ends.
void keep_for_good(std::shared_ptr<float[]> buffer) {
  static auto& kept = *new std::vector<std::shared_ptr<float[]>>;
  kept.push_back(std::move(buffer));
}

class Staged final : public DeviceCommunicator {
 public:
  Staged(Communicator& host, DeviceCopies copies) : DeviceCommunicator(host), copies_(std::move(copies)) {}

  void all_reduce_sum(std::span<float> values) override {
    if (world() == 1) return;
    if (values.size() > size_) {
      buffer_ = copies_.host_memory(values.size());
      size_ = values.size();
    }
    const std::span<float> staged(buffer_.get(), values.size());
    copies_.to_host(values, staged.data());
    try {
      host_.all_reduce_sum(staged);
    } catch (...) {
      keep_for_good(buffer_);
      throw;
    }
    copies_.from_host(staged, values.data());
  }
  std::string name() const override { return host_.name() + ", staged"; }

 private:
  DeviceCopies copies_;
  std::shared_ptr<float[]> buffer_;
  std::size_t size_ = 0;
};

}  // namespace

std::unique_ptr<Communicator> make_staged(Communicator& host, DeviceCopies copies) {
  return std::make_unique<Staged>(host, std::move(copies));
}

}  // namespace plimsoll::ddp
