// The phases of a run beside the micro-batch: an update and a checkpoint take nothing of the budget, so that no plan
// has to leave room for them.
#include <gtest/gtest.h>

#include <filesystem>

#include "ddp/communicator.h"
#include "memory/cpu_allocator.h"
#include "tests/train/tiny_run.h"
#include "train/options.h"
#include "train/source.h"

namespace plimsoll::train {
namespace {

TEST(Phases, UpdateAndCheckpointTakeNothingOfTheBudget) {
  memory::CpuAllocator::install();
  const std::string folder = testing::TempDir() + "plimsoll-phases-test";
  write_tiny_model(folder);
  auto config = tiny_config(folder);
  config.run.dir = folder + "-run";
  std::filesystem::remove_all(config.run.dir);
  const auto communicator = ddp::make_solo();
  const auto source = make_source(config);
  Session session(config, *communicator, *source);
  train_steps(session, 1);

  const auto taken = [&](const auto& phase) {
    const std::int64_t live = session.meter.live();
    session.meter.set_budget(live);  // one byte more would be out of memory
    session.meter.reset_peak();
    phase();
    EXPECT_EQ(session.meter.live(), live);
    return session.meter.peak() - live;
  };
  EXPECT_EQ(taken([&] { apply_gradients(*session.buffers, step_options(session.config), {1.0, 1}); }), 0);
  EXPECT_EQ(taken([&] { session.write_checkpoint(); }), 0);
  EXPECT_TRUE(std::filesystem::exists(std::filesystem::path(config.run.dir) / "checkpoints"));
}

}  // namespace
}  // namespace plimsoll::train
