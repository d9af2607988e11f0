#include "ddp/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/error.h"
#include "tests/error_of.h"

namespace plimsoll::ddp {
namespace {

using testing::HasSubstr;

constexpr std::int64_t kMost24 = (std::int64_t{1} << 24) - 1;
constexpr std::int64_t kMost48 = (std::int64_t{1} << 48) - 1;

Report example() {
  return {.budget_bytes = 314572800,
          .measured_peak_bytes = 251658241,
          .predicted_peak_bytes = 251658240,
          .failed_request_bytes = 16777216,
          .retries = 3,
          .allocator_retries = 1,
          .step_ms = 812,
          .load_ms = 7,
          .failed = true,
          .non_finite = true,
          .stop_requested = true,
          .sample_index = 123456789,
          .plan_hash = 0xABCDEF,
          .weight_hash = 0x123456789ABC};
}

/// What rank 0 of a world of one reads back.
Report round_trip(const Report& report) {
  std::vector<float> slots(kSlots);
  pack(report, 0, slots);
  return unpack(slots, 1).front();
}

TEST(Report, RoundTripsEveryField) {
  EXPECT_EQ(round_trip(example()), example());
  EXPECT_EQ(round_trip({}), Report{});
}

TEST(Report, EachFlagIsItsOwn) {
  for (int bit = 0; bit < 5; ++bit) {
    const Report report{.failed = bit == 0,
                        .non_finite = bit == 1,
                        .stop_requested = bit == 2,
                        .other_way = bit == 3,
                        .other_recompute = bit == 4};
    EXPECT_EQ(round_trip(report), report);
  }
}

TEST(Report, TheLargestValuesFit) {
  Report report = example();
  report.budget_bytes = report.measured_peak_bytes = report.predicted_peak_bytes = report.failed_request_bytes =
      kMost48;
  report.retries = report.allocator_retries = report.step_ms = report.load_ms = kMost24;
  report.sample_index = kMost48 - 1;
  report.plan_hash = kMost24;
  report.weight_hash = static_cast<std::uint64_t>(kMost48);
  EXPECT_EQ(round_trip(report), report);
}

TEST(Report, SaturatesAndNeverWraps) {
  const std::int64_t huge = std::numeric_limits<std::int64_t>::max();
  const Report read = round_trip({.budget_bytes = huge,
                                  .measured_peak_bytes = kMost48 + 1,
                                  .predicted_peak_bytes = -1,
                                  .failed_request_bytes = std::numeric_limits<std::int64_t>::min(),
                                  .retries = kMost24 + 1,
                                  .allocator_retries = -7,
                                  .step_ms = huge,
                                  .load_ms = -1,
                                  .sample_index = huge,
                                  .plan_hash = 0xFFABCDEF,
                                  .weight_hash = 0xFFFF123456789ABC});
  EXPECT_EQ(read.budget_bytes, kMost48);
  EXPECT_EQ(read.measured_peak_bytes, kMost48);
  EXPECT_EQ(read.predicted_peak_bytes, 0);
  EXPECT_EQ(read.failed_request_bytes, 0);
  EXPECT_EQ(read.retries, kMost24);
  EXPECT_EQ(read.allocator_retries, 0);
  EXPECT_EQ(read.step_ms, kMost24);
  EXPECT_EQ(read.load_ms, 0);
  EXPECT_EQ(read.sample_index, kMost48 - 1);
  EXPECT_EQ(read.plan_hash, 0xABCDEFU) << "hashes are cut";
  EXPECT_EQ(read.weight_hash, 0x123456789ABCU);
  EXPECT_EQ(round_trip({.sample_index = -5}).sample_index, -1);
}

TEST(Report, EverySlotIsAWholeNumberBelow2To24) {
  std::vector<float> slots(kSlots);
  pack(example(), 0, slots);
  for (float slot : slots) {
    EXPECT_EQ(slot, std::floor(slot));
    EXPECT_GE(slot, 0.0F);
    EXPECT_LT(slot, 16777216.0F);
  }
}

TEST(Report, WritesItsOwnSlotsAndZerosElsewhere) {
  const int world = 4;
  std::vector<float> slots(static_cast<std::size_t>(slot_count(world)), 99.0F);
  pack(example(), 2, slots);
  for (std::size_t i = 0; i < slots.size(); ++i) {
    if (i / kSlots != 2) {
      EXPECT_EQ(slots[i], 0.0F) << i;
    }
  }
  EXPECT_EQ(unpack(slots, world)[2], example());
  EXPECT_EQ(unpack(slots, world)[1], Report{});
}

TEST(Report, ASumOfAllRanksCarriesAll) {
  const int world = 7;
  std::vector<float> sum(static_cast<std::size_t>(slot_count(world)));
  for (int rank = 0; rank < world; ++rank) {
    std::vector<float> slots(sum.size());
    Report report = example();
    report.retries = rank;
    pack(report, rank, slots);
    std::transform(sum.begin(), sum.end(), slots.begin(), sum.begin(), std::plus<>());
  }
  for (int rank = 0; rank < world; ++rank) EXPECT_EQ(unpack(sum, world)[static_cast<std::size_t>(rank)].retries, rank);
}

TEST(Report, ADamagedSlotIsNamed) {
  for (float damage : {0.5F, -1.0F, 16777216.0F, std::nanf(""), std::numeric_limits<float>::infinity()}) {
    std::vector<float> slots(static_cast<std::size_t>(slot_count(2)));
    slots[kSlots + kRetries] = damage;
    const std::string text = error_of(ExitCode::kPeer, [&] { unpack(slots, 2); });
    EXPECT_THAT(text, HasSubstr("rank 1")) << damage;
    EXPECT_THAT(text, HasSubstr("retries")) << damage;
  }
}

TEST(Report, AnUnknownFlagIsRefused) {
  std::vector<float> slots(kSlots);
  slots[kFlags] = 32.0F;
  EXPECT_THAT(error_of(ExitCode::kPeer, [&] { unpack(slots, 1); }), HasSubstr("0x20"));
}

TEST(Report, WrongSizesAreRefused) {
  std::vector<float> slots(kSlots);
  EXPECT_THROW(pack({}, 1, slots), Error);
  EXPECT_THROW(pack({}, -1, slots), Error);
  EXPECT_THROW(pack({}, 0, std::span(slots).first(kSlots - 1)), Error);
  EXPECT_THROW(unpack(slots, 2), Error);
  EXPECT_THROW(unpack(slots, 0), Error);
}

TEST(Report, ReadsLikeALine) {
  EXPECT_EQ(to_string(example(), 1),
            "rank 1: peak 240.0 MiB of 300.0 MiB (predicted 240.0 MiB), retries 3, allocator retries 1, step 812 ms, "
            "load 7 ms, failed, not "
            "finite, asked to stop");
}

}  // namespace
}  // namespace plimsoll::ddp
