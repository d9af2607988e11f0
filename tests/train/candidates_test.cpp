// Which plans there are to choose from, and that the fastest of them are timed.
#include "train/candidates.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "ddp/communicator.h"
#include "memory/cpu_allocator.h"
#include "tests/train/tiny_run.h"
#include "train/source.h"

namespace plimsoll::train {
namespace {

Config predictive_config() {
  memory::CpuAllocator::install();
  static const std::string dir = [] {
    const std::string path = testing::TempDir() + "plimsoll-candidates-test";
    write_tiny_model(path);
    return path;
  }();
  Config config = tiny_config(dir);
  config.memory.policy = "predictive";
  config.memory.recompute = config.memory.offload = config.batch.micro = "auto";
  config.memory.knobs = {"micro_batch", "recompute", "offload"};
  config.memory.calibration = config.memory.table = "off";
  return config;
}

std::set<int> sizes_of(std::span<const memory::Candidate> candidates) {
  std::set<int> sizes;
  for (const auto& candidate : candidates) sizes.insert(candidate.plan.micro_batch);
  return sizes;
}

TEST(Candidates, EveryKnobHasItsPlansAndAFixedOneHasOne) {
  Config config = predictive_config();
  const auto source = make_source(config);
  const auto communicator = ddp::make_solo();
  const Session session(config, *communicator, *source);
  const int blocks = session.model->language_blocks(), expert = session.model->expert_blocks();
  const auto plans_of = [&](const Config& tried) { return allowed_plans(tried, *session.model, 6); };
  const auto has = [](const std::vector<memory::Plan>& plans, const memory::Plan& plan) {
    return std::find(plans.begin(), plans.end(), plan) != plans.end();
  };
  const auto all = plans_of(config);
  EXPECT_TRUE(has(all, {0, 1, 0}));
  EXPECT_TRUE(has(all, {0, 6, 0, 0, expert})) << "the expert alone";
  EXPECT_TRUE(has(all, {0, 2, 1, 0, expert, true}));
  EXPECT_TRUE(has(all, {0, 3, blocks, 0, 0, true}));
  EXPECT_FALSE(has(all, {0, 3, 0, 0, 0, true})) << "nothing is recomputed that could be offloaded";
  EXPECT_FALSE(has(all, {0, 4, 0})) << "no fewer micro-batches than with 3";

  Config other = config;
  other.memory.recompute = "none";
  for (const auto& plan : plans_of(other)) EXPECT_EQ(plan.recompute_blocks + plan.recompute_expert, 0);
  other = config;
  other.memory.offload = "off";
  for (const auto& plan : plans_of(other)) EXPECT_FALSE(plan.offload);
  other = config;
  other.memory.knobs = {"recompute"};
  EXPECT_TRUE(has(plans_of(other), {0, 2, 0})) << "chosen at the start";
  other.batch.micro = 4;
  for (const auto& plan : plans_of(other)) EXPECT_EQ(plan.micro_batch, 4);
}

TEST(Candidates, AMicroBatchThatMayNotMoveIsChosenAtTheStart) {
  Config config = predictive_config();
  config.memory.knobs = {"recompute", "offload"};
  const auto source = make_source(config);
  const auto communicator = ddp::make_solo();
  std::int64_t budget = 0;
  {
    const Session ample(config, *communicator, *source);
    EXPECT_EQ(sizes_of(ample.candidates.all()), std::set<int>{ample.plan.micro_batch});
    // Too little for all six together, however lean.
    memory::Plan lean{0, 6, ample.model->language_blocks(), 0, ample.model->expert_blocks(), true};
    budget = ample.predicted_peak(lean) - 1;
  }
  config.memory.budget = std::to_string(budget);
  const Session session(config, *communicator, *source);
  EXPECT_LT(session.plan.micro_batch, 6);
  EXPECT_LE(session.predicted_peak(session.plan), budget);
  EXPECT_EQ(sizes_of(session.candidates.all()), std::set<int>{session.plan.micro_batch});
}

TEST(Candidates, OfOneSizeAreTimedByWaysOfThatSize) {
  at::set_num_threads(1);
  Config config = predictive_config();
  config.memory.knobs = {"recompute", "offload"};
  const auto source = make_source(config);
  const auto communicator = ddp::make_solo();
  const Session session(config, *communicator, *source);
  EXPECT_EQ(session.plan, (memory::Plan{0, 6})) << "the fastest size, since it stays what it is";
  for (const auto& way : session.ways) EXPECT_EQ(way.plan.micro_batch, 6);
}

TEST(Candidates, AreTimedAsTheirStepsAreRun) {
  at::set_num_threads(1);
  const Config config = predictive_config();
  const auto source = make_source(config);
  const auto communicator = ddp::make_solo();
  const Session session(config, *communicator, *source);
  // The budget holds any step's whole share with nothing recomputed: that is how all are run, whatever the plan says.
  const std::int64_t best = session.candidates.all().front().microseconds;
  for (const auto& candidate : session.candidates.all()) EXPECT_EQ(candidate.microseconds, best);
  EXPECT_EQ(session.plan, (memory::Plan{0, 6})) << "and of equals it is the plain one with the largest micro-batch";
  ASSERT_FALSE(session.ways.empty());
  for (std::size_t i = 1; i < session.ways.size(); ++i) {
    EXPECT_LT(session.ways[i].bytes, session.ways[i - 1].bytes);
    EXPECT_GE(session.ways[i].microseconds, session.ways[i - 1].microseconds);
  }
  for (const float value : session.buffers->gradients()) ASSERT_EQ(value, 0.0F) << "gradients are thrown away";
}

}  // namespace
}  // namespace plimsoll::train
