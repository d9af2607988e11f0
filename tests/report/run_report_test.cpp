// Reports of runs whose streams are written here by hand, with answers that can be worked out on paper.

#include <gmock/gmock.h>
#include <unistd.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/file.h"
#include "report/report_files.h"
#include "report/report_json.h"
#include "report/shown_text.h"
#include "tests/error_of.h"

namespace plimsoll::report {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using Json = nlohmann::ordered_json;

class RunReport : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::path(::testing::TempDir()) / ("run-report-" + std::to_string(::getpid()));
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  void put(const char* name, const std::string& text) const { std::ofstream(folder_ / name) << text; }
  void put_metrics(const std::string& text) const { put("metrics.jsonl", text); }
  std::string error() const {
    return error_of(ExitCode::kData, [&] { read_run(folder_); });
  }
  Json batches() const { return Json::parse(batch_metrics_json(read_run(folder_))); }
  Json epochs() const { return Json::parse(epoch_metrics_json(summarise_epochs(read_run(folder_)))); }
  Json report() const {
    const RunStreams run = read_run(folder_);
    return Json::parse(training_report_json(run, summarise_run(run)));
  }

  std::filesystem::path folder_;
};

/// Five steps of 4 samples over a dataset of 10: step 3 begins at sample 8, in the first pass, and ends in the second.
std::string five_steps() {
  std::string text;
  const double losses[] = {4, 2, 3, 1, 1.5};
  const int peaks[] = {100, 300, 200, 50, 60};
  for (int i = 0; i < 5; ++i) {
    text += Json({{"step", i + 1},
                  {"epoch", 0.4 * (i + 1)},
                  {"loss", losses[i]},
                  {"task_losses", {{"pick", losses[i] + 1}, {"place", losses[i] - 1}}},
                  {"task_counts", {{"pick", i + 1}, {"place", 3 - i > 0 ? 3 - i : 0}}},
                  {"task_memory",
                   {{"pick",
                     {{"micro_batches", 2},
                      {"samples", 4},
                      {"predicted", 440},
                      {"measured", 400},
                      {"mean_error", 0.1},
                      {"largest_error", 0.1 * (i + 1)}}}}},
                  {"grad_norm", 1.0},
                  {"lr", 0.001},
                  {"vl_lr", 0.0001},
                  {"samples", 4},
                  {"first_sample", 4 * i},
                  {"live", 4},
                  {"samples_per_second", 8.0},
                  {"step_ms", 500.0},
                  {"load_ms", i < 3 ? 0.0 : 500.0},
                  {"micro_batches", 2},
                  {"skipped", false},
                  {"memory",
                   {{{"peak", peaks[i]}, {"predicted", 200}, {"budget", 1000}, {"retries", i == 1 ? 2 : 0}},
                    {{"peak", peaks[i] / 2}, {"predicted", 0}, {"budget", 400}, {"retries", i == 1 ? 1 : 0}}}},
                  {"attempt", i < 4 ? 1 : 2}})
                .dump() +
            "\n";
  }
  return text;
}

TEST_F(RunReport, AStepIsAnEntry) {
  put_metrics(five_steps());
  const Json steps = batches();
  ASSERT_EQ(steps.size(), 5U);
  const Json& second = steps[1];
  EXPECT_EQ(second["step"], 2);
  EXPECT_EQ(second["epoch"], 0.8);
  EXPECT_EQ(second["loss"], 2);
  EXPECT_EQ(second["task_losses"]["place"], 1);
  EXPECT_EQ(second["task_counts"]["pick"], 2);
  EXPECT_EQ(second["task_memory"]["pick"]["measured"], 400);
  EXPECT_DOUBLE_EQ(second["task_memory"]["pick"]["mean_error"].get<double>(), 0.1);
  EXPECT_FALSE(second["task_memory"].contains("place")) << "nothing was compared";
  EXPECT_EQ(second["lr"], 0.001);
  EXPECT_EQ(second["vl_lr"], 0.0001);
  EXPECT_EQ(second["grad_norm"], 1.0);
  EXPECT_EQ(second["samples_per_second"], 8.0);
  EXPECT_EQ(second["step_ms"], 500.0);
  EXPECT_EQ(second["load_ms"], 0.0);
  EXPECT_EQ(second["micro_batches"], 2);
  // 150 of 400 is more than 300 of 1000.
  EXPECT_EQ(second["worst_rank"], 1);
  EXPECT_EQ(second["peak"], 150);
  EXPECT_EQ(second["budget"], 400);
  EXPECT_EQ(second["retries"], 3);
  EXPECT_EQ(second["skipped"], false);
  EXPECT_EQ(steps[4]["attempt"], 2);
}

TEST_F(RunReport, MemoryOfATaskIsOfItsSamples) {
  put_metrics(five_steps());
  const Json tasks = report()["tasks"];
  const Json& memory = tasks["pick"]["memory"];
  EXPECT_EQ(memory["micro_batches"], 10);
  EXPECT_EQ(memory["samples"], 20);
  EXPECT_EQ(memory["predicted_a_sample"], 110);
  EXPECT_EQ(memory["measured_a_sample"], 100);
  EXPECT_DOUBLE_EQ(memory["mean_relative_error"], 0.1);
  EXPECT_DOUBLE_EQ(memory["largest_relative_error"], 0.5);
  EXPECT_EQ(tasks["place"]["memory"], nullptr);
}

TEST_F(RunReport, EpochsBeginWhereTheirFirstSampleIs) {
  put_metrics(five_steps());
  put("decisions.jsonl", R"({"step":2,"changed":true,"reason":"a"})"
                         "\n"
                         R"({"step":3,"changed":false,"reason":"b"})"
                         "\n"
                         R"({"step":3,"changed":true,"reason":"c"})"
                         "\n"
                         R"({"step":5,"changed":true,"reason":"d"})"
                         "\n");
  const Json found = epochs();
  ASSERT_EQ(found.size(), 2U);
  const Json& first = found[0];
  EXPECT_EQ(first["epoch"], 1);
  EXPECT_EQ(first["first_step"], 1);
  EXPECT_EQ(first["last_step"], 3);
  EXPECT_EQ(first["steps"], 3);
  EXPECT_EQ(first["samples"], 12);
  EXPECT_DOUBLE_EQ(first["mean_loss"], 3.0);
  EXPECT_EQ(first["min_loss"], 2);
  EXPECT_EQ(first["max_loss"], 4);
  EXPECT_DOUBLE_EQ(first["samples_per_second"], 8.0);
  EXPECT_EQ(first["waiting_share"], 0.0);
  EXPECT_EQ(first["retries"], 3);
  EXPECT_EQ(first["steps_replayed"], 1);
  EXPECT_EQ(first["plan_changes"], 2);
  EXPECT_EQ(first["worst_peak"]["peak"], 150);
  EXPECT_EQ(first["worst_peak"]["fraction"], 0.375);
  EXPECT_EQ(first["worst_peak"]["step"], 2);
  const Json& second = found[1];
  EXPECT_EQ(second["epoch"], 2);
  EXPECT_EQ(second["steps"], 2);
  EXPECT_DOUBLE_EQ(second["samples_per_second"], 4.0);  // 8 samples in 1 s of computing and 1 s of waiting
  EXPECT_EQ(second["waiting_share"], 0.5);
  EXPECT_EQ(second["retries"], 0);
  EXPECT_EQ(second["plan_changes"], 1);
}

TEST_F(RunReport, TasksAreWeightedByTheirSamples) {
  put_metrics(five_steps());
  const Json tasks = epochs()[0]["tasks"];
  // pick: 1 x 5, 2 x 3, 3 x 4; place: 3 x 3, 2 x 1, 1 x 2.
  EXPECT_DOUBLE_EQ(tasks["pick"]["mean_loss"], 23.0 / 6.0);
  EXPECT_DOUBLE_EQ(tasks["place"]["mean_loss"], 13.0 / 6.0);
  EXPECT_EQ(tasks["pick"]["samples"], 6);
  EXPECT_EQ(tasks["pick"]["steps"], 3);
  EXPECT_EQ(tasks["place"]["last_loss"], 2);
}

TEST_F(RunReport, TasksWithoutCountsAreWeightedByStep) {
  put_metrics("{\"step\":1,\"task_losses\":{\"a\":1}}\n{\"step\":2,\"task_losses\":{\"a\":4,\"b\":null}}\n");
  const Json tasks = report()["tasks"];
  EXPECT_EQ(tasks["a"]["mean_loss"], 2.5);
  EXPECT_TRUE(tasks["a"]["samples"].is_null());
  EXPECT_TRUE(tasks["b"]["mean_loss"].is_null());
  EXPECT_EQ(tasks["b"]["steps"], 0);
}

TEST_F(RunReport, TheRunInNumbers) {
  put_metrics(five_steps());
  put("exit.json", R"({"exit_code":0,"reason":"done","step":5,"checkpoint":null,"attempt":2})");
  const Json found = report();
  EXPECT_EQ(found["first_step"], 1);
  EXPECT_EQ(found["last_step"], 5);
  EXPECT_EQ(found["attempts"], 2);
  EXPECT_EQ(found["epochs"], 2.0);
  EXPECT_EQ(found["samples"], 20);
  EXPECT_EQ(found["first_loss"], 4);
  EXPECT_EQ(found["last_loss"], 1.5);
  EXPECT_EQ(found["best_loss"], 1);
  EXPECT_EQ(found["best_step"], 4);
  EXPECT_DOUBLE_EQ(found["mean_loss"], 2.3);
  EXPECT_EQ(found["trend"]["window"], 5);
  EXPECT_DOUBLE_EQ(found["trend"]["last"], 2.3);
  EXPECT_EQ(found["seconds_computing"], 2.5);
  EXPECT_EQ(found["seconds_waiting"], 1.0);
  EXPECT_DOUBLE_EQ(found["samples_per_second"], 20 / 3.5);
  EXPECT_EQ(found["retries"], 3);
  EXPECT_EQ(found["steps_replayed"], 1);
  EXPECT_EQ(found["steps_skipped"], 0);
  EXPECT_EQ(found["outcome"]["reason"], "done");
  EXPECT_EQ(found["torn_lines"], 0);
}

TEST_F(RunReport, EveryRankHasItsPeaks) {
  put_metrics(R"({"step":1,"memory":[{"peak":80,"budget":100},{"peak":10,"budget":100}]})"
              "\n"
              R"({"step":2,"memory":[{"peak":60,"budget":50,"retries":1},{"peak":30,"budget":100}]})"
              "\n");
  const Json ranks = report()["ranks"];
  ASSERT_EQ(ranks.size(), 2U);
  EXPECT_EQ(ranks[0]["peak"], 80);
  EXPECT_EQ(ranks[0]["peak_step"], 1);
  EXPECT_EQ(ranks[0]["largest_fraction"], 1.2);  // a budget that fell: the smaller peak was the fuller one
  EXPECT_EQ(ranks[0]["budget"], 50);
  EXPECT_EQ(ranks[0]["fraction_step"], 2);
  EXPECT_EQ(ranks[0]["retries"], 1);
  EXPECT_EQ(ranks[1]["peak"], 30);
  EXPECT_EQ(report()["worst_peak"]["peak"], 60);
}

TEST_F(RunReport, PredictionsAreComparedWithPeaks) {
  put_metrics(five_steps());  // rank 0: 200 foretold of 100, 300, 200, 50, 60; rank 1: nothing
  const Json found = report()["predictions"];
  EXPECT_EQ(found["compared"], 5);
  EXPECT_EQ(found["exceeded"], 1);
  EXPECT_EQ(found["largest_excess_bytes"], 100);
  EXPECT_DOUBLE_EQ(found["mean_relative_error"], (1.0 + 1.0 / 3 + 0.0 + 3.0 + 140.0 / 60) / 5);
  EXPECT_DOUBLE_EQ(found["largest_relative_error"], 3.0);
}

TEST_F(RunReport, TheTrendIsTheMeanOfWindows) {
  EXPECT_THAT(moving_mean(std::vector<double>{4, 2, 3, 1}, 2), ElementsAre(4, 3, 2.5, 2));
  EXPECT_THAT(moving_mean(std::vector<double>{4, 2}, 1), ElementsAre(4, 2));
  EXPECT_THAT(moving_mean({}, 3), IsEmpty());
  std::string text;
  for (int i = 1; i <= 200; ++i) text += fmt::format("{{\"step\":{},\"loss\":{}}}\n", i, i <= 100 ? 200 - i : i);
  put_metrics(text);
  const Json trend = report()["trend"];
  EXPECT_EQ(trend["window"], 10);
  EXPECT_DOUBLE_EQ(trend["first"], 194.5);   // of 199 .. 190
  EXPECT_DOUBLE_EQ(trend["last"], 195.5);    // of 191 .. 200
  EXPECT_DOUBLE_EQ(trend["lowest"], 102.5);  // of 104 .. 100 and 101 .. 105
}

TEST_F(RunReport, SkippedStepsAndNullsAreInNoLoss) {
  put_metrics(
      "{\"step\":1,\"loss\":2}\n{\"step\":2,\"loss\":null,\"skipped\":true}\n"
      "{\"step\":3,\"loss\":9,\"skipped\":true,\"task_losses\":{\"a\":9}}\n{\"step\":4,\"loss\":4,\"grad_norm\":null}"
      "\n");
  const Json found = report();
  EXPECT_EQ(found["mean_loss"], 3);
  EXPECT_EQ(found["max_loss"], 4);
  EXPECT_EQ(found["steps_skipped"], 2);
  EXPECT_TRUE(found["tasks"]["a"]["mean_loss"].is_null());
  EXPECT_TRUE(batches()[1]["loss"].is_null());
  EXPECT_TRUE(batches()[3]["grad_norm"].is_null());
}

TEST_F(RunReport, PlanChangesComeWithTheirReasons) {
  put_metrics(five_steps());
  put("decisions.jsonl",
      R"({"step":2,"changed":true,"reason":"room","before":{"micro_batch":2},"after":{"micro_batch":8},"predicted_peak":7})"
      "\n"
      R"({"step":3,"cache":"rebuild","drift":0.25,"reason":"drift"})"
      "\n"
      R"({"step":4,"changed":false,"reason":"kept"})"
      "\n");
  const Json found = report();
  EXPECT_EQ(found["decisions"], 2);
  ASSERT_EQ(found["plan_changes"].size(), 1U);
  EXPECT_EQ(found["plan_changes"][0]["step"], 2);
  EXPECT_EQ(found["plan_changes"][0]["reason"], "room");
  EXPECT_EQ(found["plan_changes"][0]["before"]["micro_batch"], 2);
  EXPECT_EQ(found["plan_changes"][0]["after"]["micro_batch"], 8);
  EXPECT_EQ(found["plan_changes"][0]["predicted_peak"], 7);
  EXPECT_EQ(found["cache"]["rebuilds"], 1);
}

TEST_F(RunReport, CacheUseIsSummedUp) {
  put_metrics(five_steps());
  EXPECT_TRUE(report()["cache"].is_null());
  put("cache.jsonl",
      R"({"step":2,"what":"use","loaded":10,"from_disk":4,"kept":6,"disk_bytes":600,"saved_ms":null,"upkeep_ms":500.0})"
      "\n"
      R"({"step":3,"what":"drift","probed":8,"drift":0.5,"cosine":0.9})"
      "\n"
      R"({"step":4,"what":"something new"})"
      "\n"
      R"({"step":5,"what":"drift","probed":8,"drift":0.25,"cosine":0.9})"
      "\n"
      R"({"step":5,"what":"use","loaded":10,"from_disk":3,"from_memory":2,"from_device":1,"disk_bytes":700,"saved_ms":1500,"age":3.5})"
      "\n");
  const Json cache = report()["cache"];
  EXPECT_EQ(cache["loaded"], 20);
  EXPECT_EQ(cache["from_disk"], 7);
  EXPECT_EQ(cache["from_memory"], 2);
  EXPECT_EQ(cache["from_device"], 1);
  EXPECT_EQ(cache["hit_share"], 0.5);
  EXPECT_EQ(cache["kept"], 6);
  EXPECT_EQ(cache["disk_bytes"], 700);
  EXPECT_EQ(cache["seconds_saved"], 1.5);
  EXPECT_EQ(cache["seconds_of_upkeep"], 0.5);
  EXPECT_EQ(cache["looks"], 2);
  EXPECT_EQ(cache["last_drift"], 0.25);
  EXPECT_EQ(cache["largest_drift"], 0.5);
  EXPECT_EQ(cache["last_age"], 3.5);
}

TEST_F(RunReport, WhatTheProgramWritesIsReadBack) {
  StepRecord step;
  step.step = 3;
  step.epoch = 0.5;
  step.loss = 0.25;
  step.task_losses = {{"pick \"it\"\n", 0.5}};
  step.samples = 16;
  step.first_sample = 32;
  step.step_ms = 100;
  step.ranks = {{70, 60, 100, 1}};
  step.attempt = 2;
  put_metrics(to_json(step) + "\n");
  DecisionRecord decision;
  decision.step = 3;
  decision.policy = "reactive";
  decision.target = 0.85;
  decision.after.micro_batch = 5;
  decision.after.offload = true;
  decision.after.hash = 0xffffff;
  decision.predicted_peak = 77;
  decision.changed = true;
  put("decisions.jsonl", to_json(decision) + "\n" + to_json(CacheRecord{3, "rebuild", "why", 0.1}) + "\n");
  put("cache.jsonl", to_json(DriftRecord{3, 8, 0.25, 0.5}) + "\n");
  const RunStreams run = read_run(folder_);
  ASSERT_EQ(run.steps.size(), 1U);
  EXPECT_EQ(run.steps[0].tasks[0].name, "pick \"it\"\n");
  EXPECT_EQ(run.steps[0].ranks[0].predicted, 60);
  EXPECT_EQ(run.steps[0].attempt, 2);
  EXPECT_EQ(run.steps[0].first_sample, 32);
  ASSERT_EQ(run.decisions.size(), 1U);
  EXPECT_EQ(run.decisions[0].target, 0.85);
  EXPECT_EQ(run.decisions[0].after.micro_batch, 5);
  EXPECT_TRUE(run.decisions[0].after.offload);
  EXPECT_EQ(run.decisions[0].after.hash, 0xffffffU);
  EXPECT_EQ(run.decisions[0].predicted_peak, 77);
  EXPECT_EQ(run.cache_changes.at(0).drift, 0.1);
  EXPECT_EQ(run.drift.at(0).cosine, 0.5);
  EXPECT_THAT(run.notes, IsEmpty());
}

// --- streams that are not as they should be ---

TEST_F(RunReport, AFolderThatIsNone) {
  std::filesystem::remove_all(folder_);
  EXPECT_THAT(error(), HasSubstr(folder_.string() + ": there is no such folder"));
  std::ofstream(folder_) << "a file";
  EXPECT_THAT(error(), HasSubstr("no such folder"));
}

TEST_F(RunReport, AFolderOfNoRun) {
  EXPECT_THAT(error(), HasSubstr((folder_ / "metrics.jsonl").string() + " is not there"));
}

TEST_F(RunReport, ARunWithoutASingleStep) {
  put_metrics("");
  EXPECT_EQ(batches(), Json::array());
  EXPECT_EQ(epochs(), Json::array());
  const Json found = report();
  EXPECT_EQ(found["steps"], 0);
  for (const char* key : {"first_step", "last_step", "mean_loss", "best_loss", "trend", "samples_per_second",
                          "waiting_share", "worst_peak", "outcome", "epochs"})
    EXPECT_TRUE(found[key].is_null()) << key;
  EXPECT_THAT(found["notes"].dump(), HasSubstr("decisions.jsonl is not there"));
}

TEST_F(RunReport, ATornLastLineIsLeftOutWhereverItIsCut) {
  const std::string first = "{\"step\":1}\n", whole = first + "{\"step\":2,\"loss\":0.5}\n";
  for (std::size_t size = first.size(); size <= whole.size(); ++size) {
    put_metrics(whole.substr(0, size));
    const RunStreams run = read_run(folder_);
    EXPECT_EQ(run.steps.size(), size == whole.size() ? 2U : 1U) << size;
    EXPECT_EQ(run.torn_lines, size != first.size() && size != whole.size() ? 1 : 0) << size;
  }
  put_metrics(whole.substr(0, whole.size() - 1));
  EXPECT_EQ(report()["torn_lines"], 1);
  EXPECT_THAT(report()["notes"].dump(), HasSubstr("metrics.jsonl: line 2 has no end"));
}

TEST_F(RunReport, ALineThatIsNoneIsNamed) {
  const auto where = [&](int line) { return fmt::format("{}:{}: ", (folder_ / "metrics.jsonl").string(), line); };
  for (const char* bad : {"nonsense", "", "[1]", "{\"step\":2", "{\"step\":2,\"loss\":1e999}", "\"\xff\""}) {
    put_metrics(std::string("{\"step\":1}\n") + bad + "\n{\"step\":3}\n");
    EXPECT_THAT(error(), HasSubstr(where(2) + "is no JSON object")) << bad;
  }
  put_metrics("{\"step\":1}\n{\"loss\":1}\n");
  EXPECT_THAT(error(), HasSubstr(where(2) + "has no \"step\""));
  put_metrics("{\"step\":2}\n{\"step\":2}\n");
  EXPECT_THAT(error(), HasSubstr(where(2) + "step 2 comes after step 2"));
}

TEST_F(RunReport, AFieldOfAnotherKindIsNamed) {
  for (const auto& [field, said] : std::vector<std::pair<std::string, std::string>>{
           {R"("loss":"low")", R"("loss" is "low", but must be a number)"},
           {R"("skipped":1)", R"("skipped" is 1, but must be true or false)"},
           {R"("samples":1.5)", R"("samples" is 1.5, but must be an integer)"},
           {R"("samples":18446744073709551615)", "must be an integer below 2^53"},
           {R"("first_sample":-9223372036854775808)", "must be an integer below 2^53"},
           {R"("samples":-5)", "\"samples\" is -5, but must be 0 or more"},
           {R"("epoch":-1)", "\"epoch\" is -1"},
           {R"("epoch":1e300)", "\"epoch\" is 1e+300, but must be between"},
           {R"("task_losses":[1])", R"("task_losses": is no JSON object)"},
           {R"("task_counts":{"a":-1})", R"("a" is -1, but must be 0 or more)"},
           {R"("memory":{})", R"("memory" is {}, but must be a list)"},
           {R"("memory":[{"peak":-1}])", R"(rank 0 of "memory": "peak" is -1, but must be 0 or more)"}}) {
    put_metrics("{\"step\":1," + field + "}\n");
    EXPECT_THAT(error(), HasSubstr("metrics.jsonl:1: "));
    EXPECT_THAT(error(), HasSubstr(said)) << field;
  }
  put_metrics("{\"step\":1}\n");
  put("decisions.jsonl", "{\"step\":1,\"reason\":7}\n");
  EXPECT_THAT(error(), HasSubstr("decisions.jsonl:1: \"reason\" is 7, but must be a text"));
}

TEST_F(RunReport, LinesOfAnotherFormLackOnlyWhatTheyLack) {
  put_metrics("{\"step\":1,\"epoch\":0.5,\"loss\":3,\"colour\":\"blue\"}\n{\"step\":4}\n");
  put("decisions.jsonl", "{\"step\":1}\n");
  EXPECT_TRUE(batches()[1]["loss"].is_null());
  EXPECT_TRUE(batches()[1]["samples_per_second"].is_null());
  ASSERT_EQ(epochs().size(), 1U);
  EXPECT_EQ(epochs()[0]["steps"], 2);  // a step that does not say is where the one before was
  const Json found = report();
  EXPECT_EQ(found["mean_loss"], 3);
  EXPECT_EQ(found["attempts"], 1);
  EXPECT_EQ(found["ranks"], Json::array());
  EXPECT_TRUE(found["predictions"]["mean_relative_error"].is_null());
  EXPECT_EQ(found["plan_changes"], Json::array());
  put_metrics("{\"step\":1}\n");
  EXPECT_EQ(epochs(), Json::array());
}

TEST_F(RunReport, PassesWithoutPositionsEndAtWholeNumbers) {
  put_metrics("{\"step\":1}\n{\"step\":2,\"epoch\":1.0}\n{\"step\":3,\"epoch\":1.5}\n");
  const Json found = epochs();
  ASSERT_EQ(found.size(), 2U);
  EXPECT_EQ(found[0]["last_step"], 2);
  EXPECT_EQ(found[1]["epoch"], 2);
}

TEST_F(RunReport, AnOutcomeOfAnEarlierAttemptIsNone) {
  put_metrics("{\"step\":7}\n");
  put("exit.json", R"({"exit_code":75,"reason":"stopped on request","step":5,"checkpoint":null,"attempt":1})");
  EXPECT_TRUE(report()["outcome"].is_null());
  EXPECT_THAT(report()["notes"].dump(), HasSubstr("exit.json is of an earlier attempt"));
  // An error's record counts the steps before the attempt.
  put("exit.json", R"({"exit_code":4,"reason":"bad file","step":5,"checkpoint":null,"attempt":1})");
  EXPECT_EQ(report()["outcome"]["exit_code"], 4);
  put("exit.json", "{");
  EXPECT_TRUE(report()["outcome"].is_null());
}

TEST_F(RunReport, TheConfigurationIsShownWhereItCanBeRead) {
  put_metrics("{\"step\":1}\n");
  put("config.toml", "[batch]\neffective = 16\n[memory]\nbudget = [\"1GiB\", 7]\n[report]\nevery = 3\n");
  Json found = report()["configuration"];
  EXPECT_EQ(found["batch.effective"], "16");
  EXPECT_EQ(found["memory.budget"], "[\"1GiB\", 7]");
  EXPECT_EQ(found.size(), 2U);
  put("config.toml", "[batch\n");
  EXPECT_EQ(report()["configuration"].size(), 0U);
  EXPECT_THAT(report()["notes"].dump(), HasSubstr("config.toml is left out"));
}

TEST_F(RunReport, FilesAreWrittenAndWrittenAgain) {
  put_metrics(five_steps());
  for (int times = 0; times < 2; ++times) {
    const WrittenReport written = write_report(folder_);
    for (const char* name : {"batch_metrics.json", "epoch_metrics.json", "training_report.json"}) {
      EXPECT_TRUE(Json::accept(read_file(folder_ / name))) << name;
      EXPECT_THAT(written.files, ::testing::Contains(folder_ / name));
    }
    EXPECT_EQ(read_file(folder_ / "training_report.json"), written.training_report);
    EXPECT_THAT(written.summary, HasSubstr("steps        5 (1 to 5), 20 samples, 2 passes over the data, attempt 2\n"));
    EXPECT_THAT(written.summary, HasSubstr("outcome      still running, or killed"));
    EXPECT_THAT(written.summary, HasSubstr("150 B, 37.5 % of the 400 B of rank 1, in step 2"));
    EXPECT_THAT(written.summary, HasSubstr("1 of 5 peaks were above theirs, by at most 100 B"));
  }
}

TEST_F(RunReport, AtTheEndOfARunNothingIsThrown) {
  put_metrics("nonsense\n");
  write_report_of_ended_run(folder_);
  EXPECT_FALSE(std::filesystem::exists(folder_ / "training_report.json"));
  write_report_of_ended_run(folder_ / "none");
  put_metrics("{\"step\":1}\n");
  write_report_of_ended_run(folder_);
  EXPECT_TRUE(std::filesystem::exists(folder_ / "training_report.json"));
}

TEST(ShownText, StaysOnItsLineAndWhole) {
  EXPECT_EQ(on_one_line("a\nb\x1b[31m\x7f", 60), "a b [31m ");
  EXPECT_EQ(on_one_line("abcdef", 6), "abcdef");
  EXPECT_EQ(on_one_line("abcdef", 3), "abc...");
  EXPECT_EQ(on_one_line("a\xc3\xa9z", 2), "a...");
  EXPECT_EQ(on_one_line("a\xc3\xa9z", 3), "a\xc3\xa9...");
}

TEST(ShownText, IsNoMarkup) {
  EXPECT_EQ(escape_html("<a href=\"x\" b='y'>&\x01\n"), "&lt;a href=&quot;x&quot; b=&#39;y&#39;&gt;&amp; \n");
}

}  // namespace
}  // namespace plimsoll::report
