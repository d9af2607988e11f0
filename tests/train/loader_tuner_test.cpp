// The figures that the loader is changed by and that a person reads of it. Changes in real runs: tests/faults.
#include "train/loader_tuner.h"

#include <gmock/gmock.h>

#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "ddp/communicator.h"
#include "memory/cpu_allocator.h"
#include "tests/train/tiny_run.h"
#include "train/source.h"

namespace plimsoll::train {
namespace {

using ::testing::HasSubstr;

LoaderSums waiting_step(double wait_ms, double memory, std::int64_t looks) {
  LoaderSums step;
  step.steps = 1;
  step.wait_ms = wait_ms;
  step.load_ms = 80;
  step.wall_ms = 100;
  step.utilisation = 1 - wait_ms / 100;
  step.memory = memory;
  step.looks = looks;
  return step;
}

// Steps that did not look at the memory in use leave its mean as it is; the last one is no more than the others.
TEST(LoaderTuner, TellsMeansOfAnEpoch) {
  LoaderSums epoch;
  epoch.add(waiting_step(10, 0.9, 1));
  for (int i = 0; i < 6; ++i) epoch.add(waiting_step(30, 0, 0));
  epoch.add(waiting_step(10, 0.2, 1));
  epoch.add(waiting_step(10, 0.1, 1));
  EXPECT_EQ(epoch.steps, 9);
  EXPECT_DOUBLE_EQ(epoch.mean(epoch.load_ms), 80);
  EXPECT_DOUBLE_EQ(epoch.mean_memory(), 0.4);
  const std::string line = loader_epoch_line(120, 1, {2, 3}, epoch);
  EXPECT_THAT(line, HasSubstr("epoch ends in step 120: adjusted 1 time | 2 threads, 3 steps ahead"));
  EXPECT_THAT(line, HasSubstr("steps waited 23 % | device 77 % busy | host memory 40 %"));
}

TEST(LoaderTuner, TellsOfAnEpochWithoutSteps) {
  EXPECT_THAT(loader_epoch_line(1, 0, {1, 1}, {}), HasSubstr("1 thread, 1 step ahead | steps waited 0 %"));
}

// No bound of the loader's own: the machine's memory is what counts, which others fill.
TEST(LoaderTuner, BacksOffWhileTheMachinesMemoryIsFull) {
  memory::CpuAllocator::install();
  const std::string dir = testing::TempDir() + "plimsoll-loader-tuner-test";
  write_tiny_model(dir);
  Config config = tiny_config(dir);
  config.data.workers = config.data.most_workers = 4;
  config.data.prefetch = 8;
  config.data.adjust_every = 2;
  const auto source = make_source(config);
  const auto communicator = ddp::make_solo();
  Session session(config, *communicator, *source);
  session.resume(false);
  std::vector<std::shared_ptr<const Sample>> hold;
  session.load_share(1, hold);  // makes the loader
  RunLog log(session, 0);
  double in_use = 0.9;
  LoaderTuner tuner(session, log, [&in_use] { return in_use; });
  std::int64_t step = 0;
  const auto after_two_steps = [&] {
    for (int i = 0; i < 2; ++i) tuner.took(++step, 0, 10);
    return std::tuple(tuner.setting().workers, tuner.setting().prefetch);
  };
  EXPECT_EQ(after_two_steps(), std::tuple(3, 4));
  EXPECT_EQ(after_two_steps(), std::tuple(2, 2));
  in_use = 0.75;  // neither above the limit nor free
  EXPECT_EQ(after_two_steps(), std::tuple(2, 2));
  in_use = 0.2;
  const auto [workers, prefetch] = after_two_steps();
  EXPECT_GE(workers, 2);
  EXPECT_GT(prefetch, 2) << "a device that no step waits for is busy: further ahead";
}

}  // namespace
}  // namespace plimsoll::train
