#pragma once
// What the CUDA library asks of a GPU and its driver, as functions of their numbers, by themselves so that they are
// tested without a GPU.

#include <string>
#include <string_view>

#include "core/error.h"

namespace plimsoll::train {

/// Least compute capability: cmake/cuda.cmake builds for 8.0 and 9.0. For a newer GPU the driver compiles the PTX
/// of 9.0 when the library is first used there.
inline constexpr int kLeastMajor = 8;

/// "13.0", of the number that CUDA's runtime and driver give.
inline std::string cuda_version_text(int version) { return fmt::format("{}.{}", version / 1000, version % 1000 / 10); }

/// A driver serves every CUDA of its own major version and older ones. Throws Error(kUsage) for an older driver.
inline void require_driver(int driver, int runtime) {
  if (driver / 1000 >= runtime / 1000) return;
  fail(ExitCode::kUsage,
       "run.device: the NVIDIA driver knows CUDA {} and this library needs {}; install a newer driver, or set "
       "run.device = \"cpu\"",
       cuda_version_text(driver), cuda_version_text(runtime));
}

/// Of GPU `index`. Throws Error(kUsage) when nothing that was built runs there.
inline void require_architecture(int major, int minor, int index, std::string_view name) {
  if (major >= kLeastMajor) return;
  fail(ExitCode::kUsage,
       "run.device: GPU {} ({}) has compute capability {}.{} and {}.0 is the least that is built; set run.device = "
       "\"cpu\" or choose another GPU (CUDA_VISIBLE_DEVICES)",
       index, name, major, minor, kLeastMajor);
}

}  // namespace plimsoll::train
