// The only file that knows NCCL.
#include "ddp/cuda/nccl.h"

#include <cuda_runtime_api.h>
#include <nccl.h>
#include <sched.h>

#include <chrono>
#include <cstdlib>
#include <thread>

#include "core/error.h"
#include "ddp/cuda/nccl_version.h"

namespace plimsoll::ddp {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double kYield = 2e-3;      // seconds: then sleep, since somebody is late
constexpr double kLookAround = 0.1;  // between two looks at the peers
constexpr auto kSleep = std::chrono::microseconds(200);

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

void check_version() {
  int loaded = 0;
  ncclGetVersion(&loaded);
  check_nccl_version(loaded, NCCL_VERSION_CODE);
}

class Nccl final : public DeviceCommunicator {
 public:
  Nccl(Communicator& host, cudaStream_t stream);
  ~Nccl() override;
  Nccl(const Nccl&) = delete;
  Nccl& operator=(const Nccl&) = delete;
  void all_reduce_sum(std::span<float> values) override;
  std::string name() const override { return "nccl"; }

 private:
  /// Polls until `done()`. Whatever ends it early, NCCL is aborted first: nothing of it is left on the device.
  template <class Done>
  void wait(const char* doing, const Done& done);
  /// In progress: false; done: true; else throws.
  bool settled(ncclResult_t result, const char* doing) const;
  bool connected(const char* doing) const;

  cudaStream_t stream_;
  ncclComm_t comm_ = nullptr;
};

Nccl::Nccl(Communicator& host, cudaStream_t stream) : DeviceCommunicator(host), stream_(stream) {
  check_version();
  setenv("NCCL_NVLS_ENABLE", "0", 0);
  // Else it connects in the first reduction, and takes device memory then that the budget has been given already.
  setenv("NCCL_RUNTIME_CONNECT", "0", 0);
  ncclUniqueId id{};
  if (rank() == 0) settled(ncclGetUniqueId(&id), "ncclGetUniqueId");
  host_.broadcast(std::as_writable_bytes(std::span(&id, 1)), 0);
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  const char* const doing = "connecting the GPUs (NCCL)";
  settled(ncclCommInitRankConfig(&comm_, world(), id, rank(), &config), doing);
  wait(doing, [&] { return connected(doing); });
}

Nccl::~Nccl() {
  if (comm_ != nullptr) ncclCommAbort(comm_);  // nothing is under way: every reduction was waited for
}

bool Nccl::settled(ncclResult_t result, const char* doing) const {
  if (result == ncclSuccess) return true;
  if (result == ncclInProgress) return false;
  fail(ExitCode::kPeer, "rank {}: {} failed: {} ({}); restart from the last checkpoint", rank(), doing,
       ncclGetErrorString(result), ncclGetLastError(comm_));
}

bool Nccl::connected(const char* doing) const {
  ncclResult_t state = ncclSuccess;
  settled(ncclCommGetAsyncError(comm_, &state), doing);
  return settled(state, doing);
}

template <class Done>
void Nccl::wait(const char* doing, const Done& done) {
  const auto began = Clock::now();
  double next_look = kLookAround;
  try {
    while (!done()) {
      const double waited = seconds_since(began);
      if (waited > next_look) {
        watch_peers(doing, waited);
        next_look = waited + kLookAround;
      }
      if (waited < kYield) {
        sched_yield();
      } else {
        std::this_thread::sleep_for(kSleep);
      }
    }
  } catch (...) {
    if (comm_ != nullptr) ncclCommAbort(comm_);
    comm_ = nullptr;
    throw;
  }
}

// The barrier first: who is late is named by the host's communicator, and NCCL begins when all are there.
void Nccl::all_reduce_sum(std::span<float> values) {
  if (comm_ == nullptr)
    fail(ExitCode::kPeer, "a reduction was started after a peer was lost; only abort() is allowed then");
  host_.barrier();
  const char* const doing = "the reduction (NCCL)";
  bool queued =
      settled(ncclAllReduce(values.data(), values.data(), values.size(), ncclFloat, ncclSum, comm_, stream_), doing);
  wait(doing, [&] {
    if (!queued && !(queued = connected(doing))) return false;
    connected(doing);
    const cudaError_t state = cudaStreamQuery(stream_);
    if (state == cudaErrorNotReady) return false;
    if (state != cudaSuccess)
      fail(ExitCode::kPeer, "rank {}: the GPU failed in {}: {}; restart from the last checkpoint", rank(), doing,
           cudaGetErrorString(state));
    return true;
  });
}

}  // namespace

std::unique_ptr<Communicator> make_nccl(Communicator& host, void* stream) {
  return std::make_unique<Nccl>(host, static_cast<cudaStream_t>(stream));
}

}  // namespace plimsoll::ddp
