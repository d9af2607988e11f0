#include "report/console.h"

#include <gmock/gmock.h>

#include <cmath>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>

#include "core/bytes.h"

namespace plimsoll::report {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;
using namespace std::chrono_literals;

MemoryStatus example() {
  MemoryStatus status;
  status.window = 3;
  status.current = 212_MiB;
  status.current_budget = 300_MiB;
  status.peak = 231_MiB;
  status.budget = 300_MiB;
  status.plan = {4, 4, 112, 0, 0, 0, false, 7};
  status.blocks = 4;
  status.min_micro = 1;
  status.max_micro = 16;
  status.min_resolution = status.max_resolution = 112;
  status.note = "kept: inside the band";
  return status;
}

TEST(StatusLine, SaysAllAlsoWhenNothingChanges) {
  EXPECT_EQ(status_line(example()),
            "[memory] window 3 | current 212.0 MiB (70.7 %) | peak 231.0 MiB (77.0 %) | target 255.0 MiB (85.0 %) | "
            "budget 300.0 MiB | "
            "micro-batch 4 (1..16) x 4 | resolution 112 (fixed) | recompute 0 of 4 blocks | retries 0 | kept: inside "
            "the band");
}

TEST(StatusLine, BaselineRanksBoundsAndNoBudget) {
  MemoryStatus status = example();
  status.window = 0;
  status.world = 2;
  status.rank = 1;
  status.max_resolution = 448;
  status.budget = 0;
  const std::string line = status_line(status);
  EXPECT_THAT(line, StartsWith("[memory] baseline | rank 1 of 2 | current"));
  EXPECT_THAT(line, HasSubstr("resolution 112 (112..448)"));
  EXPECT_THAT(line, HasSubstr("peak 231.0 MiB (0.0 %)"));
  status.plan.recompute_blocks = 4;
  status.plan.recompute_expert = 3;
  status.plan.offload = true;
  EXPECT_THAT(status_line(status), HasSubstr("recompute 4 of 4 blocks, 3 expert, offloaded |"));
  status.plan.resolution = status.min_resolution = status.max_resolution = 0;
  EXPECT_THAT(status_line(status), HasSubstr("resolution as it is (fixed)"));
}

TEST(ProgressLine, ShowsStepLossSpeedPeakAndTimeLeft) {
  const Progress progress{120, 400, 0.1234, 18.23, 231_MiB, 300_MiB, 3723s};
  EXPECT_EQ(progress_line(progress),
            "step 120/400 (30 %) | loss 0.1234 | 18.2 samples/s | peak 231.0 MiB (77.0 %) | 1:02:03 left");
  EXPECT_THAT(progress_line({399, 400, 1, 1, 0, 0, 0s}), HasSubstr("(99 %)"));
  EXPECT_THAT(progress_line({0, 0, 1, 1, 0, 0, 0s}), HasSubstr("step 0/0 (0 %)"));
}

TEST(Duration, ReadsLikeAClock) {
  EXPECT_EQ(format_duration(0s), "0 s");
  EXPECT_EQ(format_duration(59s), "59 s");
  EXPECT_EQ(format_duration(725s), "12:05");
  EXPECT_EQ(format_duration(3723s), "1:02:03");
  EXPECT_EQ(format_duration(183845s), "2 d 03:04:05");
  EXPECT_EQ(format_duration(std::chrono::duration<double>(-5)), "0 s");
  EXPECT_EQ(format_duration(std::chrono::duration<double>(std::nan(""))), "0 s");
}

/// What a Console writes.
class Screen {
 public:
  Screen() : file_(std::tmpfile(), &std::fclose) {}
  std::FILE* file() { return file_.get(); }
  std::string text() {
    std::fflush(file_.get());
    std::rewind(file_.get());
    std::string result(10000, '\0');
    result.resize(std::fread(result.data(), 1, result.size(), file_.get()));
    return result;
  }

 private:
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file_;
};

Progress at_step(std::int64_t step) { return {step, 10, 0.5, 2.0, 1_MiB, 2_MiB, 9s}; }

TEST(Console, WithoutATerminalItPrintsPlainLinesNowAndThen) {
  Screen screen;
  {
    Console console(screen.file(), false, 4);
    for (std::int64_t step = 1; step <= 10; ++step) console.progress(at_step(step));
    console.line("done");
  }
  const std::string text = screen.text();
  EXPECT_THAT(text, Not(HasSubstr("\r")));
  EXPECT_EQ(text, progress_line(at_step(4)) + "\n" + progress_line(at_step(8)) + "\n" + progress_line(at_step(10)) +
                      "\ndone\n");
}

TEST(Console, OnATerminalTheProgressLineStaysUnderTheOthers) {
  Screen screen;
  const Console::Clock::time_point start{1h};
  {
    Console console(screen.file(), true, 1, 30);
    console.progress(at_step(1), start);
    console.progress(at_step(2), start + 50ms);  // too soon to be drawn
    console.line("[memory] window 1");
    console.progress(at_step(10), start + 60ms);  // the last always is
  }
  const std::string first = progress_line(at_step(1)).substr(0, 29), last = progress_line(at_step(10)).substr(0, 29);
  EXPECT_EQ(screen.text(), "\r" + first + "\x1b[K" + "\r\x1b[K[memory] window 1\n" + "\r" + first + "\x1b[K" + "\r" +
                               last + "\x1b[K\n");
}

TEST(Console, TheLauncherKnowsWhoWatches) {
  ::setenv("PLIMSOLL_TERMINAL", "1", 1);
  EXPECT_TRUE(watched_by_a_person());
  ::setenv("PLIMSOLL_TERMINAL", "0", 1);
  EXPECT_FALSE(watched_by_a_person());
  ::unsetenv("PLIMSOLL_TERMINAL");
  EXPECT_GT(terminal_columns(), 0u);
}

TEST(Records, AStepIsOneLineOfJson) {
  StepRecord record;
  record.step = 7;
  record.loss = 1.0 / 3.0;
  record.task_losses = {{"pick\n\"it\"", 0.25}};
  record.task_memory = {{"pick\n\"it\"", {2, 5, 1000, 990, 0.03, 0.02}}};
  record.grad_norm = std::numeric_limits<double>::quiet_NaN();
  record.samples = 32;
  record.step_ms = 500.0;
  record.ranks = {{231_MiB, 230_MiB, 300_MiB, 1}, {1, 2, 3, 4}};
  const std::string line = to_json(record);
  EXPECT_EQ(line.find('\n'), std::string::npos);
  const auto json = nlohmann::json::parse(line);
  EXPECT_EQ(json["step"], 7);
  EXPECT_EQ(json["loss"].get<double>(), 1.0 / 3.0);
  EXPECT_EQ(json["task_losses"]["pick\n\"it\""], 0.25);
  const auto& memory = json["task_memory"]["pick\n\"it\""];
  EXPECT_EQ(memory["samples"], 5);
  EXPECT_EQ(memory["predicted"], 1000);
  EXPECT_EQ(memory["mean_error"], 0.015);
  EXPECT_TRUE(json["grad_norm"].is_null());
  EXPECT_EQ(json["samples_per_second"], 64.0);
  EXPECT_EQ(json["memory"][0]["peak"], 231_MiB);
  EXPECT_EQ(json["memory"][1]["retries"], 4);
}

TEST(Records, ADecisionHoldsWhatWasSeenPredictedChosenAndWhy) {
  DecisionRecord record;
  record.step = 25;
  record.window = 1;
  record.policy = "reactive";
  record.before.micro_batch = 4;
  record.after.micro_batch = 6;
  record.changed = true;
  record.reason = "peak 61 % is under the band";
  auto json = nlohmann::json::parse(to_json(record));
  EXPECT_EQ(json["after"]["micro_batch"], 6);
  EXPECT_TRUE(json["predicted_peak"].is_null());
  EXPECT_EQ(json["reason"], record.reason);
  record.predicted_peak = 5;
  json = nlohmann::json::parse(to_json(record));
  EXPECT_EQ(json["predicted_peak"], 5);
}

TEST(CacheUse, IsALineForAPersonAndOneForAProgram) {
  CacheUseRecord use;
  use.step = 12;
  use.loaded = 100;
  use.from_disk = 60;
  use.kept = 40;
  use.disk_bytes = std::int64_t{3} << 20;
  EXPECT_EQ(to_line(use),
            "feature cache: 60 of 100 samples loaded came with their features, 40 were kept; 3.00 MiB on disk");
  EXPECT_TRUE(nlohmann::json::parse(to_json(use))["saved_ms"].is_null());
  use.from_memory = 20;
  use.memory_bytes = std::int64_t{1} << 20;
  use.age = 2.5;
  use.saved_ms = 1250;
  use.int8_error = 0.01;
  EXPECT_EQ(to_line(use),
            "feature cache: 80 of 100 samples loaded came with their features, 40 were kept; 3.00 MiB on disk; 20 of "
            "them from memory (1.00 MiB); those read were made 2.5 steps before; 1.2 s of computing saved; as bytes, "
            "with an error of 0.0100");
  const auto json = nlohmann::json::parse(to_json(use));
  EXPECT_EQ(json["what"], "use");
  EXPECT_EQ(json["from_memory"], 20);
  EXPECT_EQ(json["saved_ms"], 1250);
  EXPECT_EQ(nlohmann::json::parse(to_json(DriftRecord{5, 8, 0.25, 0.5}))["drift"], 0.25);
}

}  // namespace
}  // namespace plimsoll::report
