#include "train/type_bytes.h"

#include <gtest/gtest.h>

namespace plimsoll::train {
namespace {

TEST(TypeBytes, AMicroBatchOfOneTypeIsAllOfIt) {
  std::vector<TypeBytes> types(2);
  const std::vector<TypedSample> samples = {{1, 30}, {1, 50}};
  compare(samples, 110, 100, types);
  EXPECT_EQ(types[0].micro_batches, 0);
  EXPECT_EQ(types[1].micro_batches, 1);
  EXPECT_EQ(types[1].samples, 2);
  EXPECT_EQ(types[1].predicted, 110);
  EXPECT_EQ(types[1].measured, 100);
  EXPECT_DOUBLE_EQ(types[1].largest_error, 0.1);
}

TEST(TypeBytes, AMixedOneIsSharedByTokensAndItsErrorIsEverybodys) {
  std::vector<TypeBytes> types(3);
  const std::vector<TypedSample> samples = {{0, 100}, {2, 200}, {2, 100}};
  compare(samples, 3600, 4000, types);
  EXPECT_EQ(types[0].measured, 1000);
  EXPECT_EQ(types[2].measured, 3000);
  EXPECT_EQ(types[0].predicted, 900);
  EXPECT_EQ(types[2].predicted, 2700);
  EXPECT_DOUBLE_EQ(types[0].error_sum, 0.1);
  EXPECT_DOUBLE_EQ(types[2].error_sum, 0.1);
  compare(samples, 5000, 4000, types);
  EXPECT_EQ(types[2].micro_batches, 2);
  EXPECT_DOUBLE_EQ(types[2].error_sum, 0.35);
  EXPECT_DOUBLE_EQ(types[2].largest_error, 0.25);
}

TEST(TypeBytes, WhatHasNoBytesIsNotCompared) {
  std::vector<TypeBytes> types(1);
  const std::vector<TypedSample> samples = {{0, 0}};
  compare(samples, 0, 10, types);
  compare(samples, 10, 0, types);
  compare({}, 10, 10, types);
  EXPECT_EQ(types[0].micro_batches, 0);
  compare(samples, 10, 10, types);
  EXPECT_EQ(types[0].measured, 10) << "samples without a token share alike";
}

}  // namespace
}  // namespace plimsoll::train
