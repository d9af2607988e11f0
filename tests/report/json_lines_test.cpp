#include "report/json_lines.h"

#include <gmock/gmock.h>
#include <unistd.h>

#include <fstream>

#include "core/error.h"
#include "core/file.h"
#include "report/exit_file.h"

namespace plimsoll::report {
namespace {

using ::testing::HasSubstr;

class RunFolder : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::path(::testing::TempDir()) / ("report-" + std::to_string(::getpid()));
    std::filesystem::create_directories(folder_);
    file_ = folder_ / "metrics.jsonl";
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  void put(const std::string& text) { std::ofstream(file_) << text; }
  std::filesystem::path folder_, file_;
};

TEST_F(RunFolder, AppendsLinesThatOthersSeeAtOnce) {
  JsonLines lines(file_, 0);
  lines.append(R"({"step":1})");
  EXPECT_EQ(read_file(file_), "{\"step\":1}\n");
  lines.append(R"({"step":2})");
  lines.sync();
  EXPECT_EQ(read_file(file_), "{\"step\":1}\n{\"step\":2}\n");
}

TEST_F(RunFolder, AFreshRunStartsEmpty) {
  put("{\"step\":1}\n");
  const JsonLines lines(file_, 0);
  EXPECT_EQ(read_file(file_), "");
  EXPECT_EQ(lines.kept_step(), 0);
}

TEST_F(RunFolder, AResumedRunNeitherMissesNorDoublesAStep) {
  put("{\"step\":1}\n{\"step\":2}\n{\"step\":3}\n");
  {
    JsonLines lines(file_, 2);
    EXPECT_EQ(lines.kept_step(), 2);
    lines.append(R"({"step":3,"again":true})");
  }
  EXPECT_EQ(read_file(file_), "{\"step\":1}\n{\"step\":2}\n{\"step\":3,\"again\":true}\n");
}

TEST_F(RunFolder, SeveralDecisionsOfOneStepAreKept) {
  put("{\"step\":5}\n{\"step\":5,\"b\":1}\n{\"step\":9}\n");
  const JsonLines lines(file_, 5);
  EXPECT_EQ(read_file(file_), "{\"step\":5}\n{\"step\":5,\"b\":1}\n");
}

TEST_F(RunFolder, TornAndForeignLinesAreCutWithAllThatFollows) {
  for (const char* bad : {"{\"step\":2", "{\"step\":2}", "{\"step\":2\n", "nonsense\n{\"step\":2}\n", "{\"loss\":1}\n",
                          "{\"step\":\"2\"}\n", "[2]\n", "\n{\"step\":2}\n", "{\"step\":2.5}\n"}) {
    put(std::string("{\"step\":1}\n") + bad);
    const JsonLines lines(file_, 100);
    EXPECT_EQ(read_file(file_), "{\"step\":1}\n") << bad;
    EXPECT_EQ(lines.kept_step(), 1);
  }
}

TEST_F(RunFolder, CutAtEveryByteNothingButWholeRecordsSurvive) {
  const std::string whole = "{\"step\":1,\"loss\":0.5}\n{\"step\":2,\"loss\":0.25}\n";
  for (std::size_t n = 0; n <= whole.size(); ++n) {
    put(whole.substr(0, n));
    const JsonLines lines(file_, 2);
    const std::size_t first = whole.find('\n') + 1;
    EXPECT_EQ(read_file(file_), whole.substr(0, n == whole.size() ? n : n >= first ? first : 0)) << n;
  }
}

TEST_F(RunFolder, AMissingFolderOrAFullDiskNamesTheFile) {
  try {
    JsonLines(folder_ / "no/metrics.jsonl", 0);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kCheckpoint);
    EXPECT_THAT(error.what(), HasSubstr("no/metrics.jsonl"));
  }
}

TEST_F(RunFolder, ExitRecordRoundTrip) {
  EXPECT_FALSE(read_exit_record(folder_));
  write_exit_record(folder_, {ExitCode::kStopped, "stopped \"on request\"\n\xFF", 12, "runs/a/checkpoints/step-12", 3});
  const auto record = read_exit_record(folder_);
  ASSERT_TRUE(record);
  EXPECT_EQ(record->exit_code, ExitCode::kStopped);
  EXPECT_EQ(record->step, 12);
  EXPECT_EQ(record->checkpoint, "runs/a/checkpoints/step-12");
  EXPECT_EQ(record->attempt, 3);
  EXPECT_THAT(record->reason, HasSubstr("stopped \"on request\"\n"));
  write_exit_record(folder_, {ExitCode::kDone, "done", 1, std::nullopt, 1});
  EXPECT_FALSE(read_exit_record(folder_)->checkpoint);
  remove_exit_record(folder_);
  remove_exit_record(folder_);
  EXPECT_FALSE(read_exit_record(folder_));
}

TEST_F(RunFolder, ADamagedExitRecordCountsAsAbsent) {
  for (const char* text :
       {"", "{", "[]", "{\"exit_code\":0}", R"({"exit_code":1,"reason":"","step":0,"checkpoint":null,"attempt":1})",
        R"({"exit_code":"0","reason":"","step":0,"checkpoint":null,"attempt":1})"}) {
    std::ofstream(exit_file(folder_)) << text;
    EXPECT_FALSE(read_exit_record(folder_)) << text;
  }
}

TEST_F(RunFolder, AttemptComesFromTheLauncher) {
  ::unsetenv("PLIMSOLL_ATTEMPT");
  EXPECT_EQ(attempt_number(), 1);
  ::setenv("PLIMSOLL_ATTEMPT", "4", 1);
  EXPECT_EQ(attempt_number(), 4);
  ::setenv("PLIMSOLL_ATTEMPT", "x", 1);
  EXPECT_EQ(attempt_number(), 1);
  ::unsetenv("PLIMSOLL_ATTEMPT");
}

}  // namespace
}  // namespace plimsoll::report
