// The evaluation is a phase of the plan: its bytes are predicted, and held-out samples may be the heaviest there are.
#include "train/evaluate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <utility>

#include "memory/cpu_allocator.h"
#include "memory/guardian.h"
#include "tests/train/tiny_run.h"
#include "train/source.h"

namespace plimsoll::train {
namespace {

/// Another source whose lightest samples are trained on and whose heaviest are held out.
class HeavyHeldOut final : public data::SampleSource {
 public:
  HeavyHeldOut(std::unique_ptr<data::SampleSource> all, std::size_t held_out) : all_(std::move(all)) {
    std::vector<std::int64_t> order(static_cast<std::size_t>(all_->size()));
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<std::int64_t>(i);
    const auto weight = [&](std::int64_t i) { return all_->shape_of(i).tokens + all_->shape_of(i).patches; };
    std::ranges::sort(order, {}, weight);
    const auto border = order.end() - static_cast<std::ptrdiff_t>(held_out);
    training_.assign(order.begin(), border);
    held_out_.assign(border, order.end());
  }
  std::int64_t size() const override { return all_->size(); }
  data::SampleDims dims() const override { return all_->dims(); }
  SampleShape shape_of(std::int64_t index) const override { return all_->shape_of(index); }
  Sample load(std::int64_t index) const override { return all_->load(index); }
  const std::vector<std::int64_t>& training() const override { return training_; }
  const std::vector<std::int64_t>& held_out() const override { return held_out_; }
  std::uint64_t hash() const override { return all_->hash(); }

 private:
  std::unique_ptr<data::SampleSource> all_;
  std::vector<std::int64_t> training_, held_out_;
};

const std::string& evaluated_model() {
  static const std::string dir = [] {
    memory::CpuAllocator::install();
    const std::string path = testing::TempDir() + "plimsoll-evaluate-test";
    write_tiny_model(path);
    return path;
  }();
  return dir;
}

TEST(Evaluation, IsPartOfThePredictedPeak) {
  auto config = tiny_config(evaluated_model());
  config.memory.recompute = "all";
  const HeavyHeldOut source(make_source(config), 3);
  const auto communicator = ddp::make_solo();
  std::int64_t trained_only = 0;
  {
    const Session session(config, *communicator, source);
    memory::Plan plan = session.plan;
    plan.micro_batch = 1;
    trained_only = session.predicted_peak(plan) - session.meter.workspace();
  }
  config.train.eval_samples = 3;
  Session session(config, *communicator, source);
  for (const int micro_batch : {1, 2, 3, 6}) {
    session.plan.micro_batch = micro_batch;
    const std::int64_t predicted = session.predicted_peak(session.plan);
    session.meter.reset_peak();
    EXPECT_EQ(measure_action_error(session, 3).samples, 3);
    EXPECT_LE(session.meter.peak(), predicted);
    if (micro_batch == 1) {
      EXPECT_GT(predicted - session.meter.workspace(), trained_only) << "the held-out samples need more";
      // Rounded up by less than half a per cent.
      EXPECT_LE((predicted - session.meter.peak()) * 200, session.meter.peak());
    }
  }
  EXPECT_EQ(memory::CpuAllocator::install().workspace_overflow(), 0) << "the arena holds what sampling takes too";
}

TEST(Evaluation, IsSpreadOverWhatIsHeldOut) {
  const auto config = tiny_config(evaluated_model());
  const HeavyHeldOut source(make_source(config), 10);
  const auto& held_out = source.held_out();
  EXPECT_EQ(evaluated_samples(source, 2), (std::vector<std::int64_t>{held_out[0], held_out[5]}));
  EXPECT_EQ(evaluated_samples(source, 99), held_out);
  EXPECT_TRUE(evaluated_samples(source, 0).empty());
}

}  // namespace
}  // namespace plimsoll::train
