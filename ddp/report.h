#pragma once
// What one rank tells the others in a step, and how it travels: as small whole numbers at the end of the flat fp32
// buffer that the ranks sum anyway. Each rank writes only its own slots and zeros in everybody else's, so that a SUM
// carries every value exactly, whatever the gradients beside them are. All functions are pure; any thread.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace plimsoll::ddp {

/// The report of one rank. It covers the time from the previous reduction to this one. What does not fit its slot
/// saturates at the largest value that does (and at 0 below); nothing ever wraps round.
struct Report {
  std::int64_t budget_bytes = 0;         ///< bytes this rank may use; it may change from step to step
  std::int64_t measured_peak_bytes = 0;  ///< most bytes live at once since the previous report
  std::int64_t predicted_peak_bytes =
      0;  ///< largest peak predicted for the micro-batches of this step; 0: not predicted
  std::int64_t failed_request_bytes = 0;  ///< size of the largest allocation that failed; 0: none failed
  std::int64_t retries = 0;               ///< micro-batches that the guardian replayed in smaller pieces
  std::int64_t allocator_retries = 0;     ///< times the caching allocator had to free its cache to serve a request
  std::int64_t step_ms = 0;               ///< milliseconds of computing, without waiting for data or peers
  std::int64_t load_ms = 0;               ///< milliseconds waited for data
  bool failed = false;             ///< a piece of one sample ran out of memory: this rank's gradients are not whole
  bool non_finite = false;         ///< a loss or gradient is not finite
  bool stop_requested = false;     ///< a signal or the time limit asks for a checkpoint and the end
  bool other_way = false;          ///< the step was not run as the plan says, but faster (memory/planning/ways.h),
  bool other_recompute = false;    ///< and recomputed or offloaded something else
  std::int64_t sample_index = -1;  ///< global index of the failed or non-finite sample; -1: none, or not known
  std::uint32_t plan_hash = 0;     ///< of the plan this step ran under; the low 24 bits travel
  std::uint64_t weight_hash =
      0;                    ///< of the trainable weights before the update, low 48 bits travel; 0 in steps without one
  std::int64_t probed = 0;  ///< samples whose cached features were compared with fresh ones
  std::int64_t drift_sum = 0;  ///< over them: relative L2 distance, millionths, each at most 1
  std::int64_t angle_sum = 0;  ///< likewise: 1 - cosine
  friend bool operator==(const Report&, const Report&) = default;
};

/// Place of each value among a rank's slots. Every slot is a whole number in [0, 2^24), which fp32 holds exactly. A
/// value of 48 bits takes two slots, its high half first. The order is part of the build hash: ranks of different
/// builds never meet.
enum Slot : int {
  kBudgetHigh,
  kBudgetLow,
  kMeasuredPeakHigh,
  kMeasuredPeakLow,
  kPredictedPeakHigh,
  kPredictedPeakLow,
  kFailedRequestHigh,
  kFailedRequestLow,
  kRetries,
  kAllocatorRetries,
  kStepMs,
  kLoadMs,
  kFlags,  ///< bit 0 failed, bit 1 non-finite, bit 2 stop requested; all others zero
  kSampleHigh,
  kSampleLow,  ///< index + 1, so that 0 means none
  kPlanHash,
  kWeightHashHigh,
  kWeightHashLow,
  kProbed,
  kDriftSumHigh,
  kDriftSumLow,
  kAngleSumHigh,
  kAngleSumLow,
  kSlots,  ///< K: slots of one rank
};

/// Floats that the reports of `world` ranks take at the end of the flat buffer.
constexpr std::int64_t slot_count(int world) { return static_cast<std::int64_t>(world) * kSlots; }

/// Writes the report of `rank` into `slots` (slot_count(world) floats): its own K, zeros elsewhere. Throws
/// Error(kUsage) when the size is no multiple of K or `rank` has no place in it.
void pack(const Report& report, int rank, std::span<float> slots);

/// Reads the reports of all ranks out of the summed slots, in rank order. A slot that holds no whole number in [0,
/// 2^24), or an unknown flag, means that a rank wrote into another's slots or runs another build: Error(kPeer) naming
/// rank, slot and value.
std::vector<Report> unpack(std::span<const float> slots, int world);

/// "rank 1: peak 812 MiB of 1.00 GiB (predicted 800 MiB), 2 retries, step 120 ms, load 3 ms", for logs.
std::string to_string(const Report& report, int rank);

}  // namespace plimsoll::ddp
