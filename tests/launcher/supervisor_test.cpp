// The supervisor against stand-ins for mpirun: small shell scripts that die, checkpoint and stop as told.
#include "launcher/supervisor.h"

#include <gmock/gmock.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <fstream>
#include <functional>
#include <thread>

#include "core/error.h"
#include "core/file.h"

namespace plimsoll {
namespace {

using ::testing::HasSubstr;
using namespace std::chrono_literals;

constexpr const char* kLibrary = R"(
log() { echo "$*" >> "$RUN/log"; }
checkpoint() { mkdir -p "$RUN/checkpoints/step-$1"; echo '{}' > "$RUN/checkpoints/step-$1/complete.json"; }
finish() { echo "{\"exit_code\":$1,\"reason\":\"r\",\"step\":3,\"checkpoint\":null,\"attempt\":1}" > "$RUN/exit.json"; }
log "start $PLIMSOLL_ATTEMPT $*"
)";

class Launch : public ::testing::Test {
 protected:
  void SetUp() override {
    run_ = std::filesystem::path(::testing::TempDir()) / ("launch-" + std::to_string(::getpid()));
    std::filesystem::create_directories(run_);
    ::setenv("RUN", run_.c_str(), 1);
  }
  void TearDown() override { std::filesystem::remove_all(run_); }

  Supervision supervision(const std::string& script) const {
    std::ofstream(run_ / "ranks.sh") << kLibrary << script;
    Supervision result;
    // A shell cannot trap a signal that was ignored when it started; mpirun can.
    result.command = {"env", "--default-signal=USR1", "/bin/sh", (run_ / "ranks.sh").string(), "--config", "c.toml"};
    result.run_dir = run_;
    result.restart_pause = 0.0;
    result.resend_pause = 0.05;
    result.kill_grace = 0.3;
    return result;
  }
  int supervise_script(const std::string& script) const { return supervise(supervision(script)); }
  std::string log() const { return std::filesystem::exists(run_ / "log") ? read_file(run_ / "log") : ""; }

  void wait_for(const std::string& text) const {
    for (int i = 0; i < 1000 && log().find(text) == std::string::npos; ++i) std::this_thread::sleep_for(10ms);
    ASSERT_THAT(log(), HasSubstr(text));
  }

  /// Supervises in a process of its own, lets `disturb` act on it, and returns its exit code (-1: killed).
  int in_process(const Supervision& what, const std::function<void(pid_t)>& disturb) const {
    const pid_t pid = ::fork();
    if (pid == 0) ::_exit(supervise(what));
    disturb(pid);
    int status = 0;
    ::waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
  static bool alive(pid_t pid) { return ::kill(pid, 0) == 0; }
  pid_t logged_pid() const { return std::stoi(read_file(run_ / "pid")); }

  std::filesystem::path run_;
};

TEST_F(Launch, TakesTheExitCodeOfTheRun) {
  for (const int code : {0, 2, 3, 4, 6, 75}) {
    EXPECT_EQ(supervise_script("finish " + std::to_string(code) + "; exit 1"), code);
  }
  EXPECT_EQ(log(),
            "start 1 --config c.toml\nstart 1 --config c.toml\nstart 1 --config c.toml\n"
            "start 1 --config c.toml\nstart 1 --config c.toml\nstart 1 --config c.toml\n");
}

TEST_F(Launch, AStaleExitFileIsNotBelieved) {
  std::ofstream(run_ / "exit.json") << R"({"exit_code":0,"reason":"old","step":1,"checkpoint":null,"attempt":1})";
  EXPECT_EQ(supervise_script("exit 0"), 5);
}

TEST_F(Launch, ErrorsThatNoRestartHealsEndTheRunWithoutAnExitFile) {
  for (const int code : {2, 3, 4, 6}) EXPECT_EQ(supervise_script("exit " + std::to_string(code)), code);
}

TEST_F(Launch, ALostRankMeansARestartWithResume) {
  EXPECT_EQ(supervise_script("[ $PLIMSOLL_ATTEMPT = 3 ] && finish 0 && exit; kill -9 $$"), 0);
  EXPECT_EQ(log(), "start 1 --config c.toml\nstart 2 --config c.toml --resume\nstart 3 --config c.toml --resume\n");
}

TEST_F(Launch, ALateOrLostPeerThatWasReportedIsRestartedToo) {
  EXPECT_EQ(supervise_script("[ $PLIMSOLL_ATTEMPT = 2 ] && finish 0 && exit; finish 5"), 0);
}

TEST_F(Launch, ResumeIsNotGivenTwice) {
  Supervision what = supervision("[ $PLIMSOLL_ATTEMPT = 2 ] && finish 0 && exit; exit 9");
  what.command.emplace_back("--resume");
  EXPECT_EQ(supervise(what), 0);
  EXPECT_EQ(log(), "start 1 --config c.toml --resume\nstart 2 --config c.toml --resume\n");
}

TEST_F(Launch, ThreeRestartsWithoutANewCheckpointEndTheRun) {
  EXPECT_EQ(supervise_script("exit 9"), 5);
  EXPECT_THAT(log(), HasSubstr("start 4"));
  EXPECT_THAT(log(), ::testing::Not(HasSubstr("start 5")));
}

TEST_F(Launch, ANewCheckpointStartsTheCountAnew) {
  EXPECT_EQ(supervise_script("[ $PLIMSOLL_ATTEMPT = 3 ] && checkpoint 10; exit 9"), 5);
  EXPECT_THAT(log(), HasSubstr("start 6"));
  EXPECT_THAT(log(), ::testing::Not(HasSubstr("start 7")));
}

TEST_F(Launch, MaxRestartsBoundsEvenARunThatGetsOn) {
  Supervision what = supervision("checkpoint $PLIMSOLL_ATTEMPT; exit 9");
  what.max_restarts = 5;
  EXPECT_EQ(supervise(what), 5);
  EXPECT_THAT(log(), HasSubstr("start 6"));
  EXPECT_THAT(log(), ::testing::Not(HasSubstr("start 7")));
  what.max_restarts = 0;
  std::filesystem::remove(run_ / "log");
  EXPECT_EQ(supervise(what), 5);
  EXPECT_EQ(log(), "start 1 --config c.toml\n");
}

TEST_F(Launch, OnlyACompleteCheckpointCounts) {
  EXPECT_EQ(newest_checkpoint(run_), -1);
  for (const char* name : {"step-5", "step-40", "step-100", "step-7.part", "step-", "step-9x", "other"}) {
    std::filesystem::create_directories(run_ / "checkpoints" / name);
  }
  EXPECT_EQ(newest_checkpoint(run_), -1);
  for (const char* name : {"step-5", "step-40", "step-7.part", "step-9x"}) {
    std::ofstream(run_ / "checkpoints" / name / "complete.json") << "{}";
  }
  EXPECT_EQ(newest_checkpoint(run_), 40);
}

// Ignores the signal at first, as a rank does that still loads its libraries, then stops when it is asked again.
constexpr const char* kStops = R"(
trap '' USR1
log loading
sleep 0.3
trap 'log stopping; checkpoint 8; finish 75; exit 75' USR1
log ready
while :; do sleep 0.02; done
)";

TEST_F(Launch, EveryRequestToStopBecomesUsr1UntilItIsHeard) {
  for (const int signal : {SIGTERM, SIGINT, SIGHUP, SIGUSR1}) {
    std::filesystem::remove(run_ / "log");
    const int code = in_process(supervision(kStops), [&](pid_t pid) {
      wait_for("loading");
      ::kill(pid, signal);
    });
    EXPECT_EQ(code, 75) << ::strsignal(signal);
    EXPECT_THAT(log(), HasSubstr("stopping")) << ::strsignal(signal);
  }
}

TEST_F(Launch, TheTimeLimitStopsTheRun) {
  Supervision what = supervision(kStops);
  what.time_limit = 1.0;
  EXPECT_EQ(supervise(what), 75);
  EXPECT_THAT(log(), HasSubstr("stopping"));
}

TEST_F(Launch, ASecondRequestKills) {
  const int code = in_process(
      supervision("trap '' USR1 TERM; echo $$ > $RUN/pid; log ready; while :; do sleep 0.02; done"), [&](pid_t pid) {
        wait_for("ready");
        ::kill(pid, SIGINT);
        std::this_thread::sleep_for(200ms);
        ::kill(pid, SIGINT);
      });
  EXPECT_EQ(code, 5);
  EXPECT_FALSE(alive(logged_pid()));
}

TEST_F(Launch, NoRestartAfterARequestToStop) {
  const int code = in_process(supervision("trap 'log died; kill -9 $$' USR1; log ready; while :; do sleep 0.02; done"),
                              [&](pid_t pid) {
                                wait_for("ready");
                                ::kill(pid, SIGTERM);
                              });
  EXPECT_EQ(code, 5);
  EXPECT_THAT(log(), ::testing::Not(HasSubstr("start 2")));
}

TEST_F(Launch, NothingOutlivesALauncherThatIsKilled) {
  const int code =
      in_process(supervision("echo $$ > $RUN/pid; log ready; while :; do sleep 0.02; done"), [&](pid_t pid) {
        wait_for("ready");
        ::kill(pid, SIGKILL);
      });
  EXPECT_EQ(code, -1);
  for (int i = 0; i < 500 && alive(logged_pid()); ++i) std::this_thread::sleep_for(10ms);
  EXPECT_FALSE(alive(logged_pid()));
}

TEST_F(Launch, RanksThatOutliveMpirunAreKilledBeforeTheRestart) {
  EXPECT_EQ(supervise_script(R"(
if [ $PLIMSOLL_ATTEMPT = 2 ]; then kill -0 $(cat $RUN/pid) 2>/dev/null && log survivor; finish 0; exit; fi
setsid sh -c 'echo $$ > $RUN/pid; exec sleep 100' > /dev/null 2>&1 &
while [ ! -s $RUN/pid ]; do sleep 0.02; done
kill -9 $$
)"),
            0);
  EXPECT_THAT(log(), ::testing::Not(HasSubstr("survivor")));
  EXPECT_FALSE(alive(logged_pid()));
}

/// The same scripts as two ranks under the real mpirun.
Supervision under_mpirun(Supervision what) {
  std::vector<std::string> command{"mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2"};
  command.insert(command.end(), what.command.begin(), what.command.end());
  what.command = std::move(command);
  what.resend_pause = 0.3;
  what.kill_grace = 5.0;
  return what;
}

bool has_mpirun() { return std::system("mpirun --version > /dev/null 2>&1") == 0; }

TEST_F(Launch, MpirunHandsTheRequestToAllRanks) {
  if (!has_mpirun()) GTEST_SKIP() << "no mpirun in PATH";
  constexpr const char* kRank = R"(
trap 'log stopping $OMPI_COMM_WORLD_RANK; [ $OMPI_COMM_WORLD_RANK = 1 ] || finish 75; exit 0' USR1
log ready $OMPI_COMM_WORLD_RANK
while :; do sleep 0.02; done
)";
  const int code = in_process(under_mpirun(supervision(kRank)), [&](pid_t pid) {
    wait_for("ready 0");
    wait_for("ready 1");
    ::kill(pid, SIGTERM);
  });
  EXPECT_EQ(code, 75);
  EXPECT_THAT(log(), ::testing::AllOf(HasSubstr("stopping 0"), HasSubstr("stopping 1")));
}

TEST_F(Launch, ARankKilledUnderMpirunIsRestarted) {
  if (!has_mpirun()) GTEST_SKIP() << "no mpirun in PATH";
  constexpr const char* kRank = R"(
if [ $PLIMSOLL_ATTEMPT = 2 ]; then [ $OMPI_COMM_WORLD_RANK = 1 ] || finish 0; exit 0; fi
[ $OMPI_COMM_WORLD_RANK = 1 ] && kill -9 $$
while :; do sleep 0.02; done
)";
  EXPECT_EQ(supervise(under_mpirun(supervision(kRank))), 0);
  EXPECT_THAT(log(), HasSubstr("start 2 --config c.toml --resume"));
}

TEST_F(Launch, AProgramThatIsNotThereIsNamed) {
  Supervision what = supervision("");
  what.command = {"no-such-mpirun", "-n", "2"};
  try {
    supervise(what);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kUsage);
    EXPECT_THAT(error.what(), HasSubstr("cannot start no-such-mpirun: No such file"));
  }
}

}  // namespace
}  // namespace plimsoll
