// Stands in for NVIDIA's management library in nvml_test.cpp, with what train/nvml.h asks of it: a GPU at bus 3b that
// is 37 % busy, and one at 3c that does not say, as a part of a GPU (MIG) does not.

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
}
