#pragma once
// The GPUs that NVIDIA's management library knows of. It is opened at run time: the program runs without it.

#include <cstdint>
#include <string>
#include <vector>

namespace plimsoll {

struct Gpu {
  std::string name;
  std::int64_t total = 0, free = 0;  ///< bytes
};

struct GpuReport {
  std::string problem;  ///< why there is nothing to report ("no GPU: ..."); empty when there is
  std::string driver;   ///< version
  std::vector<Gpu> gpus;
};

/// Never throws; takes a few milliseconds, more when the driver wakes up.
GpuReport ask_gpus();

}  // namespace plimsoll
