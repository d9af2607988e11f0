#pragma once
// What a kernel takes as library scratch (core/scope.h), on the CPU or without data: bytes, and minus the bytes when
// they are given back, in order.

#include <cstdint>
#include <functional>
#include <vector>

namespace emulator {

/// Of `body`, which allocates on this thread. Takes the place of both devices' allocators, for good.
std::vector<std::int64_t> scratch_of(const std::function<void()>& body);

/// The most that is taken at once, each block rounded up to a multiple of `unit`.
std::int64_t most_at_once(const std::vector<std::int64_t>& events, std::int64_t unit = 1);

/// While one lives, what is allocated is a stand-in's and not the kernel's.
class NotRecorded {
 public:
  NotRecorded();
  ~NotRecorded();
  NotRecorded(const NotRecorded&) = delete;
  NotRecorded& operator=(const NotRecorded&) = delete;
};

}  // namespace emulator
