#include "cache/host_pool.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <stdexcept>
#include <thread>
#include <vector>

namespace plimsoll::cache {
namespace {

/// Counts what is made of it and what still lives.
struct Memory {
  std::vector<std::size_t> made;
  std::shared_ptr<int> alive = std::make_shared<int>(0);

  HostPool::MakePiece maker() {
    return [this](std::size_t bytes) {
      made.push_back(bytes);
      ++*alive;
      return std::shared_ptr<std::byte[]>(new std::byte[bytes], [alive = alive](const std::byte* memory) {
        --*alive;
        delete[] memory;
      });
    };
  }
};

TEST(HostPool, BlocksShareAPieceAndGoBackToIt) {
  Memory memory;
  HostPool pool(memory.maker(), 16 << 10, 64 << 10);
  EXPECT_EQ(pool.bytes(), 0U) << "nothing is made before it is asked for";
  auto a = pool.take(8000), b = pool.take(8192);
  ASSERT_TRUE(a && b);
  EXPECT_EQ(b.get() - a.get(), 8192);
  auto c = pool.take(1);
  EXPECT_EQ(memory.made, (std::vector<std::size_t>{16 << 10, 16 << 10}));
  a = nullptr;
  const auto again = pool.take(4097);
  EXPECT_TRUE(again);
  EXPECT_EQ(memory.made.size(), 2U) << "its place was free";
  EXPECT_EQ(pool.bytes(), 32U << 10);
}

TEST(HostPool, HasItsLimit) {
  Memory memory;
  HostPool pool(memory.maker(), 16 << 10, 40 << 10);
  std::vector<std::shared_ptr<std::byte[]>> held;
  while (auto block = pool.take(16 << 10)) held.push_back(std::move(block));
  EXPECT_EQ(held.size(), 2U);
  EXPECT_EQ(pool.take(60 << 10), nullptr);
  held.clear();
  EXPECT_EQ(pool.take(20 << 10), nullptr) << "larger than any piece, and there is no room for one of its own";
  EXPECT_TRUE(pool.take(16 << 10));
  HostPool roomy(memory.maker(), 16 << 10, 1 << 20);
  EXPECT_TRUE(roomy.take(100000));
  EXPECT_EQ(memory.made.back(), 102400U) << "a piece of its own, of whole pages";
  EXPECT_EQ(HostPool(memory.maker(), 16 << 10, 0).take(1), nullptr);
}

TEST(HostPool, WhatCannotBeHadIsNotAskedForAgain) {
  int asked = 0;
  HostPool none(
      [&](std::size_t) {
        ++asked;
        return nullptr;
      },
      4096, 1 << 20);
  EXPECT_EQ(none.take(100), nullptr);
  EXPECT_EQ(none.take(100), nullptr);
  EXPECT_EQ(asked, 1);
  HostPool failing([](std::size_t) -> std::shared_ptr<std::byte[]> { throw std::runtime_error("no"); }, 4096, 1 << 20);
  EXPECT_EQ(failing.take(100), nullptr);
}

TEST(HostPool, BlocksOutliveThePool) {
  Memory memory;
  std::shared_ptr<std::byte[]> block;
  {
    HostPool pool(memory.maker(), 4096, 1 << 20);
    block = pool.take(4096);
    std::memset(block.get(), 7, 4096);
  }
  EXPECT_EQ(*memory.alive, 1);
  EXPECT_EQ(block[4095], std::byte{7});
  block = nullptr;
  EXPECT_EQ(*memory.alive, 0);
}

TEST(HostPool, NoTwoBlocksShareAByteWhateverThreadsDo) {
  Memory memory;
  HostPool pool(memory.maker(), 64 << 10, 1 << 20);
  std::vector<std::jthread> threads;
  for (int number = 0; number < 4; ++number) {
    threads.emplace_back([&pool, number] {
      std::mt19937 random(static_cast<unsigned>(number));
      std::vector<std::pair<std::shared_ptr<std::byte[]>, std::size_t>> held;
      for (int i = 0; i < 2000; ++i) {
        const std::size_t size = 1 + random() % 30000;
        if (auto block = pool.take(size)) {
          std::memset(block.get(), number + 1, size);
          held.emplace_back(std::move(block), size);
        }
        if (held.size() > 5) {
          const auto& [block, bytes] = held.front();
          for (std::size_t at = 0; at < bytes; at += 100) EXPECT_EQ(block[static_cast<std::ptrdiff_t>(at)], std::byte(number + 1));
          held.erase(held.begin());
        }
      }
    });
  }
  threads.clear();
  EXPECT_LE(pool.bytes(), 1U << 20);
}

}  // namespace
}  // namespace plimsoll::cache
