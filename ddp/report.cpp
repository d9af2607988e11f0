#include "ddp/report.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "core/bytes.h"
#include "core/error.h"

namespace plimsoll::ddp {
namespace {

constexpr std::int64_t kHalf = std::int64_t{1} << 24;
constexpr std::int64_t kWhole = std::int64_t{1} << 48;
constexpr std::int64_t kFailedBit = 1, kNonFiniteBit = 2, kStopBit = 4, kOtherWayBit = 8, kOtherRecomputeBit = 16;

constexpr std::array<const char*, kSlots> kSlotNames{"budget (high)",
                                                     "budget (low)",
                                                     "measured peak (high)",
                                                     "measured peak (low)",
                                                     "predicted peak (high)",
                                                     "predicted peak (low)",
                                                     "failed request (high)",
                                                     "failed request (low)",
                                                     "retries",
                                                     "allocator retries",
                                                     "step ms",
                                                     "load ms",
                                                     "flags",
                                                     "sample (high)",
                                                     "sample (low)",
                                                     "plan hash",
                                                     "weight hash (high)",
                                                     "weight hash (low)",
                                                     "probed",
                                                     "drift (high)",
                                                     "drift (low)",
                                                     "angle (high)",
                                                     "angle (low)"};

/// One rank's slots, written by name. Values are clamped to what the slot holds.
class Writer {
 public:
  explicit Writer(std::span<float> own) : own_(own) {}
  void put(Slot slot, std::int64_t value) {
    own_[slot] = static_cast<float>(std::clamp<std::int64_t>(value, 0, kHalf - 1));
  }
  void put_wide(Slot high, std::int64_t value) {
    const std::int64_t held = std::clamp<std::int64_t>(value, 0, kWhole - 1);
    own_[high] = static_cast<float>(held / kHalf);
    own_[high + 1] = static_cast<float>(held % kHalf);
  }

 private:
  std::span<float> own_;
};

/// One rank's slots, read and checked.
class Reader {
 public:
  Reader(std::span<const float> own, int rank) : own_(own), rank_(rank) {}
  std::int64_t get(int slot) const {
    const float value = own_[slot];
    // Written so that NaN fails too.
    if (!(value >= 0.0F && value < static_cast<float>(kHalf) && value == std::floor(value))) {
      fail(ExitCode::kPeer,
           "the report of rank {} is damaged: slot {} ({}) holds {}, not a whole number below 2^24; a rank wrote into "
           "another's slots or "
           "runs another build: start all ranks from the same program",
           rank_, slot, kSlotNames[slot], value);
    }
    return static_cast<std::int64_t>(value);
  }
  std::int64_t get_wide(Slot high) const { return get(high) * kHalf + get(high + 1); }
  std::int64_t flags() const {
    const std::int64_t bits = get(kFlags);
    if (bits > (kFailedBit | kNonFiniteBit | kStopBit | kOtherWayBit | kOtherRecomputeBit)) {
      fail(ExitCode::kPeer, "the report of rank {} has unknown flags {:#x}: start all ranks from the same program",
           rank_, bits);
    }
    return bits;
  }

 private:
  std::span<const float> own_;
  int rank_;
};

Report read(const Reader& in) {
  Report out;
  out.budget_bytes = in.get_wide(kBudgetHigh);
  out.measured_peak_bytes = in.get_wide(kMeasuredPeakHigh);
  out.predicted_peak_bytes = in.get_wide(kPredictedPeakHigh);
  out.failed_request_bytes = in.get_wide(kFailedRequestHigh);
  out.retries = in.get(kRetries);
  out.allocator_retries = in.get(kAllocatorRetries);
  out.step_ms = in.get(kStepMs);
  out.load_ms = in.get(kLoadMs);
  const std::int64_t flags = in.flags();
  out.failed = (flags & kFailedBit) != 0;
  out.non_finite = (flags & kNonFiniteBit) != 0;
  out.stop_requested = (flags & kStopBit) != 0;
  out.other_way = (flags & kOtherWayBit) != 0;
  out.other_recompute = (flags & kOtherRecomputeBit) != 0;
  out.sample_index = in.get_wide(kSampleHigh) - 1;
  out.plan_hash = static_cast<std::uint32_t>(in.get(kPlanHash));
  out.weight_hash = static_cast<std::uint64_t>(in.get_wide(kWeightHashHigh));
  out.probed = in.get(kProbed);
  out.drift_sum = in.get_wide(kDriftSumHigh);
  out.angle_sum = in.get_wide(kAngleSumHigh);
  return out;
}

}  // namespace

void pack(const Report& report, int rank, std::span<float> slots) {
  if (rank < 0 || slots.size() % kSlots != 0 || slots.size() < static_cast<std::size_t>(slot_count(rank + 1))) {
    fail(ExitCode::kUsage, "a report of rank {} has no place in {} slots ({} per rank)", rank, slots.size(),
         static_cast<int>(kSlots));
  }
  std::fill(slots.begin(), slots.end(), 0.0F);
  Writer out(slots.subspan(slot_count(rank), kSlots));
  out.put_wide(kBudgetHigh, report.budget_bytes);
  out.put_wide(kMeasuredPeakHigh, report.measured_peak_bytes);
  out.put_wide(kPredictedPeakHigh, report.predicted_peak_bytes);
  out.put_wide(kFailedRequestHigh, report.failed_request_bytes);
  out.put(kRetries, report.retries);
  out.put(kAllocatorRetries, report.allocator_retries);
  out.put(kStepMs, report.step_ms);
  out.put(kLoadMs, report.load_ms);
  out.put(kFlags, (report.failed ? kFailedBit : 0) | (report.non_finite ? kNonFiniteBit : 0) |
                      (report.stop_requested ? kStopBit : 0) | (report.other_way ? kOtherWayBit : 0) |
                      (report.other_recompute ? kOtherRecomputeBit : 0));
  out.put_wide(kSampleHigh, std::clamp<std::int64_t>(report.sample_index, -1, kWhole - 2) + 1);
  // Hashes are cut, not clamped: any bits of them serve.
  out.put(kPlanHash, report.plan_hash % kHalf);
  out.put_wide(kWeightHashHigh, static_cast<std::int64_t>(report.weight_hash % kWhole));
  out.put(kProbed, report.probed);
  out.put_wide(kDriftSumHigh, report.drift_sum);
  out.put_wide(kAngleSumHigh, report.angle_sum);
}

std::vector<Report> unpack(std::span<const float> slots, int world) {
  if (world < 1 || slots.size() != static_cast<std::size_t>(slot_count(world))) {
    fail(ExitCode::kUsage, "{} slots are not the reports of {} ranks ({} per rank)", slots.size(), world,
         static_cast<int>(kSlots));
  }
  std::vector<Report> reports;
  for (int rank = 0; rank < world; ++rank)
    reports.push_back(read(Reader(slots.subspan(slot_count(rank), kSlots), rank)));
  return reports;
}

std::string to_string(const Report& report, int rank) {
  return fmt::format(
      "rank {}: peak {} of {} (predicted {}), retries {}, allocator retries {}, step {} ms, load {} ms{}{}{}", rank,
      format_bytes(report.measured_peak_bytes), format_bytes(report.budget_bytes),
      format_bytes(report.predicted_peak_bytes), report.retries, report.allocator_retries, report.step_ms,
      report.load_ms, report.failed ? ", failed" : "", report.non_finite ? ", not finite" : "",
      report.stop_requested ? ", asked to stop" : "");
}

}  // namespace plimsoll::ddp
