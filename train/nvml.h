#pragma once
// How busy a GPU is, by NVIDIA's management library (NVML), which comes with the driver. It is opened at run time, and
// its header is not needed to build: functions and types are those of NVML's API reference. All of it is here, because
// the CUDA library, which calls it, links nothing of the program's.

#include <dlfcn.h>

#include <functional>
#include <optional>
#include <string>

namespace plimsoll::train {

/// For Device::utilisation, of the GPU at this PCI bus id ("00000000:3b:00.0"): the part of the last moments that it
/// was busy, 0 to 1, or nothing where it does not say, as a part of a GPU (MIG) does not. Null where there is no such
/// library, where it is no NVML or does not start, and where it does not know the GPU. One thread at a time.
inline std::function<std::optional<double>()> utilisation_by_nvml(const std::string& bus,
                                                                  const char* library = "libnvidia-ml.so.1") {
  void* nvml = dlopen(library, RTLD_NOW | RTLD_LOCAL);
  if (nvml == nullptr) return nullptr;
  struct Rates {
    unsigned gpu, memory;  // percent
  };
  const auto init = reinterpret_cast<int (*)()>(dlsym(nvml, "nvmlInit_v2"));
  const auto find = reinterpret_cast<int (*)(const char*, void**)>(dlsym(nvml, "nvmlDeviceGetHandleByPciBusId_v2"));
  const auto rates = reinterpret_cast<int (*)(void*, Rates*)>(dlsym(nvml, "nvmlDeviceGetUtilizationRates"));
  void* handle = nullptr;
  if (init == nullptr || find == nullptr || rates == nullptr || init() != 0 || find(bus.c_str(), &handle) != 0)
    return nullptr;
  return [rates, handle]() -> std::optional<double> {
    Rates now{};
    if (rates(handle, &now) != 0) return std::nullopt;
    return now.gpu / 100.0;
  };
}

}  // namespace plimsoll::train
