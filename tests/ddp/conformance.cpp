#include "tests/ddp/conformance.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "core/error.h"
#include "ddp/handshake.h"
#include "ddp/report.h"
#include "tests/error_of.h"

namespace plimsoll::ddp {
namespace {

int rank() { return tested().rank(); }
int world() { return tested().world(); }

/// A value that differs from rank to rank and element to element, with bits to lose in a sum.
float value_of(int of_rank, std::size_t i) {
  return std::sin(static_cast<float>(i % 9973) + 0.37F * static_cast<float>(of_rank));
}

std::vector<float> own_values(std::size_t n) {
  std::vector<float> values(n);
  for (std::size_t i = 0; i < n; ++i) values[i] = value_of(rank(), i);
  return values;
}

/// Fails on every rank unless all hold the same bits.
void expect_equal_everywhere(std::span<const float> values) {
  const auto own = std::as_bytes(values);
  const std::vector<std::byte> all = tested().all_gather(own);
  for (int peer = 0; peer < world(); ++peer) {
    EXPECT_EQ(std::memcmp(all.data() + static_cast<std::size_t>(peer) * own.size(), own.data(), own.size()), 0)
        << "rank " << peer;
  }
}

class Conformance : public testing::Test {
 protected:
  // A rank whose expectation failed still meets the others here, so that one failure does not become a timeout.
  void TearDown() override { tested().barrier(); }
};

TEST_F(Conformance, KnowsItsPlace) {
  EXPECT_GE(rank(), 0);
  EXPECT_LT(rank(), world());
  EXPECT_GE(tested().local_rank(), 0);
  EXPECT_LE(tested().local_rank(), rank());
}

TEST_F(Conformance, SumsAreRightAndBitEqual) {
  for (std::size_t n : {std::size_t{1}, std::size_t{7}, std::size_t{1000}, std::size_t{65537}, std::size_t{300001}}) {
    std::vector<float> values = own_values(n);
    tested().all_reduce_sum(values);
    for (std::size_t i = 0; i < n; i += 997) {
      double expected = 0.0;
      for (int peer = 0; peer < world(); ++peer) expected += value_of(peer, i);
      EXPECT_NEAR(values[i], expected, 1e-6 * world());
    }
    expect_equal_everywhere(values);
  }
}

TEST_F(Conformance, SumsRepeatBitForBit) {
  std::vector<float> first = own_values(100003);
  std::vector<float> second = first;
  tested().all_reduce_sum(first);
  tested().all_reduce_sum(second);
  EXPECT_EQ(std::memcmp(first.data(), second.data(), first.size() * sizeof(float)), 0);
}

TEST_F(Conformance, NothingToSum) {
  std::vector<float> nothing;
  tested().all_reduce_sum(nothing);
  tested().broadcast({}, 0);
  EXPECT_TRUE(tested().all_gather({}).empty());
}

TEST_F(Conformance, SlotsStayExactBesideNaNAndInfinity) {
  for (float poison : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    const std::size_t gradients = 50000;
    std::vector<float> flat(gradients + static_cast<std::size_t>(slot_count(world())), 0.5F);
    if (rank() == world() - 1) std::fill_n(flat.begin(), gradients, poison);
    Report mine;
    mine.budget_bytes = (std::int64_t{1} << 48) - 1 - rank();
    mine.measured_peak_bytes = 123456789012 + rank();
    mine.retries = 0xFFFFFF - rank();
    mine.sample_index = rank() == 0 ? -1 : 40000000000 + rank();
    mine.plan_hash = 0xABCDEF;
    mine.weight_hash = 0xFEDCBA987654;
    pack(mine, rank(), std::span(flat).subspan(gradients));
    tested().all_reduce_sum(flat);
    expect_equal_everywhere(flat);
    const std::vector<Report> reports = unpack(std::span(flat).subspan(gradients), world());
    for (int peer = 0; peer < world(); ++peer) {
      const Report& report = reports[static_cast<std::size_t>(peer)];
      EXPECT_EQ(report.budget_bytes, (std::int64_t{1} << 48) - 1 - peer);
      EXPECT_EQ(report.measured_peak_bytes, 123456789012 + peer);
      EXPECT_EQ(report.retries, 0xFFFFFF - peer);
      EXPECT_EQ(report.sample_index, peer == 0 ? -1 : 40000000000 + peer);
      EXPECT_EQ(report.weight_hash, 0xFEDCBA987654U);
    }
    EXPECT_EQ(reports[static_cast<std::size_t>(rank())], mine);
  }
}

TEST_F(Conformance, BroadcastFromEveryRoot) {
  for (int root = 0; root < world(); ++root) {
    for (std::size_t n : {std::size_t{1}, std::size_t{100}, std::size_t{200003}}) {
      std::vector<std::byte> bytes(n, static_cast<std::byte>(rank() + 1));
      tested().broadcast(bytes, root);
      EXPECT_EQ(bytes, std::vector<std::byte>(n, static_cast<std::byte>(root + 1)));
    }
  }
}

TEST_F(Conformance, BroadcastFromNobodyIsRefused) {
  std::byte byte{};
  EXPECT_THROW(tested().broadcast(std::span(&byte, 1), world()), Error);
  EXPECT_THROW(tested().broadcast(std::span(&byte, 1), -1), Error);
}

TEST_F(Conformance, GathersInRankOrder) {
  for (std::size_t n : {std::size_t{1}, std::size_t{13}, std::size_t{70001}}) {
    std::vector<std::byte> own(n);
    for (std::size_t i = 0; i < n; ++i) own[i] = static_cast<std::byte>(i * 7 + static_cast<std::size_t>(rank()));
    const std::vector<std::byte> all = tested().all_gather(own);
    ASSERT_EQ(all.size(), n * static_cast<std::size_t>(world()));
    for (std::size_t i = 0; i < all.size(); ++i) ASSERT_EQ(all[i], static_cast<std::byte>((i % n) * 7 + i / n)) << i;
  }
}

TEST_F(Conformance, ManySmallCollectivesInARow) {
  for (int step = 0; step < 200; ++step) {
    tested().enter(step, "reduce");
    std::vector<float> one{static_cast<float>(rank() + step)};
    tested().all_reduce_sum(one);
    ASSERT_EQ(one[0], static_cast<float>(world() * step + world() * (world() - 1) / 2));
    if (step % 10 == 0) tested().barrier();
  }
}

TEST_F(Conformance, TheCallersPhaseTextNeedNotBeShort) {
  tested().enter(1, "a phase whose name is far longer than its place in the record");
  tested().enter(2, "");
}

TEST_F(Conformance, SharesNumbersOfUnequalCount) {
  std::vector<std::int64_t> own(static_cast<std::size_t>(rank()), 100 + rank());
  const auto all = share_numbers(tested(), own);
  ASSERT_EQ(all.size(), static_cast<std::size_t>(world()));
  for (int peer = 0; peer < world(); ++peer) {
    EXPECT_EQ(all[static_cast<std::size_t>(peer)],
              std::vector<std::int64_t>(static_cast<std::size_t>(peer), 100 + peer));
  }
}

TEST_F(Conformance, SharesText) {
  const auto all = share_text(tested(), std::string(static_cast<std::size_t>(rank()) * 3, 'x'));
  for (int peer = 0; peer < world(); ++peer)
    EXPECT_EQ(all[static_cast<std::size_t>(peer)].size(), static_cast<std::size_t>(peer) * 3);
}

TEST_F(Conformance, EqualItemsPass) {
  const std::vector<HandshakeItem> items{{"build", 1, "v1"}, {"dataset", 0xFFFFFFFFFFFFFFFF, ""}};
  EXPECT_NO_THROW(compare_items(tested(), items));
}

TEST_F(Conformance, ADifferenceIsTheSameErrorOnEveryRank) {
  const bool odd = rank() == world() - 1 && world() > 1;
  const std::vector<HandshakeItem> items{{"build", 1, "v1"}, {"dataset", odd ? 0xBADU : 0x600DU, odd ? "/b" : "/a"}};
  const std::string text = error_of(ExitCode::kUsage, [&] { compare_items(tested(), items); });
  if (world() == 1) {
    EXPECT_EQ(text, "no error");
  } else {
    EXPECT_NE(text.find("rank " + std::to_string(world() - 1)), std::string::npos) << text;
    EXPECT_NE(text.find("dataset"), std::string::npos) << text;
    EXPECT_NE(text.find("0000000000000bad (/b)"), std::string::npos) << text;
    EXPECT_NE(text.find("000000000000600d (/a)"), std::string::npos) << text;
  }
  const auto texts = share_text(tested(), text);
  for (const std::string& other : texts) EXPECT_EQ(other, text);
}

}  // namespace
}  // namespace plimsoll::ddp
