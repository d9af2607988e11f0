#include "memory/cpu_allocator.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <limits>

#include "core/scope.h"
#include "memory/dry_run.h"
#include "memory/guardian.h"

namespace plimsoll::memory {
namespace {

CpuAllocator& allocator() { return CpuAllocator::install(); }

// Puts the budget back whatever the test does.
class CpuAllocatorTest : public testing::Test {
 protected:
  void TearDown() override {
    allocator().set_budget(std::numeric_limits<std::int64_t>::max());
    allocator().fail_at(0);
    allocator().set_workspace(0);
  }
};

TEST_F(CpuAllocatorTest, CountsTensorsToTheByte) {
  const auto before = allocator().live();
  allocator().reset_peak();
  {
    const auto a = at::empty({1000});
    const auto b = at::empty({500});
    EXPECT_EQ(allocator().live() - before, 6000);
  }
  EXPECT_EQ(allocator().live(), before);
  EXPECT_EQ(allocator().peak() - before, 6000);
}

TEST_F(CpuAllocatorTest, IgnoresWhatIsSmallerThanACacheLine) {
  const auto before = allocator().live();
  const auto count = allocator().allocations();
  const auto tiny = at::empty({15});
  EXPECT_EQ(allocator().live(), before);
  EXPECT_EQ(allocator().allocations(), count);
  const auto smallest = at::empty({16});
  EXPECT_EQ(allocator().live(), before + 64);
}

TEST_F(CpuAllocatorTest, ThrowsBeyondTheBudgetAndKeepsTheBooks) {
  const auto before = allocator().live();
  allocator().set_budget(before + 4096);
  const auto fits = at::empty({1024});
  EXPECT_THROW(at::empty({1024}), c10::OutOfMemoryError);
  EXPECT_EQ(allocator().live(), before + 4096);
  EXPECT_EQ(allocator().take_failed_request(), 4096);
  EXPECT_EQ(allocator().take_failed_request(), 0);
}

TEST_F(CpuAllocatorTest, TheErrorSaysHowMuchWasWantedAndHowMuchThereIs) {
  allocator().set_budget(1 << 20);
  try {
    at::empty({1 << 20});
    FAIL() << "no error";
  } catch (const c10::OutOfMemoryError& error) {
    EXPECT_NE(std::string(error.what_without_backtrace()).find("4.00 MiB wanted"), std::string::npos)
        << error.what_without_backtrace();
  }
}

TEST_F(CpuAllocatorTest, FailsTheNthAllocationOnce) {
  allocator().fail_at(2);
  const auto a = at::empty({64});
  EXPECT_THROW(at::empty({64}), c10::OutOfMemoryError);
  EXPECT_NO_THROW(at::empty({64}));
}

TEST_F(CpuAllocatorTest, ABudgetMayFallInTheMiddleOfAStep) {
  const auto before = allocator().live();
  allocator().change_budget_after(1, before);
  EXPECT_NO_THROW(at::empty({64}));
  EXPECT_THROW(at::empty({64}), c10::OutOfMemoryError);
  EXPECT_EQ(allocator().budget(), before);
}

TEST_F(CpuAllocatorTest, ScratchComesFromTheArenaAndIsNoEvent) {
  allocator().set_workspace(1 << 16);
  const auto before = allocator().live();
  const auto ledger = measured_run(
      [] {
        const LibraryScratch scratch;
        const auto inside = at::empty({1000});
      },
      true);
  EXPECT_TRUE(ledger.events().empty());
  EXPECT_EQ(allocator().live(), before);
  EXPECT_GE(allocator().workspace_peak(), 4000);
  EXPECT_EQ(allocator().workspace_overflow(), 0);
}

TEST_F(CpuAllocatorTest, ScratchThatOverflowsTheArenaCountsAndIsSeen) {
  allocator().set_workspace(1024);
  const auto before = allocator().live();
  const LibraryScratch scratch;
  const auto large = at::empty({1000});
  EXPECT_EQ(allocator().live(), before + 4000);
  EXPECT_EQ(allocator().workspace_overflow(), 4000);
  allocator().set_budget(before + 4000);
  EXPECT_THROW(at::empty({1000}), c10::OutOfMemoryError);
}

TEST(DryRun, WritesDownWhatTheCpuDoes) {
  const auto body = [](at::Device device) {
    const auto a = at::empty({32, 64}, at::TensorOptions(device)).requires_grad_(true);
    const auto y = (a * 2).sum(1);
    y.backward(at::empty({32}, at::TensorOptions(device)));
  };
  const auto dry = dry_run([&] { body(at::kMeta); }, true);
  const auto wet = measured_run([&] { body(at::kCPU); }, true);
  ASSERT_EQ(dry.events().size(), wet.events().size());
  for (std::size_t i = 0; i < dry.events().size(); ++i) {
    EXPECT_EQ(dry.events()[i].bytes, wet.events()[i].bytes) << i;
    EXPECT_EQ(dry.events()[i].block, wet.events()[i].block) << i;
  }
  EXPECT_EQ(dry.peak(), wet.peak());
}

TEST(DryRun, AFreeCarriesTheNumberOfItsAllocation) {
  const auto body = [](at::Device device) {
    const auto options = at::TensorOptions(device);
    auto first = at::empty({100}, options), second = at::empty({200}, options), third = at::empty({300}, options);
    second.reset();
    first.reset();
  };
  const auto dry = dry_run([&] { body(at::kMeta); }, true), wet = measured_run([&] { body(at::kCPU); }, true);
  for (const Ledger* ledger : {&dry, &wet}) {
    std::vector<std::uint64_t> blocks;
    for (const Event& event : ledger->events()) blocks.push_back(event.block);
    EXPECT_EQ(blocks, (std::vector<std::uint64_t>{1, 2, 3, 2, 1, 3}));
  }
}

TEST(DryRun, ABlockFromBeforeTheRecordingIsNoBlockOfIt) {
  allocator();
  at::Tensor unseen = at::empty({100}), earlier, foreign = at::empty({100}, at::kMeta);
  measured_run([&] { earlier = at::empty({200}); });
  const auto wet = measured_run(
      [&] {
        unseen.reset();
        earlier.reset();
      },
      true);
  ASSERT_EQ(wet.events().size(), 2U);
  EXPECT_EQ(wet.events()[0].bytes, -400);
  EXPECT_EQ(wet.events()[1].bytes, -800);
  EXPECT_EQ(wet.events()[0].block, 0U);
  EXPECT_EQ(wet.events()[1].block, 0U) << "numbered by an earlier ledger";
  at::Tensor dry_earlier;
  dry_run([&] { dry_earlier = at::empty({200}, at::kMeta); });
  const auto dry = dry_run(
      [&] {
        foreign.reset();
        dry_earlier.reset();
      },
      true);
  EXPECT_TRUE(dry.events().empty());
}

TEST(DryRun, CountsAsTheDeviceItStandsFor) {
  const auto body = [] {
    const at::Tensor few = at::empty({3}, at::TensorOptions(at::kMeta).dtype(at::kFloat));  // 12 bytes
    const LibraryScratch scratch;
    const at::Tensor more = at::empty({300}, at::TensorOptions(at::kMeta).dtype(at::kFloat));  // 1,200 bytes
  };
  EXPECT_EQ(dry_run(body).peak(), 0) << "the CPU's: too small, and from the arena";
  count_as(kCudaCounting);
  EXPECT_EQ(dry_run(body).peak(), 512 + 1536);
  count_as({});
  EXPECT_EQ(dry_run(body).peak(), 0);
}

TEST(DryRun, BreaksThePeakDownByLabel) {
  const auto ledger = dry_run(
      [] {
        const AllocationLabel outer("weights");
        const auto w = at::empty({1024}, at::kMeta);
        const AllocationLabel inner("activations");
        const auto a = at::empty({256}, at::kMeta);
      },
      true);
  EXPECT_EQ(ledger.breakdown_at_peak(), (Breakdown{{"weights", 4096}, {"activations", 1024}}));
}

// A chain of products whose backward fails somewhere: work for the guardian without a model.
class GuardianTest : public CpuAllocatorTest {
 protected:
  at::Tensor weight_ = torch::randn({64, 64}).requires_grad_(true);
  std::vector<std::size_t> committed_;

  void SetUp() override { weight_.mutable_grad() = torch::zeros({64, 64}); }

  MicroBatchWork work() {
    return {[this](Piece piece) {
              auto x = torch::ones({static_cast<std::int64_t>(piece.count) * 64, 64});
              for (int i = 0; i < 4; ++i) x = torch::tanh(at::mm(x, weight_));
              x.sum().backward();
              for (std::size_t i = 0; i < piece.count; ++i) committed_.push_back(piece.begin + i);
            },
            [this] { weight_.mutable_grad().zero_(); }, [](Piece, std::int64_t) { return std::int64_t{0}; }};
  }
};

TEST_F(GuardianTest, ReplaysTheSameSamplesInHalvesAndLosesNone) {
  Guardian guardian(allocator());
  const auto one = [&] {
    const auto live = allocator().live();
    allocator().reset_peak();
    work().attempt({0, 1});
    committed_.clear();
    return allocator().peak() - live;
  }();
  allocator().set_budget(allocator().live() + one * 5 / 2);
  const auto report = guardian.run(7, 7, work());
  EXPECT_FALSE(report.failed);
  EXPECT_GE(report.retries, 2);
  EXPECT_EQ(committed_, (std::vector<std::size_t>{0, 1, 2, 3, 4, 5, 6}));
  EXPECT_GT(report.failed_request, 0);
}

TEST_F(GuardianTest, NothingStaysAfterAFailureAtAnyAllocation) {
  Guardian guardian(allocator());
  int failures = 0;
  guardian.after_drain = [&](std::int64_t before, std::int64_t after) {
    ++failures;
    EXPECT_EQ(before, after);
  };
  const auto start = allocator().allocations();
  work().attempt({0, 2});
  const auto allocations = allocator().allocations() - start;
  for (std::int64_t n = 1; n <= allocations; ++n) {
    allocator().fail_at(n);
    EXPECT_FALSE(guardian.run(2, 2, work()).failed);
  }
  EXPECT_EQ(failures, allocations);
}

TEST_F(GuardianTest, ASingleSampleThatDoesNotFitFailsTheStep) {
  Guardian guardian(allocator());
  allocator().set_budget(allocator().live() + 100);
  const auto report = guardian.run(3, 2, work());
  EXPECT_TRUE(report.failed);
  EXPECT_EQ(report.failed_sample, 0U);
  EXPECT_NE(report.error.find("out of memory"), std::string::npos);
  EXPECT_TRUE(committed_.empty());
}

TEST_F(GuardianTest, SplitsBeforeItTriesWhereThePredictionSaysSo) {
  Guardian guardian(allocator());
  auto predicted = work();
  predicted.predicted = [](Piece piece, std::int64_t) { return static_cast<std::int64_t>(piece.count) * (1 << 20); };
  allocator().set_budget(allocator().live() + (5 << 20));
  const auto report = guardian.run(12, 8, predicted);
  EXPECT_EQ(report.retries, 0);
  EXPECT_EQ(report.micro_batches, 3);  // 5, 5, 2
  EXPECT_EQ(committed_.size(), 12U);
}

TEST_F(GuardianTest, OtherErrorsPassThrough) {
  Guardian guardian(allocator());
  auto broken = work();
  broken.attempt = [](Piece) { throw std::runtime_error("not about memory"); };
  EXPECT_THROW(guardian.run(1, 1, broken), std::runtime_error);
}

}  // namespace
}  // namespace plimsoll::memory
