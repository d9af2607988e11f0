#pragma once
// Reductions in a device's memory. All else goes through the host's communicator.

#include <cstdlib>
#include <functional>
#include <memory>

#include "ddp/communicator.h"

namespace plimsoll::ddp {

/// Everything but all_reduce_sum(), whose span is of the device's memory here. `host` outlives it, and is the one whose
/// end is the last barrier.
class DeviceCommunicator : public Communicator {
 public:
  explicit DeviceCommunicator(Communicator& host) : host_(host) {}
  int rank() const override { return host_.rank(); }
  int world() const override { return host_.world(); }
  int local_rank() const override { return host_.local_rank(); }
  void broadcast(std::span<std::byte> bytes, int root) override { host_.broadcast(bytes, root); }
  std::vector<std::byte> all_gather(std::span<const std::byte> bytes) override { return host_.all_gather(bytes); }
  void barrier() override { host_.barrier(); }
  void enter(std::int64_t step, const char* phase) override { host_.enter(step, phase); }
  void watch_peers(const char* doing, double waited) override { host_.watch_peers(doing, waited); }
  [[noreturn]] void abort(int exit_code) override {
    host_.abort(exit_code);
    std::_Exit(exit_code);  // not reached; GCC does not believe it of a virtual function
  }

 protected:
  Communicator& host_;
};

/// Copies between a device's memory and the host's; both wait until it is done.
struct DeviceCopies {
  std::function<void(std::span<const float> device, float* host)> to_host;
  std::function<void(std::span<const float> host, float* device)> from_host;
  /// Host memory that the device copies from and to fastest (pinned), of so many floats.
  std::function<std::shared_ptr<float[]>(std::size_t floats)> host_memory;
};

/// Through a buffer in host memory, made by the first reduction: for ranks that share a GPU. The sums are the host's.
std::unique_ptr<Communicator> make_staged(Communicator& host, DeviceCopies copies);

}  // namespace plimsoll::ddp
