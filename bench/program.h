#pragma once
// What the benchmarks that are programs of their own share.

#include <cstdio>

#include "core/error.h"

namespace plimsoll::bench {

/// The program's exit code: 0, or an Error's, whose text goes to stderr.
int exit_code_of(const auto& program) {
  try {
    program();
    return 0;
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return static_cast<int>(error.code());
  }
}

}  // namespace plimsoll::bench
