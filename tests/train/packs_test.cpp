// Shares that are cut by bytes (batch.packing = "bytes") where predictions are a tenth too low: what a failure and what
// measured peaks make of the next step's cut.

#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <vector>

#include "memory/cpu_allocator.h"
#include "tests/train/tiny_run.h"
#include "train/source.h"

namespace plimsoll::train {
namespace {

class LowPredictions : public ::testing::Test {
 protected:
  static std::string model_dir() { return testing::TempDir() + "plimsoll-low-predictions-test"; }
  static void SetUpTestSuite() {
    memory::CpuAllocator::install();
    write_tiny_model(model_dir());
  }

  /// The same six samples in every step, of weights that stay: only their cut changes.
  void begin(double target, double margin) {
    Config config = tiny_config(model_dir());
    config.memory.policy = "fixed";
    config.memory.adjustment_frequency = 1;
    config.memory.target = target;
    config.memory.margin = margin;
    config.batch.micro = 2;
    config.batch.packing = "bytes";
    source_ = make_source(config);
    communicator_ = ddp::make_solo();
    session_.emplace(config, *communicator_, *source_);
    samples_ = session_->load_share(1, hold_);
    whole_ = session_->dry->activation_bytes(shape_of(samples_), session_->plan);
    ASSERT_GT(whole_, 300000) << "a fraction is taken of whole ten thousands of bytes";
    *session_->predictor = memory::Predictor([this](const memory::MicroBatchShape& shape, const memory::Plan& plan) {
      return session_->dry->activation_bytes(shape, plan) * 9 / 10;
    });
  }

  StepResult step() {
    StepInput input;
    input.step = ++step_;
    input.updates = step_ - 1;
    input.samples = samples_;
    input.plan = session_->plan;
    input.fill = session_->fill(input.plan, step_);
    input.learning_rate_factor = 0;
    StepResult result = session_->step->run(input);
    session_->controller->observe(step_, result.reports, result.verdict, session_->plan);
    return result;
  }

  std::unique_ptr<data::SampleSource> source_;
  std::unique_ptr<ddp::Communicator> communicator_;
  std::optional<Session> session_;
  std::vector<std::shared_ptr<const Sample>> hold_;
  std::vector<model::StreamSample> samples_;
  std::int64_t whole_ = 0;  ///< bytes that the six really need at once
  std::int64_t step_ = 0;
};

TEST_F(LowPredictions, ThatRanOutOfMemoryMakeSmallerMicroBatchesInTheNextStep) {
  begin(1.0, 0.0);
  session_->meter.set_budget(session_->meter.live() + whole_ - 1);
  const StepResult first = step();
  EXPECT_EQ(first.guardian.retries, 1) << "all six are predicted to fit";
  EXPECT_EQ(first.verdict.action, ddp::Action::kApply);
  for (int i = 0; i < 4; ++i) {
    const StepResult next = step();
    EXPECT_EQ(next.guardian.retries, 0) << "step " << step_;
    EXPECT_EQ(next.guardian.micro_batches, 2) << "and no smaller than it must be";
    EXPECT_NEAR(next.loss, first.loss, 1e-5 * first.loss);
  }
}

TEST_F(LowPredictions, AreCorrectedByMeasuredPeaks) {
  begin(0.85, 0.05);
  const std::int64_t aim = session_->meter.live() + whole_ * 19 / 20;
  session_->meter.set_budget(aim * 100 / 85);
  const std::int64_t before = session_->fill(session_->plan, 1).bytes;
  const StepResult first = step();
  EXPECT_EQ(first.guardian.retries, 0);
  EXPECT_EQ(first.guardian.micro_batches, 1);
  EXPECT_GT(first.reports.front().measured_peak_bytes, aim) << "within the budget, and above the target";
  EXPECT_LT(session_->fill(session_->plan, 2).bytes, before);
  const StepResult second = step();
  EXPECT_EQ(second.guardian.retries, 0);
  EXPECT_EQ(second.guardian.micro_batches, 2);
  EXPECT_LE(second.reports.front().measured_peak_bytes, aim);
  EXPECT_NEAR(second.loss, first.loss, 1e-5 * first.loss);
}

// A neighbour that takes memory within a step was foreseen by no prediction: nothing shrinks for it.
TEST_F(LowPredictions, AreNotToBlameForABudgetThatFell) {
  begin(1.0, 0.0);
  const std::int64_t budget = session_->meter.live() + 2 * whole_;
  session_->meter.set_budget(budget);
  EXPECT_EQ(step().guardian.micro_batches, 1);
  session_->meter.change_budget_after(40, session_->meter.live() + whole_ * 3 / 4);
  EXPECT_GT(step().guardian.retries, 0);
  session_->meter.set_budget(budget);
  const StepResult next = step();
  EXPECT_EQ(next.guardian.retries, 0);
  EXPECT_EQ(next.guardian.micro_batches, 1);
}

}  // namespace
}  // namespace plimsoll::train
