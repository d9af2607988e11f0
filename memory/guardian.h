#pragma once
// The guardian runs a rank's share of a step in micro-batches and sees to it that a full memory costs time and nothing
// else.

#include <c10/core/Device.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#include "memory/device_memory.h"

namespace plimsoll::memory {

/// Samples [begin, begin + count) of the share.
struct Piece {
  std::size_t begin = 0;
  std::size_t count = 0;
};

/// What the guardian needs of a trainer. All calls come from the thread that called run().
struct MicroBatchWork {
  /// Forward, backward into staging and commit of one micro-batch. May throw an out-of-memory error at any allocation
  /// before its commit; the commit itself neither allocates nor fails.
  std::function<void(Piece)> attempt;
  /// Discards what a failed attempt left in staging.
  std::function<void()> discard;
  /// Bytes that the piece needs above what is live between micro-batches. 0: unknown, not checked. `room`: bytes that
  /// it may need; where it fits them, somewhat more than its bytes may be said, up to the room.
  std::function<std::int64_t(Piece, std::int64_t room)> predicted;
  /// Called after a failure, when its piece is discarded: whether the piece needs less from here on, because it was not
  /// run in the leanest way that the step has; then the most samples of that way, else 0. Null: there is one way only.
  std::function<std::size_t(Piece)> leaner = nullptr;
  /// Called after a single sample failed in the leanest way: frees device memory that the run can do without, and
  /// returns its bytes; 0: there is none. Null: there never is.
  std::function<std::int64_t()> give_up = nullptr;
  /// The most samples of a piece that begins there, beside the limit; null: any number.
  std::function<std::size_t(std::size_t begin)> most = nullptr;
};

struct GuardianReport {
  int micro_batches = 0;            ///< committed
  int retries = 0;                  ///< attempts that failed and were replayed
  int splits = 0;                   ///< pieces made smaller before they were tried
  std::int64_t predicted_peak = 0;  ///< largest predicted peak of an attempt, live bytes included
  std::int64_t failed_request = 0;  ///< size of the last request that failed
  bool failed = false;              ///< a single sample did not fit
  std::size_t failed_sample = 0;    ///< its place in the share
  std::int64_t failed_peak = 0;     ///< its predicted peak alone, live bytes included
  std::string error;                ///< what the allocator said
};

/// True for every error that means out of memory. Call inside a catch block only.
bool is_out_of_memory();

/// True for every error that means the device itself failed: what it held is lost, and every later call to it fails
/// too. Call inside a catch block only.
bool is_device_failure();

/// Frees what a failed backward left behind: its tasks stay in the autograd engine's queue of the calling thread, with
/// the memory they hold, until the next backward there. So one runs, over one element; and one on `device`, whose tasks
/// have a thread of their own, where that is not the CPU. The first call for a device allocates a few bytes there that
/// are kept for good, which making a Guardian sees to; later ones allocate nothing, so no full device fails them.
void drain(c10::Device device = c10::kCPU);

/// Longest wait for what a device's own thread drops after a drain.
inline constexpr std::chrono::milliseconds kLongestDrain{1000};

/// After an out-of-memory failure, and after the catch block has been left: drain, `discard`, then wait until no more
/// than `live_before` bytes are live, those from before the attempt, or until `longest` is over; then the device's
/// cached blocks are given back.
void clean_up(DeviceMemory& memory, std::int64_t live_before, const std::function<void()>& discard,
              std::chrono::milliseconds longest = kLongestDrain);

class Guardian {
 public:
  /// `meter`, the device's, outlives the guardian. `after_drain(live_before, live_after)`, if set, is told the bytes
  /// live before a failed attempt and after its drain: tests hold that they are equal.
  explicit Guardian(DeviceMemory& meter);
  std::function<void(std::int64_t, std::int64_t)> after_drain;

  /// Commits samples [0, samples) in order, at most `micro_batch` at once and no more than `budget`-bytes-fitting ones
  /// together. After an out-of-memory failure: drain, discard, release cached blocks, then the same samples in halves,
  /// or in the leaner way. A single sample that fails in the leanest way is tried again beside nothing that can be
  /// given up; one that fails then sets `failed` and ends the run. Other errors pass through.
  GuardianReport run(std::size_t samples, std::size_t micro_batch, const MicroBatchWork& work);

 private:
  Piece next_piece(std::size_t begin, std::size_t samples, std::size_t limit, const MicroBatchWork& work,
                   GuardianReport& report);
  bool gives_up(const MicroBatchWork& work);
  bool try_piece(Piece piece, const MicroBatchWork& work, GuardianReport& report);

  DeviceMemory& meter_;
};

}  // namespace plimsoll::memory
