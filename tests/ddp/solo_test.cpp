// The conformance suite of tests/ddp/conformance.cpp, alone.
#include <gtest/gtest.h>

#include "tests/ddp/conformance.h"

namespace plimsoll::ddp {

Communicator& tested() {
  static const std::unique_ptr<Communicator> solo = make_solo();
  return *solo;
}

TEST(Solo, IsAWorldOfOne) {
  EXPECT_EQ(tested().rank(), 0);
  EXPECT_EQ(tested().world(), 1);
  EXPECT_EQ(tested().local_rank(), 0);
  EXPECT_EQ(tested().name(), "solo");
}

TEST(SoloDeathTest, AbortLeavesWithItsCode) { EXPECT_EXIT(make_solo()->abort(75), testing::ExitedWithCode(75), ""); }

}  // namespace plimsoll::ddp
