// The CUDA library's one entry.

#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>
#include <fmt/format.h>
#include <torch/torch.h>

#include <string>

#include "core/error.h"
#include "ddp/cuda/nccl.h"
#include "memory/cuda/cuda_memory.h"
#include "model/cuda/kernels_cuda.h"
#include "train/cuda/flat_kernels.h"
#include "train/device.h"
#include "train/nvml.h"

namespace plimsoll::train {
namespace {

constexpr int kLeastMajor = 8;  // of the architectures that are built: sm_80, sm_90, and PTX for newer ones

std::string version_text(int version) { return fmt::format("{}.{}", version / 1000, version % 1000 / 10); }

void check_driver() {
  int driver = 0, runtime = 0;
  C10_CUDA_CHECK(cudaRuntimeGetVersion(&runtime));
  C10_CUDA_CHECK(cudaDriverGetVersion(&driver));
  if (driver / 1000 >= runtime / 1000) return;
  fail(ExitCode::kUsage,
       "run.device: the NVIDIA driver knows CUDA {} and this library needs {}; install a newer driver, or set "
       "run.device "
       "= \"cpu\"",
       version_text(driver), version_text(runtime));
}

void check_architecture(const cudaDeviceProp& properties, int index) {
  if (properties.major >= kLeastMajor) return;
  fail(ExitCode::kUsage,
       "run.device: GPU {} ({}) has compute capability {}.{} and {}.0 is the least that is built; set run.device = "
       "\"cpu\" or choose another GPU (CUDA_VISIBLE_DEVICES)",
       index, properties.name, properties.major, properties.minor, kLeastMajor);
}

std::string id_of(const cudaDeviceProp& properties) {
  std::string id;
  for (const char byte : properties.uuid.bytes) id += fmt::format("{:02x}", static_cast<unsigned char>(byte));
  return id;
}

std::string bus_of(const cudaDeviceProp& properties) {
  return fmt::format("{:08x}:{:02x}:{:02x}.0", properties.pciDomainID, properties.pciBusID, properties.pciDeviceID);
}

template <class T>
std::shared_ptr<T[]> pinned(std::size_t count) {
  void* block = nullptr;
  C10_CUDA_CHECK(cudaHostAlloc(&block, count * sizeof(T), cudaHostAllocDefault));
  return std::shared_ptr<T[]>(static_cast<T*>(block), [](T* memory) { cudaFreeHost(memory); });
}

// What cuBLAS keeps for good, for this thread and for the one that autograd works on, is part of the static bytes.
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
  check_architecture(properties, index);
  at::globalContext().lazyInitDevice(c10::kCUDA);  // makes the caching allocator
  c10::cuda::set_device(device);
  auto* const memory = new memory::CudaMemory(device);
  Device opened;
  opened.place = c10::Device(c10::kCUDA, device);
  opened.memory = memory;
  opened.name = properties.name;
  opened.id = id_of(properties);
  opened.total = memory->total();
  opened.available = [memory] { return memory->available(); };
  opened.utilisation = utilisation_by_nvml(bus_of(properties));
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
