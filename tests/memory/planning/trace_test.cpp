// Traces of peaks: both forms, and what is refused with which words.
#include "memory/planning/trace.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "core/error.h"
#include "tests/error_of.h"

namespace plimsoll::memory {
namespace {

using testing::AllOf;
using testing::HasSubstr;

std::string refused(const std::string& text, int ranks = 0) {
  return error_of(ExitCode::kData, [&] { read_trace(text, "peaks.jsonl", ranks); });
}

TEST(Trace, ReadsFractionsAndBytes) {
  const Trace trace = read_trace(
      "{\"peaks\": [0.65, 2]}\n"
      "\n"
      "{\"peaks\": [600, 0.5], \"budgets\": [1000, 2000], \"retries\": [0, 3], \"predicted\": [590, 900]}\r\n"
      "{\"peaks\": [0, 1.01], \"step\": 10, \"step_ms\": 12.6, \"samples\": 32}",
      "peaks.jsonl");
  ASSERT_EQ(trace.steps.size(), 3U);
  EXPECT_EQ(trace.steps[0].step, 1);
  EXPECT_EQ(trace.steps[0].ranks[0].peak_bytes, 6'500'000'000);
  EXPECT_EQ(trace.steps[0].ranks[0].budget_bytes, 10'000'000'000);
  EXPECT_EQ(trace.steps[0].ranks[1].peak_bytes, 20'000'000'000);
  EXPECT_EQ(trace.steps[1].step, 2);
  EXPECT_EQ(trace.steps[1].ranks[0].peak_bytes, 600);
  EXPECT_EQ(trace.steps[1].ranks[1].peak_bytes, 1000);
  EXPECT_EQ(trace.steps[1].ranks[1].retries, 3);
  EXPECT_EQ(trace.steps[1].ranks[0].predicted_peak_bytes, 590);
  EXPECT_EQ(trace.steps[2].step, 10);
  EXPECT_EQ(trace.steps[2].step_ms, 13);
  EXPECT_EQ(trace.steps[2].samples, 32);
  EXPECT_EQ(trace.steps[2].ranks[0].peak_bytes, 0);
  EXPECT_EQ(trace.steps[2].ranks[1].peak_bytes, 2020) << "the budgets of the line before hold";
}

TEST(Trace, ReadsTheMetricsOfARun) {
  const Trace trace = read_trace(
      R"({"step":7,"epoch":0.5,"loss":null,"samples":32,"step_ms":93.4,"plan":{"micro_batch":6,"accumulation":3,)"
      R"("resolution":0,"recompute_blocks":2,"hash":77},"memory":[{"peak":800,"predicted":790,"budget":1000,)"
      R"("retries":1},{"peak":700,"predicted":0,"budget":1000,"retries":0}],"attempt":1})",
      "metrics.jsonl", 2);
  ASSERT_EQ(trace.steps.size(), 1U);
  const TraceStep& step = trace.steps[0];
  EXPECT_EQ(step.step, 7);
  EXPECT_EQ(step.step_ms, 93);
  EXPECT_EQ(step.plan, (Plan{0, 6, 2}));
  EXPECT_EQ(step.ranks[0].peak_bytes, 800);
  EXPECT_EQ(step.ranks[0].predicted_peak_bytes, 790);
  EXPECT_EQ(step.ranks[0].retries, 1);
  EXPECT_EQ(step.ranks[1].budget_bytes, 1000);
}

TEST(Trace, ReadsAllThatAPolicyHearsOfARank) {
  const Trace trace = read_trace(
      R"({"memory":[{"peak":800,"predicted":790,"budget":1000,"retries":1,"allocator_retries":2,"failed_request":50,)"
      R"("failed":false,"other_way":true,"other_recompute":true}],"failed_attempts":[{"plan":{"micro_batch":4},)"
      R"("memory":[{"peak":990,"budget":1000,"failed_request":70,"failed":true}]}]})",
      "metrics.jsonl");
  EXPECT_TRUE(trace.of_run);
  const TraceStep& step = trace.steps.at(0);
  RankUsage expected{.budget_bytes = 1000, .peak_bytes = 800};
  expected.retries = 1;
  expected.allocator_retries = 2;
  expected.failed_request_bytes = 50;
  expected.predicted_peak_bytes = 790;
  expected.other_way = expected.other_recompute = true;
  EXPECT_EQ(step.ranks.at(0), expected);
  ASSERT_EQ(step.failed.size(), 1U);
  EXPECT_EQ(step.failed[0].plan, (Plan{0, 4, 0}));
  EXPECT_TRUE(step.failed[0].ranks.at(0).failed);
  EXPECT_EQ(step.failed[0].ranks.at(0).failed_request_bytes, 70);
  EXPECT_FALSE(read_trace("{\"peaks\": [0.5]}", "t").of_run);
  const auto attempts = [](const std::string& text) {
    return refused("{\"memory\": [{\"peak\": 1, \"budget\": 9}], \"failed_attempts\": " + text + "}");
  };
  EXPECT_THAT(attempts("7"), HasSubstr("no list"));
  EXPECT_THAT(attempts("[{\"plan\": {}}]"), HasSubstr("\"memory\""));
  EXPECT_THAT(attempts(R"([{"plan":{},"memory":[{"peak":1,"budget":9}]}])"), HasSubstr("\"failed\": true"));
  EXPECT_THAT(refused(R"({"memory":[{"peak":1,"budget":9,"other_way":1}]})"), HasSubstr("\"other_way\" is 1"));
}

TEST(Trace, CandidatesOfARunStandAlone) {
  const std::string entry = R"({"micro_batch":4,"bytes":900,"microseconds":80})";
  EXPECT_EQ(read_candidates("{\"candidates\":[" + entry + "]}\n", "candidates.json"),
            (std::vector<Candidate>{{{0, 4, 0}, 900, 80}}));
  for (const char* wrong : {"", "{\"candidates\":[]}", "{\"peaks\":[0.5]}"}) {
    EXPECT_THAT(error_of(ExitCode::kData, [&] { read_candidates(wrong, "candidates.json"); }),
                HasSubstr("candidates.json"))
        << wrong;
  }
}

TEST(Trace, TheFirstLineMayHoldCandidates) {
  const Trace trace = read_trace(
      "{\"candidates\": [{\"micro_batch\": 4, \"recompute_blocks\": 9, \"bytes\": 900, \"microseconds\": 80}]}\n"
      "{\"peaks\": [0.5]}\n",
      "peaks.jsonl");
  ASSERT_EQ(trace.candidates.size(), 1U);
  EXPECT_EQ(trace.candidates[0], (Candidate{{0, 4, 9}, 900, 80}));
  EXPECT_THAT(refused("{\"peaks\": [0.5]}\n{\"candidates\": []}"), HasSubstr("first line"));
  EXPECT_THAT(refused("{\"candidates\": [{\"micro_batch\": 4, \"bytes\": 0, \"microseconds\": 80}]}"),
              AllOf(HasSubstr("peaks.jsonl:1"), HasSubstr("\"bytes\"")));
  EXPECT_THAT(refused("{\"candidates\": [{\"micro_batch\": 0, \"bytes\": 1, \"microseconds\": 80}]}"),
              HasSubstr("\"micro_batch\""));
  EXPECT_THAT(refused("{\"candidates\": [7]}"), HasSubstr("object"));
}

TEST(Trace, MissingRanksAreNamedWithTheirLine) {
  EXPECT_THAT(refused("{\"peaks\": [0.5, 0.6]}\n{\"peaks\": [0.5]}"),
              AllOf(HasSubstr("peaks.jsonl:2"), HasSubstr("1 of 2 ranks"), HasSubstr("every rank")));
  EXPECT_THAT(refused("{\"peaks\": [0.5, 0.6]}", 4), AllOf(HasSubstr("peaks.jsonl:1"), HasSubstr("2 of 4 ranks")));
  EXPECT_THAT(refused("{\"peaks\": [0.5, 0.6], \"retries\": [1]}"), HasSubstr("\"retries\" has 1 of 2 ranks"));
  EXPECT_THAT(refused("{\"peaks\": [0.5, 0.6], \"budgets\": [100]}"), HasSubstr("\"budgets\" has 1 of 2 ranks"));
  EXPECT_THAT(refused("{\"memory\": [{\"peak\": 1, \"budget\": 9}]}", 2), HasSubstr("\"memory\" has 1 of 2 ranks"));
  EXPECT_THAT(refused("{\"peaks\": []}"), HasSubstr("0 of 1 ranks"));
}

TEST(Trace, PeaksThatAreNoneAreRefused) {
  const std::string of = "\"peaks\" of rank 0";
  EXPECT_THAT(refused("{\"peaks\": [null]}"), AllOf(HasSubstr(of), HasSubstr("null"), HasSubstr("fraction")));
  EXPECT_THAT(refused("{\"peaks\": [-0.1]}"), AllOf(HasSubstr(of), HasSubstr("-0.1")));
  EXPECT_THAT(refused("{\"peaks\": [\"0.5\"]}"), HasSubstr(of));
  EXPECT_THAT(refused("{\"peaks\": [2.5], \"budgets\": [10]}"), AllOf(HasSubstr("2.5"), HasSubstr("whole bytes")));
  EXPECT_THAT(refused("{\"peaks\": [1e30], \"budgets\": [10]}"), HasSubstr("2^48"));
  EXPECT_THAT(refused("{\"peaks\": [700]}"), AllOf(HasSubstr("bytes"), HasSubstr("add \"budgets\"")));
  EXPECT_THAT(refused("{\"peaks\": [0.5]}\n{\"peaks\": [NaN]}"), AllOf(HasSubstr("peaks.jsonl:2"), HasSubstr("NaN")));
  EXPECT_THAT(refused("{\"memory\": [{\"peak\": null, \"budget\": 9}]}"), HasSubstr("\"peak\" of rank 0 is null"));
  EXPECT_THAT(refused("{\"memory\": [{\"peak\": 1}]}"), HasSubstr("\"budget\" of rank 0"));
  EXPECT_THAT(refused("{\"memory\": [{\"peak\": 1, \"budget\": 9, \"retries\": -1}]}"), HasSubstr("\"retries\" is -1"));
}

TEST(Trace, BudgetsThatAreNoneAreRefused) {
  for (const char* wrong : {"0", "-5", "null", "1.5", "1e40", "\"24GiB\""}) {
    EXPECT_THAT(refused(std::string("{\"peaks\": [0.5], \"budgets\": [") + wrong + "]}"),
                AllOf(HasSubstr("\"budgets\" of rank 0"), HasSubstr(wrong[0] == '1' ? "1" : wrong)))
        << wrong;
  }
}

TEST(Trace, WhatIsNoTraceIsRefused) {
  EXPECT_THAT(refused(""), AllOf(HasSubstr("peaks.jsonl"), HasSubstr("no step")));
  EXPECT_THAT(refused("\n \n"), HasSubstr("no step"));
  EXPECT_THAT(refused("peak,budget\n"), AllOf(HasSubstr("peaks.jsonl:1"), HasSubstr("no JSON object")));
  EXPECT_THAT(refused("[0.5]"), HasSubstr("no JSON object"));
  EXPECT_THAT(refused("{\"usage\": [0.5]}"), HasSubstr("needs either"));
  EXPECT_THAT(refused("{\"peaks\": [0.5], \"memory\": []}"), HasSubstr("needs either"));
  EXPECT_THAT(refused("{\"peaks\": 0.5}"), HasSubstr("a list with an entry a rank"));
  EXPECT_THAT(refused("{\"peaks\": [0.5], \"step\": 3}\n{\"peaks\": [0.5], \"step\": 3}"),
              AllOf(HasSubstr("peaks.jsonl:2"), HasSubstr("3 after 3")));
  EXPECT_THAT(refused("{\"peaks\": [0.5], \"step\": \"x\"}"), HasSubstr("\"step\" is \"x\""));
  EXPECT_THAT(refused("{\"peaks\": [0.5], \"plan\": 4}"), HasSubstr("\"micro_batch\""));
  EXPECT_THAT(refused("{\"peaks\": [0.5], \"plan\": {\"micro_batch\": 1e12}}"), HasSubstr("\"micro_batch\""));
  EXPECT_THAT(refused("{\"memory\": [5]}"), HasSubstr("write an object"));
}

}  // namespace
}  // namespace plimsoll::memory
