// The comparison itself; how it travels is in the conformance suite.
#include "ddp/handshake.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/error.h"
#include "tests/error_of.h"

namespace plimsoll::ddp {
namespace {

using testing::AllOf;
using testing::HasSubstr;

std::string refused(const std::vector<std::vector<HandshakeItem>>& ranks) {
  return error_of(ExitCode::kUsage, [&] { check_items(ranks); });
}

const std::vector<HandshakeItem> kItems{{"build", 1, "v1"}, {"configuration", 2, ""}, {"dataset", 3, "/data/a"}};

TEST(Handshake, EqualItemsPass) {
  EXPECT_EQ(refused({}), "no error");
  EXPECT_EQ(refused({kItems}), "no error");
  EXPECT_EQ(refused({kItems, kItems, kItems}), "no error");
}

TEST(Handshake, OnlyHashesAreCompared) {
  auto other = kItems;
  other[2].shown = "/data/the-same-under-another-name";
  EXPECT_EQ(refused({kItems, other}), "no error");
}

TEST(Handshake, ADifferenceNamesRankItemAndBothValues) {
  auto other = kItems;
  other[2] = {"dataset", 4, "/data/b"};
  EXPECT_THAT(refused({kItems, kItems, other}),
              AllOf(HasSubstr("rank 2"), HasSubstr("dataset"), HasSubstr("0000000000000004 (/data/b)"),
                    HasSubstr("0000000000000003 (/data/a)")));
}

TEST(Handshake, TheFirstDifferenceIsNamed) {
  auto first = kItems, second = kItems;
  first[2].hash = 99;
  second[0].hash = 98;
  EXPECT_THAT(refused({kItems, first, second}), AllOf(HasSubstr("rank 1"), HasSubstr("dataset")));
}

TEST(Handshake, MissingAndRenamedItemsAreNamed) {
  auto fewer = kItems, more = kItems, renamed = kItems;
  fewer.pop_back();
  more.push_back({"sampler", 5, ""});
  renamed[1].name = "setup";
  EXPECT_THAT(refused({kItems, fewer}), AllOf(HasSubstr("rank 1"), HasSubstr("\"dataset\"")));
  EXPECT_THAT(refused({kItems, more}), HasSubstr("\"sampler\""));
  EXPECT_THAT(refused({kItems, renamed}), HasSubstr("\"configuration\""));
}

/// A peer of another build: its bytes do not read as items.
class OddPeer final : public Communicator {
 public:
  explicit OddPeer(std::vector<std::byte> bytes) : bytes_(std::move(bytes)) {}
  int rank() const override { return 0; }
  int world() const override { return 1; }
  int local_rank() const override { return 0; }
  void all_reduce_sum(std::span<float>) override {}
  void broadcast(std::span<std::byte>, int) override {}
  std::vector<std::byte> all_gather(std::span<const std::byte> own) override {
    if (calls_++ > 0) return bytes_;
    const std::uint64_t size = bytes_.size();
    EXPECT_EQ(own.size(), sizeof size);
    const auto raw = std::as_bytes(std::span(&size, 1));
    return {raw.begin(), raw.end()};
  }
  void barrier() override {}
  void enter(std::int64_t, const char*) override {}
  [[noreturn]] void abort(int) override { throw Error(ExitCode::kPeer, "aborted"); }
  std::string name() const override { return "odd"; }

 private:
  std::vector<std::byte> bytes_;
  int calls_ = 0;
};

TEST(Handshake, AMessageThatIsCutShortIsRefused) {
  for (std::size_t size : {std::size_t{1}, std::size_t{8}, std::size_t{12}}) {
    OddPeer peer(std::vector<std::byte>(size, std::byte{0xFF}));
    EXPECT_THROW(compare_items(peer, {}), Error) << size;
  }
}

}  // namespace
}  // namespace plimsoll::ddp
