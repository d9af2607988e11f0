#include "cache/live_samples.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <set>

namespace plimsoll::cache {
namespace {

/// A permutation of the samples in every epoch.
class Stream {
 public:
  Stream(std::int64_t samples, std::uint64_t seed) : samples_(samples), random_(seed) {}
  std::int64_t operator()(std::uint64_t position) {
    while (order_.size() <= position) {
      std::vector<std::int64_t> epoch(static_cast<std::size_t>(samples_));
      std::iota(epoch.begin(), epoch.end(), 0);
      std::ranges::shuffle(epoch, random_);
      order_.insert(order_.end(), epoch.begin(), epoch.end());
    }
    return order_[position];
  }

 private:
  std::int64_t samples_;
  std::mt19937_64 random_;
  std::vector<std::int64_t> order_;
};

TEST(LiveSamples, AStepHasFloorOrCeilingOfItsFraction) {
  for (const std::int64_t fraction : {0L, 1L, 100'000L, 250'000L, 333'333L, 500'000L, 999'999L, 1'000'000L}) {
    for (const std::int64_t batch : {1, 3, 16, 30}) {
      const double part = static_cast<double>(fraction) * static_cast<double>(batch) / 1e6;
      std::int64_t sum = 0;
      for (std::int64_t step = 1; step <= 1000; ++step) {
        const std::int64_t count = live_count(step, fraction, batch);
        EXPECT_GE(count, static_cast<std::int64_t>(part));
        EXPECT_LE(count, static_cast<std::int64_t>(std::ceil(part)));
        sum += count;
      }
      EXPECT_EQ(sum, 1000 * fraction * batch / kWholeFraction);
    }
  }
}

TEST(LiveSamples, EverySampleIsLiveEquallyOften) {
  for (const auto& [fraction, epochs] : {std::pair(250'000L, 40), std::pair(100'000L, 100), std::pair(500'000L, 20)}) {
    const std::int64_t samples = 301, batch = 16;
    Stream stream(samples, 5);
    LiveSamples chosen([&](std::uint64_t position) { return stream(position); }, samples, batch, fraction);
    std::vector<std::int64_t> live(samples, 0);
    const auto draws = static_cast<std::uint64_t>(samples * epochs);
    for (std::uint64_t position = 0; position < draws; ++position)
      if (chosen.at(position)) ++live[static_cast<std::size_t>(stream(position))];
    const auto [least, most] = std::ranges::minmax_element(live);
    EXPECT_GE(*least, epochs * fraction / kWholeFraction - 1) << fraction;
    EXPECT_LE(*most, epochs * fraction / kWholeFraction + 1) << fraction;
  }
}

TEST(LiveSamples, AreTheSameWhereverOneBegins) {
  const auto ask = [](std::int64_t first) {
    Stream stream(50, 1);
    LiveSamples chosen([stream](std::uint64_t position) mutable { return stream(position); }, 50, 8, 300'000);
    std::vector<std::vector<std::uint64_t>> steps;
    for (std::int64_t step = first; step <= 40; ++step) steps.push_back(chosen.of_step(step));
    for (std::int64_t step = first; step <= 40; ++step)
      EXPECT_EQ(chosen.of_step(step), steps[static_cast<std::size_t>(step - first)]) << "asked again";
    return steps.back();
  };
  EXPECT_EQ(ask(1), ask(40));
}

TEST(LiveSamples, AreDealtEvenlyAndNoDrawIsLost) {
  Stream stream(97, 3);
  for (const std::int64_t batch : {7, 16, 30}) {
    LiveSamples chosen([&](std::uint64_t position) { return stream(position); }, 97, batch, 300'000);
    for (const int world : {1, 2, 3, 4, 7}) {
      std::vector<std::int64_t> more(static_cast<std::size_t>(world), 0);
      for (std::int64_t step = 1; step <= 60; ++step) {
        const auto live = chosen.of_step(step);
        std::set<std::uint64_t> all;
        for (int rank = 0; rank < world; ++rank) {
          const auto share = dealt_share(step, batch, live, rank, world);
          EXPECT_EQ(std::ssize(share), batch / world + (rank < batch % world ? 1 : 0));
          EXPECT_TRUE(std::ranges::is_sorted(share));
          all.insert(share.begin(), share.end());
          const auto mine = std::ranges::count_if(share, [&](auto position) { return chosen.at(position); });
          EXPECT_GE(mine, std::ssize(live) / world);
          EXPECT_LE(mine, (std::ssize(live) + world - 1) / world);
          more[static_cast<std::size_t>(rank)] += mine;
        }
        EXPECT_EQ(std::ssize(all), batch);
        EXPECT_EQ(*all.begin(), static_cast<std::uint64_t>((step - 1) * batch));
        EXPECT_EQ(*all.rbegin(), static_cast<std::uint64_t>(step * batch - 1));
      }
      if (batch % world == 0) {
        const auto [least, most] = std::ranges::minmax_element(more);
        EXPECT_LE(*most - *least, 60 / 4) << "not always the same rank has more: batch " << batch << ", " << world;
      }
    }
  }
}

TEST(LiveSamples, OfAllOrNoneEveryRankHasItsShare) {
  const std::vector<std::uint64_t> all = {5, 6, 7, 8, 9};
  EXPECT_EQ(dealt_share(2, 5, all, 0, 2).size(), 3U);
  EXPECT_EQ(dealt_share(2, 5, all, 1, 2).size(), 2U);
  EXPECT_EQ(dealt_share(1, 5, {}, 1, 2).size(), 2U);
}

}  // namespace
}  // namespace plimsoll::cache
