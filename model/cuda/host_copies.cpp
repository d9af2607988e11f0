// Copies to and from pinned host memory on a stream of their own.

#include <ATen/core/CachingHostAllocator.h>
#include <ATen/cuda/CUDAEvent.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/torch.h>

#include "model/cuda/kernels_cuda.h"
#include "model/host_copy.h"

namespace plimsoll::model {
namespace {

class StreamTransfer final : public Transfer {
 public:
  explicit StreamTransfer(const c10::cuda::CUDAStream& copying) { done_.record(copying); }
  ~StreamTransfer() override {
    try {
      wait();
    } catch (const c10::Error&) {  // the device is lost, which the next call to it says
    }
  }
  StreamTransfer(const StreamTransfer&) = delete;
  StreamTransfer& operator=(const StreamTransfer&) = delete;
  void wait() override {
    if (!waits_) done_.block(c10::cuda::getCurrentCUDAStream());
    waits_ = true;
  }

 private:
  at::cuda::CUDAEvent done_;
  bool waits_ = false;
};

class CudaCopies final : public HostCopies {
 public:
  // Pinned memory, which libtorch caches and gives to nobody else while a copy is under way.
  at::Tensor host_like(const at::Tensor& values) const override {
    const auto pinned = at::TensorOptions(values.scalar_type()).pinned_memory(true);
    try {
      return at::empty(values.sizes(), pinned);
    } catch (const c10::Error&) {  // it keeps what blocks of other sizes were made of
      at::getHostAllocator(at::kCUDA)->empty_cache();
      return at::empty(values.sizes(), pinned);
    }
  }

  std::unique_ptr<Transfer> copy(const at::Tensor& from, const at::Tensor& to) const override {
    const c10::cuda::CUDAStream copying = stream();
    at::cuda::CUDAEvent given;
    given.record(c10::cuda::getCurrentCUDAStream());
    given.block(copying);
    {
      const c10::cuda::CUDAStreamGuard on(copying);
      to.copy_(from, /*non_blocking=*/true);
    }
    return std::make_unique<StreamTransfer>(copying);
  }

 private:
  // Of the process's one GPU, and for both ways: a block's values leave in forward and come back in backward.
  static c10::cuda::CUDAStream stream() {
    static const c10::cuda::CUDAStream of_copies = c10::cuda::getStreamFromPool();
    return of_copies;
  }
};

}  // namespace

const HostCopies& cuda_host_copies() {
  static const CudaCopies copies;
  return copies;
}

}  // namespace plimsoll::model
