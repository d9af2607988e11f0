// What a run tells a server over a real socket, and that it never waits for one. No test here counts on a time: what is
// asserted is what happened before what.
#include <gmock/gmock.h>
#include <unistd.h>

#include <condition_variable>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>

#include "core/error.h"
#include "core/file.h"
#include "report/mlflow_log.h"
#include "tests/report/mlflow_server.h"

namespace plimsoll::report {
namespace {

using std::chrono::milliseconds;
using ::testing::SizeIs;

constexpr milliseconds kForever{600000};  // longer than any test may take

/// A door that a server's answer waits at.
class Door {
 public:
  void pass() {
    std::unique_lock lock(mutex_);
    ++waiting_;
    changed_.notify_all();
    changed_.wait(lock, [this] { return open_; });
  }
  void await_somebody() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return waiting_ > 0; });
  }
  void open() {
    const std::lock_guard lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int waiting_ = 0;
  bool open_ = false;
};

class MlflowNetwork : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::path(::testing::TempDir()) / ("mlflow-network-" + std::to_string(::getpid()));
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  MlflowOptions options(const std::string& uri, bool resumed = false) const {
    MlflowOptions options{folder_, uri,      "plimsoll", "[lora]\nrank = 8\n[train]\nmax_steps = 4\n",
                          resumed, kForever, {}};
    options.times = patient();
    return options;
  }
  static MlflowTimes patient() { return {{kForever, kForever}, milliseconds(1), milliseconds(1), milliseconds(20)}; }
  /// Whatever the model answers, one request at a time.
  LoopbackServer::Answer modelled() {
    return [this](const std::string& path, const std::string& body) -> std::optional<HttpAnswer> {
      const std::lock_guard lock(mutex_);
      return model_.answer(path, body);
    };
  }
  /// An address at which nobody answers, until a server is started there.
  static std::uint16_t free_port() {
    return LoopbackServer([](auto&, auto&) { return std::nullopt; }).port();
  }
  static std::string at(std::uint16_t port) { return "http://127.0.0.1:" + std::to_string(port); }
  static void steps(MlflowLog& log, std::int64_t first, std::int64_t last) {
    for (std::int64_t step = first; step <= last; ++step) log.step(step_record(step));
  }
  const ModelServer::Run& run(const std::string& id = "run1") { return model_.runs.at(id); }

  std::filesystem::path folder_;
  std::mutex mutex_;
  ModelServer model_;
};

TEST_F(MlflowNetwork, ARunIsToldFromItsBeginningToItsEnd) {
  LoopbackServer server(modelled());
  std::ofstream(folder_ / "loader.toml") << "[data]\nworkers = 3\nprefetch = 5\n";
  MlflowLog log(options(server.address() + "/behind/a/proxy"));
  steps(log, 1, 40);
  log.finish(ExitCode::kDone);
  ASSERT_THAT(model_.runs, SizeIs(1));
  EXPECT_EQ(run().status, "FINISHED");
  EXPECT_EQ(run().name, folder_.filename().string());
  EXPECT_EQ(run().params, (std::map<std::string, std::string>{{"lora.rank", "8"}, {"train.max_steps", "4"}}));
  EXPECT_EQ(run().tags.at("recommended.data.workers"), "3");
  EXPECT_EQ(run().tags.at("recommended.data.prefetch"), "5");
  EXPECT_EQ(run().tags.at("loader.toml"), "[data]\nworkers = 3\nprefetch = 5\n");
  EXPECT_EQ(ModelServer::steps(run(), "loss"), up_to(40));
  EXPECT_EQ(static_cast<std::size_t>(run().points), run().metrics.size());
}

TEST_F(MlflowNetwork, NobodyWaitsForAServerThatHangs) {
  Door door;
  std::atomic<int> answered{0};
  LoopbackServer server([&](const std::string& path, const std::string& body) -> std::optional<HttpAnswer> {
    door.pass();
    ++answered;
    const std::lock_guard lock(mutex_);
    return model_.answer(path, body);
  });
  MlflowLog log(options(server.address()));
  door.await_somebody();
  steps(log, 1, 500);
  log.sync();
  EXPECT_EQ(answered, 0) << "all steps were taken while the first request was without an answer";
  door.open();
  log.finish(ExitCode::kDone);
  EXPECT_EQ(ModelServer::steps(run(), "loss"), up_to(500));
  EXPECT_EQ(run().status, "FINISHED");
}

TEST_F(MlflowNetwork, TheEndOfARunDoesNotWaitForAServerThatHangs) {
  Door door;
  std::atomic<int> answered{0};
  {
    LoopbackServer hanging([&](const std::string&, const std::string&) -> std::optional<HttpAnswer> {
      door.pass();
      ++answered;
      return std::nullopt;
    });
    auto short_flush = options(hanging.address());
    short_flush.flush = milliseconds(50);
    MlflowLog log(short_flush);
    door.await_somebody();
    steps(log, 1, 30);
    log.finish(ExitCode::kStopped);
    EXPECT_EQ(answered, 0) << "the run ended while its first request was without an answer";
    door.open();
  }
  LoopbackServer server(modelled());
  const MlflowSent sent = send_spooled(folder_, server.address(), patient());
  EXPECT_TRUE(sent.complete) << sent.trouble;
  EXPECT_EQ(ModelServer::steps(run(), "loss"), up_to(30));
  EXPECT_EQ(run().status, "KILLED");
}

TEST_F(MlflowNetwork, ConnectionsThatBreakAndErrorsOfTheServerLoseNothing) {
  std::map<std::string, int> requests;  // of each kind
  LoopbackServer server([&](const std::string& path, const std::string& body) -> std::optional<HttpAnswer> {
    const std::lock_guard lock(mutex_);
    const int turn = requests[path]++;
    if (turn == 0) return std::nullopt;
    if (turn == 1) return HttpAnswer{500, "internal error", ""};
    auto answer = model_.answer(path, body);
    if (turn == 2) return std::nullopt;  // done, but the answer is lost
    return answer;
  });
  MlflowLog log(options(server.address()));
  steps(log, 1, 200);
  log.finish(ExitCode::kDone);
  ASSERT_THAT(model_.runs, SizeIs(1));
  EXPECT_EQ(ModelServer::steps(run(), "loss"), up_to(200));
  EXPECT_EQ(run().status, "FINISHED");
}

TEST_F(MlflowNetwork, ARequestThatTakesTooLongIsGivenUpAndMadeAgain) {
  Door door;
  std::atomic<int> requests{0};
  LoopbackServer server([&](const std::string& path, const std::string& body) -> std::optional<HttpAnswer> {
    if (requests++ == 0) {
      door.pass();
      return std::nullopt;
    }
    const std::lock_guard lock(mutex_);
    return model_.answer(path, body);
  });
  auto impatient = options(server.address());
  impatient.times.request.total = milliseconds(300);
  MlflowLog log(impatient);
  steps(log, 1, 5);
  log.finish(ExitCode::kDone);
  EXPECT_EQ(run().status, "FINISHED") << "though the first request is still without an answer";
  door.open();
}

TEST_F(MlflowNetwork, AServerThatComesLaterGetsEverything) {
  const std::uint16_t port = free_port();
  MlflowLog log(options(at(port)));
  steps(log, 1, 20);
  LoopbackServer server(modelled(), port);
  steps(log, 21, 40);
  log.finish(ExitCode::kDone);
  EXPECT_EQ(ModelServer::steps(run(), "loss"), up_to(40));
  EXPECT_EQ(run().status, "FINISHED");
}

TEST_F(MlflowNetwork, AResumedRunGoesOnWithTheSameRun) {
  const std::uint16_t port = free_port();
  {
    auto first = options(at(port));
    first.flush = milliseconds(0);
    MlflowLog log(first);
    steps(log, 1, 5);
    log.finish(ExitCode::kStopped);
  }
  LoopbackServer server(modelled(), port);
  auto second = options(at(port), true);
  second.configuration = "[lora]\nrank = 8\n[train]\nmax_steps = 9\n[added]\nkey = \"x\"\n";
  MlflowLog log(second);
  steps(log, 4, 8);  // from a checkpoint of step 3
  log.finish(ExitCode::kDone);
  ASSERT_THAT(model_.runs, SizeIs(1));
  EXPECT_EQ(run().status, "FINISHED");
  EXPECT_EQ(ModelServer::steps(run(), "loss"), up_to(8));
  EXPECT_EQ(run().params.at("train.max_steps"), "4") << "what a server was told stays";
  EXPECT_EQ(run().params.at("added.key"), "x");
  EXPECT_EQ(run().tags.at("resumed.train.max_steps"), "9");
  EXPECT_EQ(run().tags.count("resumed.lora.rank"), 0U);
  EXPECT_FALSE(std::filesystem::exists(mlflow_refused_file(folder_)));
}

TEST_F(MlflowNetwork, ASettingThatIsTakenBackIsToldToo) {
  LoopbackServer server(modelled());
  for (const char* steps : {"4", "9", "4", "4"}) {
    auto attempt = options(server.address(), true);
    attempt.configuration = std::string("[train]\nmax_steps = ") + steps + "\n";
    MlflowLog(attempt).finish(ExitCode::kStopped);
  }
  EXPECT_EQ(run().tags.at("resumed.train.max_steps"), "4");
  const std::string text = read_file(mlflow_spool_file(folder_));
  std::size_t tags = 0;
  for (auto at = text.find("resumed."); at != std::string::npos; at = text.find("resumed.", at + 1)) ++tags;
  EXPECT_EQ(tags, 2U) << "only what changes is told";
}

TEST_F(MlflowNetwork, ARunBegunAnewInTheSameFolderIsAnotherRun) {
  LoopbackServer server(modelled());
  {
    MlflowSpool spool(folder_);  // what a run left that was killed before its first checkpoint
    spool.append(mlflow_begin_line("plimsoll", "killed", "aa", 1000));
    spool.append(mlflow_step_line(step_record(1), 1001));
  }
  MlflowLog log(options(server.address()));
  steps(log, 1, 3);
  log.finish(ExitCode::kDone);
  ASSERT_THAT(model_.runs, SizeIs(2));
  EXPECT_EQ(run("run1").status, "KILLED");
  EXPECT_EQ(ModelServer::steps(run("run1"), "loss"), up_to(1));
  EXPECT_EQ(run("run2").status, "FINISHED");
  EXPECT_EQ(ModelServer::steps(run("run2"), "loss"), up_to(3));
}

TEST_F(MlflowNetwork, ARunThatEndsWithoutAWordHasFailed) {
  LoopbackServer server(modelled());
  {
    MlflowLog log(options(server.address()));
    steps(log, 1, 3);
  }
  // It gets a second to say so, and what did not fit in waits.
  EXPECT_TRUE(send_spooled(folder_, server.address(), patient()).complete);
  EXPECT_EQ(run().status, "FAILED");
  EXPECT_EQ(ModelServer::steps(run(), "loss"), up_to(3));
}

TEST_F(MlflowNetwork, SendingWithoutASpoolOrAnAddressIsAnErrorOfUse) {
  const auto code = [&](const std::string& uri) {
    try {
      send_spooled(folder_, uri, patient());
    } catch (const Error& error) {
      return error.code();
    }
    return ExitCode::kDone;
  };
  EXPECT_EQ(code("http://127.0.0.1:1"), ExitCode::kUsage);
  MlflowSpool(folder_).append(mlflow_begin_line("plimsoll", "run", "aa", 1));
  EXPECT_EQ(code("mlruns"), ExitCode::kUsage);
}

TEST_F(MlflowNetwork, AServerThatIsDownIsATroubleThatIsNamed) {
  MlflowSpool(folder_).append(mlflow_begin_line("plimsoll", "run", "aa", 1));
  const MlflowSent sent = send_spooled(folder_, at(free_port()), patient());
  EXPECT_FALSE(sent.complete);
  EXPECT_NE(sent.trouble, "");
}

TEST_F(MlflowNetwork, ADiskThatRefusesEndsTheRunLikeTheOtherStreams) {
  auto nowhere = options("http://127.0.0.1:1");
  nowhere.run_dir = folder_ / "absent";
  try {
    MlflowLog log(nowhere);
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kCheckpoint);
  }
}

}  // namespace
}  // namespace plimsoll::report
