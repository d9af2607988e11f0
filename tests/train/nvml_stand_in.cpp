// Stands in for NVIDIA's management library in nvml_test.cpp, with what train/nvml.h asks of it: a GPU at bus 3b that
// is 37 % busy, with 5 GiB of this process, and one at 3c that does not say, as a part of a GPU (MIG) does not.

#include <unistd.h>

#include <cstring>

namespace {

constexpr int kNotSupported = 3, kNotFound = 6;  // of nvmlReturn_t
int gpu = 0, part = 0;                           // their addresses are the handles

}  // namespace

extern "C" {

struct StandInRates {
  unsigned gpu, memory;
};

int nvmlInit_v2() { return 0; }

int nvmlDeviceGetHandleByPciBusId_v2(const char* bus, void** handle) {
  if (std::strcmp(bus, "00000000:3b:00.0") == 0) {
    *handle = &gpu;
  } else if (std::strcmp(bus, "00000000:3c:00.0") == 0) {
    *handle = &part;
  } else {
    return kNotFound;
  }
  return 0;
}

int nvmlDeviceGetUtilizationRates(void* handle, StandInRates* rates) {
  if (handle != &gpu) return kNotSupported;
  *rates = {37, 12};
  return 0;
}

struct StandInProcess {
  unsigned pid;
  unsigned long long bytes;
  unsigned gpu_instance, compute_instance;
};

int nvmlDeviceGetComputeRunningProcesses_v3(void* handle, unsigned* count, StandInProcess* processes) {
  const auto self = static_cast<unsigned>(getpid());
  processes[0] = {self + 1, 1ULL << 30, 0, 0};
  processes[1] = {handle == &gpu ? self : self + 2, 5ULL << 30, 0, 0};
  *count = 2;
  return 0;
}
}
