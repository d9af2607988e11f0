#include "train/device_tier.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <atomic>
#include <thread>
#include <vector>

#include "memory/cpu_allocator.h"

namespace plimsoll::train {
namespace {

constexpr std::int64_t kWidth = 4;

std::vector<float> rows_of(std::int64_t count, float value) {
  return std::vector<float>(static_cast<std::size_t>(count * kWidth), value);
}

void keep(DeviceTier& tier, std::int64_t sample, std::int64_t stamp, std::int64_t count, std::uint64_t next) {
  const auto rows = rows_of(count, static_cast<float>(100 * stamp + sample));
  tier.keep(sample, stamp, std::as_bytes(std::span(rows)), next);
}

class DeviceTierTest : public ::testing::Test {
 protected:
  static std::int64_t bytes(std::int64_t rows) { return rows * kWidth * static_cast<std::int64_t>(sizeof(float)); }
  static DeviceTier tier_of(std::int64_t rows) { return {bytes(rows) + 5, kWidth, at::kFloat, at::kCPU}; }
  static bool has(DeviceTier& tier, std::int64_t sample, std::int64_t stamp, std::uint64_t next, std::int64_t count) {
    const auto found = tier.find(sample, stamp, next);
    if (!found) return false;
    EXPECT_EQ(found->rows.sizes(), (std::vector<std::int64_t>{count, kWidth}));
    return at::equal(found->rows, at::full({count, kWidth}, static_cast<float>(100 * stamp + sample)));
  }
};

TEST_F(DeviceTierTest, WhatIsNeededLastMakesRoom) {
  DeviceTier tier = tier_of(10);
  EXPECT_EQ(tier.bytes(), bytes(10)) << "whole rows";
  keep(tier, 1, 0, 4, 100);
  keep(tier, 2, 0, 4, 300);
  keep(tier, 3, 0, 4, 200);
  EXPECT_FALSE(has(tier, 2, 0, 0, 4)) << "needed last";
  EXPECT_TRUE(has(tier, 1, 0, 500, 4));
  EXPECT_TRUE(has(tier, 3, 0, 600, 4));
  keep(tier, 4, 0, 4, 700);
  EXPECT_FALSE(has(tier, 4, 0, 0, 4)) << "all that is there is needed sooner";
  keep(tier, 5, 0, 11, 0);
  EXPECT_TRUE(has(tier, 1, 0, 500, 4)) << "more than the block holds moves nothing";
  EXPECT_TRUE(has(tier, 3, 0, 600, 4));
  keep(tier, 6, 0, 2, 900);
  EXPECT_TRUE(has(tier, 6, 0, 900, 2)) << "there was a gap";
}

TEST_F(DeviceTierTest, RowsOfAnotherStampAreNeverGivenAndGiveTheirPlaceBack) {
  DeviceTier tier = tier_of(6);
  keep(tier, 1, 3, 6, 10);
  EXPECT_FALSE(has(tier, 1, 5, 10, 6));
  keep(tier, 2, 0, 6, 1000);
  EXPECT_TRUE(has(tier, 2, 0, 1000, 6)) << "the other's place was free";
  keep(tier, 2, 1, 6, 1000);
  EXPECT_TRUE(has(tier, 2, 1, 1000, 6));
  tier.forget(2);
  tier.forget(9);
  EXPECT_FALSE(has(tier, 2, 1, 1000, 6));
  DeviceTier none = tier_of(0);
  keep(none, 1, 0, 1, 0);
  EXPECT_FALSE(none.keeps() || none.find(1, 0, 0));
}

TEST_F(DeviceTierTest, RowsInUseKeepTheirValuesAndOutliveTheTier) {
  std::shared_ptr<const model::DeviceRows> held;
  {
    DeviceTier tier = tier_of(6);
    keep(tier, 1, 0, 6, 100);
    held = tier.find(1, 0, 500);
    keep(tier, 2, 0, 6, 10);
    EXPECT_FALSE(has(tier, 2, 0, 10, 6)) << "no place while the rows are in use";
    EXPECT_TRUE(has(tier, 1, 0, 500, 6));
    tier.forget(1);
    keep(tier, 2, 0, 6, 10);
    EXPECT_FALSE(has(tier, 2, 0, 10, 6)) << "nor when they are forgotten";
  }
  EXPECT_TRUE(at::equal(held->rows, at::full({6, kWidth}, 1.0F)));
}

TEST_F(DeviceTierTest, TheBlockGoesWithTheTier) {
  auto& memory = memory::CpuAllocator::install();
  const std::int64_t before = memory.live();
  {
    DeviceTier tier = tier_of(1000);
    for (std::int64_t sample = 0; sample < 50; ++sample) keep(tier, sample, 0, 20, 1);
    EXPECT_EQ(memory.live() - before, bytes(1000));
  }
  EXPECT_EQ(memory.live(), before);
}

TEST_F(DeviceTierTest, WhatIsGivenUpIsTheDevicesAgainAndRowsInUseKeepTheirValues) {
  auto& memory = memory::CpuAllocator::install();
  const std::int64_t before = memory.live();
  DeviceTier tier = tier_of(1000);
  keep(tier, 1, 0, 300, 10);
  keep(tier, 2, 0, 300, 20);
  keep(tier, 3, 0, 300, 30);
  const auto held = tier.find(1, 0, 40), forgotten = tier.find(2, 0, 50);
  tier.forget(2);
  EXPECT_EQ(tier.give_up(), bytes(1000));
  EXPECT_EQ(memory.live(), before) << "nor are the rows in use a part of it";
  EXPECT_TRUE(at::equal(held->rows, at::full({300, kWidth}, 1.0F)));
  EXPECT_TRUE(at::equal(forgotten->rows, at::full({300, kWidth}, 2.0F)));
  EXPECT_FALSE(tier.keeps());
  EXPECT_EQ(tier.bytes(), 0);
  EXPECT_EQ(tier.give_up(), 0) << "once";
  keep(tier, 4, 0, 1, 10);
  for (std::int64_t sample = 1; sample <= 4; ++sample) EXPECT_FALSE(tier.find(sample, 0, 60)) << sample;
}

TEST_F(DeviceTierTest, OneThreadKeepsWhileOthersFind) {
  DeviceTier tier = tier_of(40);
  std::vector<std::thread> readers;
  std::atomic<bool> done = false;
  for (int t = 0; t < 3; ++t) {
    readers.emplace_back([&, t] {
      for (std::uint64_t i = 0; !done; ++i) {
        const auto sample = static_cast<std::int64_t>((i * 7 + static_cast<std::uint64_t>(t)) % 20);
        if (const auto found = tier.find(sample, 0, i)) {
          EXPECT_TRUE(at::equal(found->rows, at::full(found->rows.sizes(), static_cast<float>(sample))));
        }
        if (i % 50 == 0) tier.forget(sample);
      }
    });
  }
  for (std::uint64_t i = 0; i < 3000; ++i) {
    const auto sample = static_cast<std::int64_t>(i % 20);
    keep(tier, sample, 0, 1 + sample % 5, i % 97);
  }
  done = true;
  for (auto& reader : readers) reader.join();
}

}  // namespace
}  // namespace plimsoll::train
