#pragma once
// What stands for the properties where RapidCheck is not installed: a case that is skipped, or, where all is to be
// proved, fails.

#include <gtest/gtest.h>

#include <cstdlib>
#include <string_view>

namespace plimsoll::memory {

inline void without_rapidcheck() {
  const char* proofs = std::getenv("PLIMSOLL_PROOFS");
  if (proofs != nullptr && *proofs != '\0' && std::string_view(proofs) != "0") {
    FAIL() << "PLIMSOLL_PROOFS asks for every property, and rapidcheck/gtest.h is not installed (Debian: "
              "librapidcheck-dev)";
  }
  GTEST_SKIP() << "rapidcheck/gtest.h is not installed (Debian: librapidcheck-dev)";
}

}  // namespace plimsoll::memory
