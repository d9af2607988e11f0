#include "launcher/gpu.h"

#include <dlfcn.h>
#include <fmt/format.h>

namespace plimsoll {
namespace {

// From NVML's API reference; its header is not needed to build.
using Device = void*;
struct MemoryInfo {
  unsigned long long total, free, used;
};
constexpr int kSuccess = 0;
constexpr unsigned kText = 96;  // longer than NVML's own buffers (80, 96)

struct Library {
  void* handle = ::dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
  Library() = default;
  ~Library() {
    if (handle != nullptr) ::dlclose(handle);
  }
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;

  /// Calls the function of that name; -1 when the library lacks it.
  template <class... Args>
  int call(const char* name, Args... args) const {
    auto* function = reinterpret_cast<int (*)(Args...)>(::dlsym(handle, name));
    return function == nullptr ? -1 : function(args...);
  }
};

Gpu ask_gpu(const Library& nvml, unsigned index) {
  Device device = nullptr;
  char name[kText] = "unknown";
  MemoryInfo memory{};
  if (nvml.call("nvmlDeviceGetHandleByIndex_v2", index, &device) == kSuccess) {
    nvml.call("nvmlDeviceGetName", device, &name[0], kText);
    nvml.call("nvmlDeviceGetMemoryInfo", device, &memory);
  }
  return {name, static_cast<std::int64_t>(memory.total), static_cast<std::int64_t>(memory.free)};
}

}  // namespace

GpuReport ask_gpus() {
  GpuReport report;
  const Library nvml;
  if (nvml.handle == nullptr) return {"no GPU: no NVIDIA driver is installed; training runs on the CPU", "", {}};
  if (const int status = nvml.call("nvmlInit_v2"); status != kSuccess) {
    return {fmt::format("no GPU: the NVIDIA driver does not answer (NVML status {})", status), "", {}};
  }
  char driver[kText] = "unknown";
  unsigned count = 0;
  nvml.call("nvmlSystemGetDriverVersion", &driver[0], kText);
  nvml.call("nvmlDeviceGetCount_v2", &count);
  report.driver = driver;
  for (unsigned i = 0; i < count; ++i) report.gpus.push_back(ask_gpu(nvml, i));
  nvml.call("nvmlShutdown");
  if (count == 0) report.problem = fmt::format("no GPU: driver {} has none", report.driver);
  return report;
}

}  // namespace plimsoll
