// The CUDA library's one entry.

#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>
#include <fmt/format.h>
#include <torch/torch.h>

#include <algorithm>
#include <fstream>
#include <string>

#include "core/error.h"
#include "ddp/cuda/nccl.h"
#include "memory/cuda/allocator_trace.h"
#include "memory/cuda/cuda_memory.h"
#include "model/cuda/kernels_cuda.h"
#include "train/cuda/flat_kernels.h"
#include "train/cuda/requirements.h"
#include "train/device.h"
#include "train/nvml.h"

namespace plimsoll::train {
namespace {

void check_driver() {
  int driver = 0, runtime = 0;
  C10_CUDA_CHECK(cudaRuntimeGetVersion(&runtime));
  C10_CUDA_CHECK(cudaDriverGetVersion(&driver));
  require_driver(driver, runtime);
}

std::string id_of(const cudaDeviceProp& properties) {
  std::string id;
  for (const char byte : properties.uuid.bytes) id += fmt::format("{:02x}", static_cast<unsigned char>(byte));
  return id;
}

std::string bus_of(const cudaDeviceProp& properties) {
  return fmt::format("{:08x}:{:02x}:{:02x}.0", properties.pciDomainID, properties.pciBusID, properties.pciDeviceID);
}

// Slices of one card (MIG) are devices with ids of their own; its place on the bus is theirs too, of this boot of this
// machine.
std::string card_of(const cudaDeviceProp& properties) {
  std::string boot;
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::getline(file, boot);
  return fmt::format("{} {:08x}:{:02x}:{:02x}", boot, properties.pciDomainID, properties.pciBusID,
                     properties.pciDeviceID);
}

template <class T>
std::shared_ptr<T[]> pinned(std::size_t count) {
  void* block = nullptr;
  C10_CUDA_CHECK(cudaHostAlloc(&block, count * sizeof(T), cudaHostAllocDefault));
  return std::shared_ptr<T[]>(static_cast<T*>(block), [](T* memory) { cudaFreeHost(memory); });
}

// What cuBLAS keeps for good, for this thread and for the one that autograd works on, is part of the static bytes.
// Kernels and communicators, which hold memory outside of the allocator, are warmed up by the session, which has a
// model to run (Session::settle_budget).
void warm_up(c10::Device device) {
  model::prepare_cuda_thread();
  const at::Tensor one = torch::zeros({1}, at::TensorOptions(device)).requires_grad_(true);
  const at::Tensor twice = one * 2;
  twice.register_hook([](const at::Tensor& gradient) {
    model::prepare_cuda_thread();
    return gradient;
  });
  twice.backward();
}

Device open_checked(int index) {
  check_driver();
  const auto device = static_cast<c10::DeviceIndex>(index);
  const cudaDeviceProp& properties = *at::cuda::getDeviceProperties(device);
  require_architecture(properties.major, properties.minor, index, properties.name);
  at::globalContext().lazyInitDevice(c10::kCUDA);  // makes the caching allocator
  c10::cuda::set_device(device);
  auto* const memory = new memory::CudaMemory(device);
  Device opened;
  opened.place = c10::Device(c10::kCUDA, device);
  opened.memory = memory;
  opened.name = properties.name;
  opened.id = id_of(properties);
  opened.card = card_of(properties);
  opened.total = memory->total();
  opened.available = [memory] { return memory->available(); };
  const Nvml nvml = open_nvml(bus_of(properties));
  opened.overhead = [memory, used = use_of_this_process(nvml)] {
    const auto own = used ? used() : std::nullopt;
    return own ? std::max<std::int64_t>(0, *own - memory->reserved()) : memory->overhead();
  };
  opened.utilisation = utilisation_of(nvml);
  opened.pinned = &pinned<std::byte>;
  warm_up(opened.place);
  return opened;
}

// What CUDA says of a GPU that it cannot use is the user's to mend.
Device open(int index) {
  try {
    return open_checked(index);
  } catch (const c10::Error& error) {
    fail(ExitCode::kUsage, "run.device: GPU {} cannot be used: {}; see nvidia-smi, or set run.device = \"cpu\"", index,
         error.what_without_backtrace());
  }
}

ddp::DeviceCopies copies() {
  const FlatKernels& kernels = cuda_flat_kernels();
  return {[&kernels](std::span<const float> device, float* host) { kernels.to_host(device, host); },
          [&kernels](std::span<const float> host, float* device) { kernels.from_host(host, device); },
          [](std::size_t floats) { return pinned<float>(floats); }};
}

std::unique_ptr<ddp::Communicator> nccl(ddp::Communicator& host) {
  return ddp::make_nccl(host, c10::cuda::getCurrentCUDAStream().stream());
}

}  // namespace
}  // namespace plimsoll::train

extern "C" __attribute__((visibility("default"))) const plimsoll::train::DeviceLibrary* plimsoll_device_library() {
  using namespace plimsoll::train;
  static const DeviceLibrary library{DeviceLibrary::kVersion,
                                     &open,
                                     &plimsoll::model::cuda_kernels,
                                     &cuda_flat_kernels,
                                     &plimsoll::model::cuda_host_copies,
                                     &copies,
                                     &nccl};
  return &library;
}

// For tests/train/cuda_device.cpp (memory/cuda/allocator_trace.h). `limit` below 0: none.
extern "C" __attribute__((visibility("default"))) void plimsoll_replay_allocations(
    const plimsoll::memory::AllocatorEvent* events, std::size_t count, std::int64_t limit,
    plimsoll::memory::AllocatorStats* stats) {
  *stats = plimsoll::memory::replay_on_device({events, count}, limit < 0 ? std::nullopt : std::optional(limit));
}

extern "C" __attribute__((visibility("default"))) void plimsoll_record_allocations(int device) {
  plimsoll::memory::record_allocations(static_cast<c10::DeviceIndex>(device));
}

// Copies at most `most` of what was recorded, and returns how many there are.
extern "C" __attribute__((visibility("default"))) std::size_t plimsoll_recorded_allocations(
    plimsoll::memory::AllocatorEvent* events, std::size_t most) {
  const auto recorded = plimsoll::memory::recorded_allocations();
  std::copy_n(recorded.begin(), std::min(most, recorded.size()), events);
  return recorded.size();
}
