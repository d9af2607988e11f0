#pragma once
// What one rank's memory looks like from outside: bytes live, their peak, and the budget they may not pass.

#include <cstdint>

namespace plimsoll::memory {

/// Bytes of the budgeted device only. Thread-safe.
class Meter {
 public:
  virtual ~Meter() = default;
  virtual std::int64_t live() const = 0;
  /// Most bytes at once since reset_peak(), of those that the budget bounds.
  virtual std::int64_t peak() const = 0;
  virtual void reset_peak() = 0;
  virtual std::int64_t budget() const = 0;
  /// May lower the budget below what is live: the next allocation then fails.
  virtual void set_budget(std::int64_t bytes) = 0;
  /// Gives cached blocks back to the device; the CPU allocator caches none.
  virtual void release_cached() = 0;
  /// Size of the last request that failed, 0 if none since the last call.
  virtual std::int64_t take_failed_request() = 0;
  /// Times since the last call that cached blocks had to be given back to serve a request.
  virtual std::int64_t take_allocator_retries() = 0;
};

}  // namespace plimsoll::memory
