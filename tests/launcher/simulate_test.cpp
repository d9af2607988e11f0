// `plimsoll simulate` as a user types it, in this process.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "core/error.h"
#include "launcher/commands.h"
#include "tests/error_of.h"

namespace plimsoll {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;

class Simulate : public testing::Test {
 protected:
  void TearDown() override { std::filesystem::remove(file_); }
  std::string trace(const std::string& text) const {
    std::ofstream(file_) << text;
    return file_;
  }
  static std::vector<std::string> printed(const std::vector<std::string>& args) {
    testing::internal::CaptureStdout();
    EXPECT_EQ(run_simulate(args), 0);
    std::fflush(stdout);
    std::istringstream out(testing::internal::GetCapturedStdout());
    std::vector<std::string> lines;
    for (std::string line; std::getline(out, line);) lines.push_back(line);
    return lines;
  }
  static std::string refused(const std::vector<std::string>& args, ExitCode code = ExitCode::kUsage) {
    return error_of(code, [&] { run_simulate(args); });
  }

  std::string file_ = testing::TempDir() + "simulate-" + std::to_string(::getpid()) + ".jsonl";
};

TEST_F(Simulate, ListsItsScenarios) {
  const auto lines = printed({"--list"});
  EXPECT_GE(lines.size(), 30U);
  EXPECT_THAT(lines, testing::Contains(AllOf(StartsWith("neighbour "), HasSubstr("takes 8 GiB"))));
  EXPECT_EQ(printed({"--list", "--json"}).size(), lines.size());
}

TEST_F(Simulate, PrintsADecisionPerLineAndASummary) {
  const auto lines = printed({"--scenario", "calm", "--ranks", "4", "--steps", "50"});
  ASSERT_EQ(lines.size(), 5U);
  EXPECT_THAT(lines[0], StartsWith("baseline: "));
  EXPECT_THAT(lines[1], StartsWith("steps 1-25: "));
  EXPECT_THAT(lines[3], AllOf(StartsWith("predictive: 50 steps"), HasSubstr("samples/s"), HasSubstr("kept")));
  EXPECT_THAT(lines[4], AllOf(StartsWith("4 ranks: a decision takes "), HasSubstr(" ms (median of 2)"),
                              HasSubstr("add 368 bytes")));
}

TEST_F(Simulate, PrintsJsonWhereAProgramReadsIt) {
  const auto lines = printed({"--scenario", "classic-below", "--json"});
  ASSERT_EQ(lines.size(), 10U);
  for (const std::string& line : lines) EXPECT_TRUE(nlohmann::json::parse(line, nullptr, false).is_object()) << line;
  EXPECT_EQ(nlohmann::json::parse(lines[1])["plan"]["resolution"], 132);
  EXPECT_EQ(nlohmann::json::parse(lines[9])["summary"], "reactive");
}

TEST_F(Simulate, FollowsATrace) {
  std::string text;
  for (int i = 0; i < 25; ++i) text += "{\"peaks\": [0.7, 0.95]}\n";
  const auto lines = printed({"--trace", trace(text), "--micro", "8", "--share", "16"});
  ASSERT_EQ(lines.size(), 4U);
  EXPECT_THAT(lines[1], AllOf(HasSubstr("worst is rank 1"), HasSubstr("micro-batch 8 -> 6")));
}

TEST_F(Simulate, OfARunTakesThePolicyThatLiesBesideIt) {
  const std::filesystem::path folder = testing::TempDir() + "simulated-run-" + std::to_string(::getpid());
  std::filesystem::create_directories(folder);
  const std::string metrics = folder / "metrics.jsonl";
  for (int step = 1; step <= 4; ++step) {
    std::ofstream(metrics, std::ios::app)
        << R"({"samples":8,"plan":{"micro_batch":8},"memory":[{"peak":990,"predicted":980,"budget":)"
        << (step < 3 ? 1200 : 1000) << "}]}\n";
  }
  std::ofstream(folder / "config.toml") << "[memory]\npolicy = \"predictive\"\nadjustment_frequency = 2\n";
  EXPECT_THAT(refused({"--trace", metrics}, ExitCode::kData),
              AllOf(HasSubstr("candidates.json is not there"), HasSubstr("--policy reactive")));
  EXPECT_THAT(
      printed({"--trace", metrics, "--policy", "reactive"}).front(),
      AllOf(HasSubstr("the reactive policy, as asked; the run's own was predictive"), HasSubstr("config.toml")));
  std::ofstream(folder / "candidates.json") << R"({"candidates":[{"micro_batch":8,"bytes":980,"microseconds":80},)"
                                            << R"({"micro_batch":4,"bytes":700,"microseconds":90}]})";
  const auto lines = printed({"--trace", metrics});
  ASSERT_EQ(lines.size(), 6U);
  EXPECT_THAT(lines[0], AllOf(HasSubstr("the run's own predictive policy"), HasSubstr("2 candidates of"),
                              HasSubstr("policy.json is not there")));
  EXPECT_THAT(lines[3], AllOf(StartsWith("steps 3-4: "), HasSubstr("-> micro-batch 4")));
  const auto summary = nlohmann::json::parse(printed({"--trace", metrics, "--json"}).back());
  EXPECT_EQ(summary.at("policy_of"), lines[0]);
  std::ofstream(folder / "policy.json") << "{}";
  EXPECT_THAT(refused({"--trace", metrics}, ExitCode::kData), HasSubstr("policy.json"));
  for (const char* name : {"config.toml", "candidates.json"}) std::filesystem::remove(folder / name);
  EXPECT_THAT(printed({"--trace", metrics}).front(),
              AllOf(HasSubstr("the reactive policy; the run's own is not known"), HasSubstr("default settings")));
  std::filesystem::remove_all(folder);
}

TEST_F(Simulate, RefusesBadTracesWithFileAndLine) {
  const std::string file = trace("{\"peaks\": [0.7, 0.9]}\n{\"peaks\": [0.7]}\n");
  EXPECT_THAT(refused({"--trace", file}, ExitCode::kData), AllOf(HasSubstr(file + ":2"), HasSubstr("every rank")));
  EXPECT_THAT(refused({"--trace", file, "--ranks", "3"}, ExitCode::kData), HasSubstr("2 of 3 ranks"));
  trace("{\"peaks\": [NaN]}\n");
  EXPECT_THAT(refused({"--trace", file}, ExitCode::kData), AllOf(HasSubstr(file + ":1"), HasSubstr("NaN")));
  trace("{\"peaks\": [-1]}\n");
  EXPECT_THAT(refused({"--trace", file}, ExitCode::kData), HasSubstr("-1"));
  trace("");
  EXPECT_THAT(refused({"--trace", file}, ExitCode::kData), HasSubstr("no step"));
  EXPECT_THAT(refused({"--trace", file_ + ".no"}, ExitCode::kData), HasSubstr(".no"));
  trace("{\"peaks\": [0.5]}\n");
  EXPECT_THAT(refused({"--trace", file, "--policy", "predictive"}), HasSubstr("candidates"));
}

TEST_F(Simulate, RefusesBadOptions) {
  EXPECT_THAT(refused({}), HasSubstr("--trace FILE, --scenario NAME, --list"));
  EXPECT_THAT(refused({"--list", "--scenario", "calm"}), HasSubstr("give one of"));
  EXPECT_THAT(refused({"--scenario", "clam"}), HasSubstr("nearest one is calm"));
  EXPECT_THAT(refused({"--scenario", "calm", "--policy", "magic"}), HasSubstr("--policy is \"magic\""));
  EXPECT_THAT(refused({"--scenario", "calm", "--profile", "new"}), HasSubstr("--profile is \"new\""));
  EXPECT_THAT(refused({"--scenario", "calm", "--ranks", "0"}), HasSubstr("--ranks is 0"));
  EXPECT_THAT(refused({"--scenario", "calm", "--steps", "0"}), HasSubstr("--steps is 0"));
  EXPECT_THAT(refused({"--scenario", "calm", "--micro", "4"}), HasSubstr("--micro goes with --trace"));
}

TEST_F(Simulate, SaysWhatADecisionOfManyRanksTakes) {
  const auto lines = printed({"--scenario", "calm", "--ranks", "4096", "--share", "16", "--steps", "50", "--json"});
  const auto summary = nlohmann::json::parse(lines.back());
  EXPECT_EQ(summary.at("ranks"), 4096);
  EXPECT_GT(summary.at("decision_ms").get<double>(), 0.0);
  EXPECT_GT(summary.at("report_bytes").get<std::int64_t>(), 4096);
}

}  // namespace
}  // namespace plimsoll
