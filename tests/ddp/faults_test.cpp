// Runs that break on purpose: two or three ranks under mpirun, one of which is killed, late or aborts. They reduce by
// MPI; where PLIMSOLL_FAULTS_OVER names another program that knows --fault, by that
// (tests/train/device_conformance.cpp).
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

namespace plimsoll::ddp {
namespace {

using testing::AllOf;
using testing::AnyOf;
using testing::HasSubstr;
using testing::StartsWith;

struct Outcome {
  int exit_code = -1;
  std::string folder;
  std::string said_by(int rank) const {
    std::ifstream file(folder + "/rank-" + std::to_string(rank));
    return {std::istreambuf_iterator<char>(file), {}};
  }
};

class Faults : public testing::Test {
 protected:
  // Another program says with 77 that it cannot run on this machine, and why.
  void SetUp() override {
    const char* other = std::getenv("PLIMSOLL_FAULTS_OVER");
    if (other == nullptr) return;
    program_ = other;
    const std::string reason = folder_ + "/reason";
    const int status = std::system((program_ + " --can-run > " + reason).c_str());
    std::ifstream file(reason);
    const std::string said{std::istreambuf_iterator<char>(file), {}};
    ASSERT_TRUE(WIFEXITED(status)) << said;
    if (WEXITSTATUS(status) == 77) GTEST_SKIP() << said;
    ASSERT_EQ(WEXITSTATUS(status), 0) << said;
  }
  Faults() {
    std::string pattern = (std::filesystem::temp_directory_path() / "plimsoll-faults-XXXXXX").string();
    folder_ = mkdtemp(pattern.data());
    setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 1);
    setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 1);
  }
  ~Faults() override { std::filesystem::remove_all(folder_); }

  Outcome run(const std::string& fault, int ranks, const std::string& options = "") {
    const std::string command = std::string(PLIMSOLL_MPIRUN) + " --oversubscribe " + options + " -n " +
                                std::to_string(ranks) + " " + program_ + " --fault " + fault + " " + folder_ + " > " +
                                folder_ + "/output 2>&1";
    const int status = std::system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, folder_};
  }

  std::string folder_;
  std::string program_ = PLIMSOLL_MPI_CONFORMANCE;
};

// A rank finds the culprit itself, or is told by another that did so a moment earlier.
const auto kToldOf5 = AllOf(StartsWith("told 5 "), HasSubstr("ended the run with exit code 5"));

// mpirun kills what is left when a rank dies; this keeps it from doing so, to see what the ranks find by themselves.
constexpr const char* kSurvive = "--enable-recovery";

TEST_F(Faults, WithoutAFaultAllLeaveInOrder) {
  const Outcome outcome = run("none", 3);
  EXPECT_EQ(outcome.exit_code, 0);
  for (int rank = 0; rank < 3; ++rank) EXPECT_EQ(outcome.said_by(rank), "done");
}

TEST_F(Faults, ASlowRankIsWaitedFor) {
  const Outcome outcome = run("slow", 2);
  EXPECT_EQ(outcome.exit_code, 0);
  EXPECT_EQ(outcome.said_by(0), "done");
}

TEST_F(Faults, ALateRankIsNamedOnTimeout) {
  const Outcome outcome = run("late", 3);
  EXPECT_EQ(outcome.exit_code, 5);
  for (int rank : {0, 2}) {
    EXPECT_THAT(outcome.said_by(rank), AnyOf(StartsWith("5 "), kToldOf5));
  }
  EXPECT_THAT(outcome.said_by(0) + outcome.said_by(2),
              AllOf(HasSubstr("behind: rank 1 (pid"), HasSubstr("step 3, compute")));
}

TEST_F(Faults, ARankThatStopsInsideACollectiveIsNamed) {
  const Outcome outcome = run("stops", 3);
  EXPECT_EQ(outcome.exit_code, 5);
  EXPECT_THAT(outcome.said_by(0), AnyOf(StartsWith("5 "), kToldOf5));
  EXPECT_THAT(outcome.said_by(0) + outcome.said_by(2), HasSubstr("behind: rank 1 (pid"));
}

TEST_F(Faults, AKilledRankEndsTheOthersWith5) {
  const Outcome outcome = run("killed", 3, kSurvive);
  EXPECT_EQ(outcome.said_by(1), "");
  for (int rank : {0, 2}) {
    EXPECT_THAT(outcome.said_by(rank), AnyOf(StartsWith("5 "), kToldOf5));
  }
  EXPECT_THAT(outcome.said_by(0) + outcome.said_by(2), HasSubstr("is dead"));
}

TEST_F(Faults, AKilledRankEndsTheRunUnderPlainMpirun) { EXPECT_NE(run("killed", 2).exit_code, 0); }

TEST_F(Faults, AbortLeavesWithItsCodeAndTheOthersFollow) {
  const Outcome outcome = run("aborts", 3);
  EXPECT_EQ(outcome.exit_code, 4);
  for (int rank : {0, 2}) EXPECT_THAT(outcome.said_by(rank), StartsWith("told 4 "));
  EXPECT_THAT(outcome.said_by(0) + outcome.said_by(2), HasSubstr("rank 1 ended the run with exit code 4"));
}

TEST_F(Faults, ARanksOwnTroubleGivesTheRunItsCode) {
  const Outcome outcome = run("throws", 2);
  EXPECT_EQ(outcome.exit_code, 6);
  EXPECT_THAT(outcome.said_by(1), StartsWith("6 "));
}

TEST_F(Faults, ARankThatExitsIsFoundDead) {
  const Outcome outcome = run("exits", 2, kSurvive);
  EXPECT_THAT(outcome.said_by(0), AllOf(StartsWith("5 rank 1 (pid"), HasSubstr("is dead")));
}

TEST_F(Faults, AFolderThatCannotBeIsAUsageError) {
  std::ofstream(folder_ + "/file") << "in the way";
  const std::string real = folder_;
  folder_ += "/file/below";
  std::filesystem::create_directories(real + "/logs");
  const std::string command = std::string(PLIMSOLL_MPIRUN) + " --oversubscribe -n 2 " + PLIMSOLL_MPI_CONFORMANCE +
                              " --fault none " + folder_ + " > " + real + "/output 2>&1";
  const int status = std::system(command.c_str());
  folder_ = real;
  std::ifstream file(real + "/output");
  const std::string output{std::istreambuf_iterator<char>(file), {}};
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 2) << output;
  EXPECT_THAT(output, HasSubstr("file/below/progress-"));
}

}  // namespace
}  // namespace plimsoll::ddp
