#include "ddp/progress_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "core/error.h"
#include "ddp/communicator.h"
#include "tests/error_of.h"

namespace plimsoll::ddp {
namespace {

class Progress : public testing::Test {
 protected:
  Progress() {
    std::string pattern = (std::filesystem::temp_directory_path() / "plimsoll-progress-XXXXXX").string();
    folder_ = mkdtemp(pattern.data());
    path_ = folder_ + "/below/progress";
  }
  ~Progress() override { std::filesystem::remove_all(folder_); }
  std::string folder_, path_;
};

TEST_F(Progress, AllRanksSeeWhereEachIs) {
  ProgressFile::create(path_, 3);
  ProgressFile a(path_, 0, 3), b(path_, 2, 3);
  a.enter(17, "forward");
  a.begin_collective(5);
  const RankView view = b.look(0);
  EXPECT_EQ(view.state, RankState::kRunning);
  EXPECT_TRUE(view.alive);
  EXPECT_EQ(view.step, 17);
  EXPECT_EQ(view.phase, "forward");
  EXPECT_EQ(view.collectives, 5);
  EXPECT_EQ(view.pid, getpid());
  EXPECT_GE(view.seconds_ago, 0.0);
  EXPECT_EQ(b.look(1).state, RankState::kElsewhere);
}

TEST_F(Progress, ALongPhaseIsCut) {
  ProgressFile::create(path_, 1);
  ProgressFile own(path_, 0, 1);
  own.enter(1, "0123456789012345678901234567890");
  EXPECT_EQ(own.look(0).phase, "01234567890123456789012");
}

TEST_F(Progress, KnowsWhenTheNodeHasArrived) {
  ProgressFile::create(path_, 3);
  ProgressFile a(path_, 0, 3), b(path_, 1, 3);
  a.begin_collective(1);
  EXPECT_FALSE(a.node_arrived(1));
  b.begin_collective(1);
  EXPECT_TRUE(a.node_arrived(1)) << "rank 2 is of another host";
  EXPECT_FALSE(a.node_arrived(2));
  b.finish();
  a.begin_collective(2);
  EXPECT_TRUE(a.node_arrived(2));
  EXPECT_EQ(a.look(1).state, RankState::kFinished);
}

TEST_F(Progress, ALeavingRankSaysWithWhat) {
  ProgressFile::create(path_, 1);
  ProgressFile own(path_, 0, 1);
  own.leave(75);
  EXPECT_EQ(own.look(0).state, RankState::kLeaving);
  EXPECT_EQ(own.look(0).exit_code, 75);
}

TEST_F(Progress, ADeadRankIsFoundEvenAsAZombie) {
  ProgressFile::create(path_, 2);
  ProgressFile own(path_, 0, 2);
  const pid_t child = fork();
  if (child == 0) {
    const ProgressFile other(path_, 1, 2);
    pause();
  }
  while (own.look(1).state != RankState::kRunning) usleep(1000);
  EXPECT_TRUE(own.look(1).alive);
  kill(child, SIGKILL);
  siginfo_t info{};
  waitid(P_PID, static_cast<id_t>(child), &info, WEXITED | WNOWAIT);  // dead, but not reaped
  EXPECT_FALSE(own.look(1).alive);
  waitpid(child, nullptr, 0);
  EXPECT_FALSE(own.look(1).alive);
}

TEST_F(Progress, AnOldFileIsReplaced) {
  ProgressFile::create(path_, 2);
  ProgressFile old(path_, 1, 2);
  old.leave(4);
  ProgressFile::create(path_, 2);
  const ProgressFile fresh(path_, 0, 2);
  EXPECT_EQ(fresh.look(1).state, RankState::kElsewhere);
}

TEST_F(Progress, ProblemsNameThePath) {
  const auto text = [](const auto& action) { return error_of(ExitCode::kUsage, action); };
  EXPECT_THAT(text([&] { ProgressFile(path_, 0, 1); }), testing::HasSubstr(path_));
  std::ofstream(folder_ + "/file") << "in the way";
  EXPECT_THAT(text([&] { ProgressFile::create(folder_ + "/file/progress", 1); }), testing::HasSubstr("/file/progress"));
  ProgressFile::create(path_, 1);
  EXPECT_THAT(text([&] { ProgressFile(path_, 40, 41); }), testing::HasSubstr(path_)) << "too small for that world";
}

class Environment : public testing::Test {
 protected:
  Environment() { clear(); }
  ~Environment() override { clear(); }
  static void clear() {
    for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK", "SLURM_STEP_NUM_TASKS"}) unsetenv(name);
  }
};

TEST_F(Environment, AloneMeansSolo) {
  EXPECT_EQ(make_communicator("unused", 1.0)->name(), "solo");
  setenv("SLURM_STEP_NUM_TASKS", "1", 1);
  EXPECT_EQ(make_communicator("unused", 1.0)->name(), "solo");
}

TEST_F(Environment, SrunWithoutMpiIsRefused) {
  setenv("SLURM_STEP_NUM_TASKS", "4", 1);
  EXPECT_THROW(make_communicator("unused", 1.0), Error);
}

}  // namespace
}  // namespace plimsoll::ddp
