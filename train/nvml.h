#pragma once
// What a GPU tells by NVIDIA's management library (NVML), which comes with the driver. It is opened at run time, and
// its header is not needed to build: functions and types are those of NVML's API reference. All of it is here, because
// the CUDA library, which calls it, links nothing of the program's.

#include <dlfcn.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <span>
#include <string>

namespace plimsoll::train {

/// A GPU there; `gpu` is null where there is no such library, where it is no NVML or does not start, and where it does
/// not know the GPU. Its functions are called by one thread at a time.
struct Nvml {
  void* library = nullptr;
  void* gpu = nullptr;

  /// Null where there is no GPU, or where an older driver has no such function.
  template <class Function>
  Function find(const char* name) const {
    return gpu == nullptr ? nullptr : reinterpret_cast<Function>(dlsym(library, name));
  }
};

/// Of the GPU at this PCI bus id ("00000000:3b:00.0").
inline Nvml open_nvml(const std::string& bus, const char* library = "libnvidia-ml.so.1") {
  void* const opened = dlopen(library, RTLD_NOW | RTLD_LOCAL);
  if (opened == nullptr) return {};
  const auto init = reinterpret_cast<int (*)()>(dlsym(opened, "nvmlInit_v2"));
  const auto find = reinterpret_cast<int (*)(const char*, void**)>(dlsym(opened, "nvmlDeviceGetHandleByPciBusId_v2"));
  void* gpu = nullptr;
  if (init == nullptr || find == nullptr || init() != 0 || find(bus.c_str(), &gpu) != 0) return {};
  return {opened, gpu};
}

/// For Device::utilisation: the part of the last moments that it was busy, 0 to 1, or nothing where it does not say, as
/// a part of a GPU (MIG) does not. Null where it cannot be asked.
inline std::function<std::optional<double>()> utilisation_of(const Nvml& nvml) {
  struct Rates {
    unsigned gpu, memory;  // percent
  };
  const auto rates = nvml.find<int (*)(void*, Rates*)>("nvmlDeviceGetUtilizationRates");
  if (rates == nullptr) return nullptr;
  return [rates, gpu = nvml.gpu]() -> std::optional<double> {
    Rates now{};
    if (rates(gpu, &now) != 0) return std::nullopt;
    return now.gpu / 100.0;
  };
}

/// Bytes of it that this process uses, or nothing where it does not say, or knows the process by another number, as
/// that of a container. Null where it cannot be asked.
inline std::function<std::optional<std::int64_t>()> use_of_this_process(const Nvml& nvml) {
  struct Process {
    unsigned pid;
    unsigned long long bytes;
    unsigned gpu_instance, compute_instance;
  };
  const auto list = nvml.find<int (*)(void*, unsigned*, Process*)>("nvmlDeviceGetComputeRunningProcesses_v3");
  if (list == nullptr) return nullptr;
  return [list, gpu = nvml.gpu]() -> std::optional<std::int64_t> {
    constexpr unsigned kMost = 256;
    std::array<Process, kMost> processes{};
    unsigned count = kMost;
    if (list(gpu, &count, processes.data()) != 0) return std::nullopt;
    for (const Process& one : std::span(processes).first(count < kMost ? count : kMost)) {
      const bool known = one.bytes <= static_cast<unsigned long long>(std::numeric_limits<std::int64_t>::max());
      if (one.pid == static_cast<unsigned>(::getpid()) && known) return static_cast<std::int64_t>(one.bytes);
    }
    return std::nullopt;
  };
}

}  // namespace plimsoll::train
