#include "data/lease_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <thread>
#include <vector>

namespace plimsoll::data {
namespace {

/// Counts how many of it there are, and how many there were at most.
struct CountedObject {
  explicit CountedObject(const std::string& from) : path(from) {
    if (path == "unreadable") throw std::runtime_error("cannot be opened");
    ++made;
    const int now = ++alive;
    for (int seen = most; now > seen && !most.compare_exchange_weak(seen, now);) {
    }
  }
  ~CountedObject() { --alive; }
  CountedObject(const CountedObject&) = delete;
  CountedObject& operator=(const CountedObject&) = delete;

  std::string path;
  std::atomic<bool> borrowed = false;
  static inline std::atomic<int> alive = 0, most = 0, made = 0;
};

class LeasePoolTest : public ::testing::Test {
 protected:
  LeasePoolTest() { CountedObject::alive = CountedObject::most = CountedObject::made = 0; }
  static void borrow(LeasePool<CountedObject>& pool, const std::string& path) {
    EXPECT_EQ(pool.with(path, [](CountedObject& object) { return object.path; }), path);
  }
  static int alive() { return CountedObject::alive; }
  static int made() { return CountedObject::made; }
};

TEST_F(LeasePoolTest, LendsAnIdleOneAgain) {
  LeasePool<CountedObject> pool(2);
  for (int i = 0; i < 3; ++i) borrow(pool, "a");
  EXPECT_EQ(made(), 1);
  borrow(pool, "b");
  borrow(pool, "a");
  EXPECT_EQ(made(), 2) << "one of each path";
  EXPECT_EQ(alive(), 2);
}

TEST_F(LeasePoolTest, ClosesTheLongestUnused) {
  LeasePool<CountedObject> pool(2);
  for (const char* path : {"a", "b", "c"}) borrow(pool, path);
  EXPECT_EQ(alive(), 2);
  for (const char* path : {"b", "c", "b"}) borrow(pool, path);
  EXPECT_EQ(made(), 3) << "those two were kept";
  borrow(pool, "a");
  EXPECT_EQ(made(), 4);
  borrow(pool, "b");
  EXPECT_EQ(made(), 4) << "c was used before b";
  borrow(pool, "c");
  EXPECT_EQ(made(), 5);
  EXPECT_EQ(alive(), 2);
}

TEST_F(LeasePoolTest, KeepsNoneWhereNoneMayBeIdle) {
  LeasePool<CountedObject> pool(0);
  borrow(pool, "a");
  borrow(pool, "a");
  EXPECT_EQ(made(), 2);
  EXPECT_EQ(alive(), 0);
}

TEST_F(LeasePoolTest, LendsNoneTwiceAtOnce) {
  LeasePool<CountedObject> pool(4);
  pool.with("a", [&](CountedObject& first) {
    return pool.with("a", [&](CountedObject& second) {
      EXPECT_NE(&first, &second);
      return 0;
    });
  });
  EXPECT_EQ(alive(), 2);
}

TEST_F(LeasePoolTest, ClosesOneWhoseUseFailed) {
  LeasePool<CountedObject> pool(4);
  borrow(pool, "a");
  const auto damaged = [](CountedObject&) -> int { throw std::runtime_error("damaged"); };
  EXPECT_THROW(pool.with("a", damaged), std::runtime_error);
  EXPECT_EQ(alive(), 0);
  borrow(pool, "a");
  EXPECT_EQ(made(), 2) << "a new one";
  EXPECT_THROW(borrow(pool, "unreadable"), std::runtime_error);
  EXPECT_EQ(alive(), 1);
}

TEST_F(LeasePoolTest, ClosesAllWithItself) {
  {
    LeasePool<CountedObject> pool(4);
    for (const char* path : {"a", "b", "c"}) borrow(pool, path);
    EXPECT_EQ(alive(), 3);
  }
  EXPECT_EQ(alive(), 0);
}

// More paths than may be idle, and now and then a use that fails.
TEST_F(LeasePoolTest, HasAtMostOneAThreadAndTheIdleOnes) {
  constexpr int kThreads = 6, kIdle = 3;
  LeasePool<CountedObject> pool(kIdle);
  const auto lend = [&pool](int number) {
    const std::string path = "file " + std::to_string(number % 10);
    pool.with(path, [&](CountedObject& object) {
      EXPECT_EQ(object.path, path);
      EXPECT_FALSE(object.borrowed.exchange(true)) << "two threads have it";
      std::this_thread::yield();
      object.borrowed = false;
      if (number % 50 == 0) throw std::runtime_error("damaged");
      return 0;
    });
  };
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&lend, t] {
      for (int i = 0; i < 1000; ++i) {
        const int number = 7 * i + t;
        if (number % 50 == 0) {
          EXPECT_THROW(lend(number), std::runtime_error);
        } else {
          lend(number);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_LE(CountedObject::most.load(), kThreads + kIdle);
  EXPECT_LE(alive(), kIdle);
}

}  // namespace
}  // namespace plimsoll::data
