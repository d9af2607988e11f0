// The buffer of a staged reduction: whose it is when the reduction breaks. What the sums are is the conformance
// suite's.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "core/error.h"
#include "ddp/device_communicator.h"

namespace plimsoll::ddp {
namespace {

/// Two ranks, of which the other is lost in the second reduction. That one may still write: `written` says where.
class LosesItsPeer final : public DeviceCommunicator {
 public:
  using DeviceCommunicator::DeviceCommunicator;
  int world() const override { return 2; }
  void all_reduce_sum(std::span<float> values) override {
    if (++reductions_ < 2) return;
    written = values;
    fail(ExitCode::kPeer, "rank 1 is dead");
  }
  std::string name() const override { return "one whose peer is lost"; }
  std::span<float> written;

 private:
  int reductions_ = 0;
};

/// `freed` is set when the buffer is given back.
DeviceCopies copies_on_host(bool& freed) {
  return {[](std::span<const float> device, float* host) { std::ranges::copy(device, host); },
          [](std::span<const float> host, float* device) { std::ranges::copy(host, device); },
          [&freed](std::size_t floats) {
            return std::shared_ptr<float[]>(new float[floats], [&freed](const float* block) {
              freed = true;
              delete[] block;
            });
          }};
}

TEST(Staged, GivesItsBufferBackWhenItGoes) {
  bool freed = false;
  const auto solo = make_solo();
  LosesItsPeer host(*solo);
  auto staged = make_staged(host, copies_on_host(freed));
  std::vector<float> values(8, 1.0F);
  staged->all_reduce_sum(values);
  EXPECT_FALSE(freed);
  staged.reset();
  EXPECT_TRUE(freed);
}

TEST(Staged, KeepsTheBufferThatABrokenReductionMayStillWriteTo) {
  static bool freed = false;  // outlives the buffer, which lives as long as the process
  const auto solo = make_solo();
  LosesItsPeer host(*solo);
  auto staged = make_staged(host, copies_on_host(freed));
  std::vector<float> values(8, 1.0F);
  staged->all_reduce_sum(values);
  EXPECT_THROW(staged->all_reduce_sum(values), Error);
  staged.reset();
  EXPECT_FALSE(freed);
  ASSERT_EQ(host.written.size(), values.size());
  std::ranges::fill(host.written, 2.0F);  // a sanitized build would stop here
}

}  // namespace
}  // namespace plimsoll::ddp
