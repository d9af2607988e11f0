// The CUDA library's one entry: opens a GPU and registers what serves it.

#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>

#include "core/error.h"
#include "memory/cuda/cuda_memory.h"
#include "model/cuda/kernels_cuda.h"
#include "model/kernels.h"
#include "train/cuda/flat_kernels.h"
#include "train/device.h"

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

Device open(int index) {
  check_driver();
  const auto device = static_cast<c10::DeviceIndex>(index);
  const cudaDeviceProp& properties = *at::cuda::getDeviceProperties(device);
  check_architecture(properties, index);
  c10::cuda::set_device(device);
  at::cuda::getCurrentCUDABlasHandle();  // its workspace is part of the static bytes
  auto* const memory = new memory::CudaMemory(device);
  model::register_kernels(at::kCUDA, &model::cuda_kernels());
  register_flat_kernels(at::kCUDA, &cuda_flat_kernels());
  Device opened;
  opened.place = c10::Device(c10::kCUDA, device);
  opened.memory = memory;
  opened.name = properties.name;
  opened.total = memory->total();
  opened.available = memory->available();
  return opened;
}

}  // namespace
}  // namespace plimsoll::train

extern "C" __attribute__((visibility("default"))) const plimsoll::train::DeviceLibrary* plimsoll_device_library() {
  static const plimsoll::train::DeviceLibrary library{plimsoll::train::DeviceLibrary::kVersion, &plimsoll::train::open};
  return &library;
}
