#include "cache/memory_tier.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <numeric>
#include <random>
#include <thread>

namespace plimsoll::cache {
namespace {

HostBytes bytes(std::size_t size) { return std::vector<std::byte>(size); }

TEST(MemoryTier, WhatIsNeededLastMakesRoom) {
  MemoryTier tier(30);
  tier.keep(1, 0, bytes(10), 100);
  tier.keep(2, 0, bytes(10), 300);
  tier.keep(3, 0, bytes(10), 200);
  tier.keep(4, 0, bytes(10), 250);
  EXPECT_FALSE(tier.find(2, 0, 400));
  EXPECT_TRUE(tier.find(1, 0, 500));
  tier.keep(5, 0, bytes(10), 600);
  EXPECT_FALSE(tier.find(5, 0, 700)) << "all that is there is needed sooner";
  tier.keep(6, 0, bytes(20), 201);
  EXPECT_FALSE(tier.find(1, 0, 0));
  EXPECT_FALSE(tier.find(4, 0, 0));
  EXPECT_TRUE(tier.find(3, 0, 900));
  EXPECT_EQ(tier.bytes(), 30U);
}

TEST(MemoryTier, AnOlderOneIsNeverGiven) {
  MemoryTier tier(30);
  tier.keep(1, 3, bytes(10), 1);
  EXPECT_FALSE(tier.find(1, 5, 2));
  tier.keep(1, 5, bytes(20), 2);
  ASSERT_TRUE(tier.find(1, 5, 2));
  EXPECT_EQ(tier.bytes(), 20U);
  EXPECT_FALSE(tier.find(1, 3, 2));
  EXPECT_EQ(tier.bytes(), 0U) << "who asks for another stamp will not ask for that one again";
  tier.keep(1, 6, bytes(20), 2);
  tier.forget(1);
  tier.forget(7);
  EXPECT_EQ(tier.bytes(), 0U);
  tier.keep(2, 0, bytes(31), 0);
  EXPECT_FALSE(tier.find(2, 0, 0)) << "larger than all";
  EXPECT_FALSE(MemoryTier(0).find(1, 0, 0));
}

/// Part of the accesses after the first epoch that hit. `rank(at, next)`: what the tier is told.
double hit_rate(const std::vector<int>& order, int samples, int epochs,
                const std::function<std::uint64_t(std::size_t, std::size_t)>& rank) {
  const auto third = static_cast<std::uint64_t>(samples / 3 * 10);
  MemoryTier tier(third);
  std::int64_t hits = 0;
  for (std::size_t at = 0; at < static_cast<std::size_t>(samples * epochs); ++at) {
    const auto next = std::find(order.begin() + static_cast<std::ptrdiff_t>(at) + 1, order.end(), order[at]);
    const std::uint64_t told = rank(at, static_cast<std::size_t>(next - order.begin()));
    if (tier.find(order[at], 0, told)) {
      ++hits;
    } else {
      tier.keep(order[at], 0, bytes(10), told);
    }
    EXPECT_LE(tier.bytes(), third);
  }
  return static_cast<double>(hits) / (samples * (epochs - 1));
}

TEST(MemoryTier, HitsAsOftenAsItHasRoom) {
  // Epochs in another order each, of which a third fits: more than that nothing can hit (Belady's rule is optimal).
  constexpr int kSamples = 300, kEpochs = 10;
  std::mt19937 random(1);
  std::vector<int> order;
  for (int epoch = 0; epoch < kEpochs + 1; ++epoch) {
    std::vector<int> samples(kSamples);
    std::iota(samples.begin(), samples.end(), 0);
    std::ranges::shuffle(samples, random);
    order.insert(order.end(), samples.begin(), samples.end());
  }
  EXPECT_NEAR(hit_rate(order, kSamples, kEpochs, [](std::size_t, std::size_t next) { return next; }), 1.0 / 3, 1e-3);
  const auto least_recently_used = [&](std::size_t at, std::size_t) { return order.size() - at; };
  EXPECT_LT(hit_rate(order, kSamples, kEpochs, least_recently_used), 0.1) << "without knowing the future";
}

TEST(MemoryTier, ThreadsShareIt) {
  MemoryTier tier(1000);
  std::vector<std::jthread> threads;
  for (int thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&tier, thread] {
      std::mt19937 random(static_cast<unsigned>(thread));
      for (int i = 0; i < 5000; ++i) {
        const std::int64_t sample = random() % 200;
        if (!tier.find(sample, 0, random())) tier.keep(sample, 0, bytes(1 + random() % 30), random());
      }
    });
  }
  threads.clear();
  EXPECT_LE(tier.bytes(), 1000U);
}

}  // namespace
}  // namespace plimsoll::cache
