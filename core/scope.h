#pragma once
// Two facts about the calling thread that allocators read and the model sets, so that neither room includes the other.

#include <cstdint>
#include <string_view>

namespace plimsoll {

/// While one lives, allocations of this thread are a library's own scratch (oneDNN's scratchpads, an attention kernel's
/// blocks): the budgeted allocator serves them from its workspace arena and writes no event. Nothing allocated inside
/// may outlive the scope. Nests.
class LibraryScratch {
 public:
  LibraryScratch() noexcept { ++depth(); }
  ~LibraryScratch() { --depth(); }
  LibraryScratch(const LibraryScratch&) = delete;
  LibraryScratch& operator=(const LibraryScratch&) = delete;
  static bool active() noexcept { return depth() > 0; }

 private:
  static int& depth() noexcept {
    thread_local int value = 0;
    return value;
  }
};

/// Where operators on meta tensors write down how much library scratch their kernel would take, so that a dry run can
/// say how large the workspace arena must be. Per thread.
struct ScratchNote {
  static std::int64_t& largest() noexcept {
    thread_local std::int64_t value = 0;
    return value;
  }
  static void take(std::int64_t bytes) noexcept { largest() = bytes > largest() ? bytes : largest(); }
};

/// Names what this thread allocates ("weights", "adapters", "vision.block", ...) for the breakdown of a peak. `name`
/// must be a string literal or outlive every event recorded under it. Nests; the innermost wins.
class AllocationLabel {
 public:
  explicit AllocationLabel(const char* name) noexcept : previous_(current()) { current() = name; }
  ~AllocationLabel() { current() = previous_; }
  AllocationLabel(const AllocationLabel&) = delete;
  AllocationLabel& operator=(const AllocationLabel&) = delete;
  static const char*& current() noexcept {
    thread_local const char* value = "other";
    return value;
  }

 private:
  const char* previous_;
};

/// "language.block 17": a label that lives as long as the program, made once. Any thread.
const char* numbered_label(const char* name, int number);

/// The label without its number, "language.block": what a person wants summed up.
std::string_view family_of_label(std::string_view label);

}  // namespace plimsoll
