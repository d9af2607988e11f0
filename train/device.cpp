#include "train/device.h"

#include <dlfcn.h>
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <filesystem>
#include <set>

#include "core/error.h"
#include "ddp/handshake.h"
#include "memory/cpu_allocator.h"
#include "model/kernels.h"
#include "train/flat_kernels.h"
#include "train/options.h"

namespace plimsoll::train {
namespace {

namespace fs = std::filesystem;

struct Driver {
  int devices = 0;
  std::string trouble;  ///< why there are none
};

// By the driver's own library, which is there wherever a GPU can be used: libtorch's CUDA side, half a second and a
// gigabyte of address space, is opened for nothing else.
Driver look_for_devices() {
  using Init = int (*)(unsigned);
  using Count = int (*)(int*);
  void* driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
  if (driver == nullptr) return {0, "no NVIDIA driver is installed (libcuda.so.1)"};
  const auto init = reinterpret_cast<Init>(dlsym(driver, "cuInit"));
  const auto count = reinterpret_cast<Count>(dlsym(driver, "cuDeviceGetCount"));
  if (init == nullptr || count == nullptr) return {0, "libcuda.so.1 is no NVIDIA driver"};
  if (const int error = init(0); error != 0)
    return {0, fmt::format("the NVIDIA driver does not start (cuInit gives error {})", error)};
  int devices = 0;
  if (const int error = count(&devices); error != 0 || devices == 0)
    return {0, "the NVIDIA driver knows no GPU (CUDA_VISIBLE_DEVICES may hide them)"};
  return {devices, ""};
}

fs::path library_path() {
  std::error_code ignored;
  return fs::read_symlink("/proc/self/exe", ignored).parent_path() / kDeviceLibraryFile;
}

const DeviceLibrary& open_library() {
  const fs::path file = library_path();
  void* handle = dlopen(file.c_str(), RTLD_NOW | RTLD_GLOBAL);
  if (handle == nullptr) {
    const char* said = dlerror();
    fail(ExitCode::kUsage,
         "run.device: there is a GPU, but its library does not open: {}; build it where nvcc is installed, with the "
         "wheels of tools/requirements-cuda.txt, or set run.device = \"cpu\"",
         said == nullptr ? file.string() : said);
  }
  using Get = const DeviceLibrary* (*)();
  const auto get = reinterpret_cast<Get>(dlsym(handle, kDeviceLibraryFunction));
  const DeviceLibrary* library = get == nullptr ? nullptr : get();
  if (library == nullptr || library->version != DeviceLibrary::kVersion) {
    fail(ExitCode::kUsage, "{}: of another build than this program (version {}, {} is needed); build both together",
         file.string(), library == nullptr ? 0 : library->version, DeviceLibrary::kVersion);
  }
  return *library;
}

}  // namespace

Device cpu_device() {
  Device device;
  device.memory = &memory::CpuAllocator::install();
  device.name = processor_name();
  device.total = machine_memory();
  device.available = available_memory(1);
  return device;
}

Device open_device(const std::string& wanted, int local_rank) {
  if (wanted == "cpu") return cpu_device();
  const Driver driver = look_for_devices();
  if (driver.devices == 0 && wanted == "auto") return cpu_device();
  if (driver.devices == 0) {
    fail(ExitCode::kUsage, "run.device = \"{}\": {}; set run.device = \"cpu\", or run it on a machine with a GPU",
         wanted, driver.trouble);
  }
  const DeviceLibrary& library = open_library();
  Device device = library.open(local_rank % driver.devices);
  device.devices = driver.devices;
  device.library = &library;
  model::register_kernels(device.place.type(), &library.kernels());
  register_flat_kernels(device.place.type(), &library.flat_kernels());
  return device;
}

std::unique_ptr<ddp::Communicator> communicator_on(const Device& device, ddp::Communicator& host) {
  if (device.library == nullptr || host.world() == 1) return nullptr;
  const auto ids = ddp::share_text(host, device.id);
  const std::set<std::string> different(ids.begin(), ids.end());
  if (different.size() == ids.size()) return device.library->nccl(host);
  spdlog::info("{} ranks share {} GPUs: gradients are summed in host memory", ids.size(), different.size());
  return ddp::make_staged(host, device.library->copies());
}

}  // namespace plimsoll::train
