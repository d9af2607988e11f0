#include "memory/predictor.h"

#include <gtest/gtest.h>

namespace plimsoll::memory {
namespace {

TEST(Predictor, NeverRoundsDownAndNeverUpByHalfAPerCent) {
  for (std::int64_t value = 1; value < 100000; value += 7) {
    const auto rounded = round_up_to_class(value, 4);
    EXPECT_GE(rounded, value);
    EXPECT_LE(rounded, value + std::max<std::int64_t>(3, value / 256)) << value;
    EXPECT_EQ(rounded % 4, 0);
  }
  EXPECT_EQ(round_up_to_class(0, 4), 0);
}

TEST(Predictor, SharesOneDryRunAmongNearbyShapes) {
  int runs = 0;
  Predictor predictor([&](const MicroBatchShape& shape, const Plan& plan) {
    ++runs;
    return shape.tokens * 10 + shape.patches + plan.recompute_blocks;
  });
  Plan plan;
  EXPECT_EQ(predictor.bytes({2, 1000, 512}, plan), predictor.bytes({2, 999, 510}, plan));
  EXPECT_EQ(runs, 1);
  EXPECT_GE(predictor.bytes({2, 1001, 512}, plan), 10010 + 512);
  EXPECT_EQ(runs, 2);
  predictor.bytes({3, 1000, 512}, plan);
  EXPECT_EQ(runs, 3);
  // What a plan asks of the model counts, and what the shape says already does not.
  plan.micro_batch = 7;
  predictor.bytes({2, 1000, 512}, plan);
  EXPECT_EQ(runs, 3);
  for (const Plan& other : {Plan{0, 1, 1}, Plan{0, 1, 0, 1}, Plan{0, 1, 0, 0, 1}, Plan{0, 1, 1, 0, 0, true}}) {
    predictor.bytes({2, 1000, 512}, other);
  }
  EXPECT_EQ(runs, 7);
}

}  // namespace
}  // namespace plimsoll::memory
