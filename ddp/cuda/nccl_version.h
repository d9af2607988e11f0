#pragma once
// Which NCCL serves: a function of two numbers, by itself so that it is tested without a GPU.

#include <string>

#include "core/error.h"

namespace plimsoll::ddp {

/// "2.28.9", of the number that ncclGetVersion() gives and NCCL_VERSION_CODE is.
inline std::string nccl_version_text(int code) {
  const int major_unit = code < 10000 ? 1000 : 10000;  // up to 2.8 they were counted so
  return fmt::format("{}.{}.{}", code / major_unit, code % major_unit / 100, code % 100);
}

/// Newer ones keep what older ones have. Throws Error(kUsage) when an older one was loaded than this was built with.
inline void check_nccl_version(int loaded, int built) {
  if (loaded >= built) return;
  fail(ExitCode::kUsage,
       "NCCL {} was loaded and {} is what this was built with; install that version (tools/requirements-cuda.txt), or "
       "take an older libnccl.so.2 out of LD_LIBRARY_PATH",
       nccl_version_text(loaded), nccl_version_text(built));
}

}  // namespace plimsoll::ddp
