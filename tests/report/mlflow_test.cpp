#include <gmock/gmock.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <map>
#include <set>
#include <vector>

#include "core/error.h"
#include "core/file.h"
#include "report/mlflow_delivery.h"
#include "report/mlflow_messages.h"
#include "report/mlflow_sender.h"
#include "tests/report/mlflow_server.h"

namespace plimsoll::report {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::SizeIs;
using Sorted = nlohmann::json;
using EntryKindOf = MlflowEntry::Kind;

std::vector<MlflowEntry> many_metrics(std::size_t count) {
  std::vector<MlflowEntry> entries;
  for (std::size_t i = 0; i < count; ++i)
    entries.push_back({EntryKindOf::kMetric, "m" + std::to_string(i), "", 1.0, 5, static_cast<std::int64_t>(i)});
  return entries;
}

std::vector<std::size_t> sizes(const std::vector<std::span<const MlflowEntry>>& parts) {
  std::vector<std::size_t> result;
  for (const auto& part : parts) result.push_back(part.size());
  return result;
}

class Mlflow : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::path(::testing::TempDir()) / ("mlflow-" + std::to_string(::getpid()));
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  /// A spool of one run: its parameters and steps from 1.
  void put_run(std::int64_t steps, const std::string& token = "aa") {
    MlflowSpool spool(folder_);
    spool.append(mlflow_begin_line("plimsoll", "run", token, 1000));
    spool.append(mlflow_params_line({{"lora.rank", "8"}, {"run.dir", ""}}));
    for (std::int64_t step = 1; step <= steps; ++step) spool.append(mlflow_step_line(step_record(step), 1000 + step));
  }
  MlflowTransport transport() {
    return [this](const std::string& url, const std::string& body) { return server_.answer(url, body); };
  }
  /// Until nothing more can be sent for now.
  MlflowDelivery::Outcome deliver_all(MlflowDelivery& delivery) {
    auto outcome = MlflowDelivery::Outcome::kMoved;
    while (outcome == MlflowDelivery::Outcome::kMoved) outcome = delivery.deliver();
    return outcome;
  }
  MlflowDelivery::Outcome deliver_all() {
    MlflowDelivery delivery(folder_, "http://h:1", transport());
    return deliver_all(delivery);
  }
  std::string spool_text() { return read_file(mlflow_spool_file(folder_)); }

  std::filesystem::path folder_;
  ModelServer server_;
};

// ---- bodies and limits

TEST(MlflowMessages, AStepBecomesOneMetricForEachNumber) {
  StepRecord record = step_record(3);
  record.task_losses = {{"pick & place", 0.5}};
  record.task_memory = {{"pick & place", {2, 4, 440, 400, 0.3, 0.2}}};
  const MlflowLine line = parse_mlflow_line(mlflow_step_line(record, 77));
  ASSERT_EQ(line.kind, MlflowLine::Kind::kEntries);
  EXPECT_EQ(line.step, 3);
  std::map<std::string, double> found;
  for (const auto& entry : line.entries) {
    EXPECT_EQ(entry.kind, EntryKindOf::kMetric);
    EXPECT_EQ(entry.step, 3);
    EXPECT_EQ(entry.time_ms, 77);
    found[entry.key] = entry.number;
  }
  EXPECT_EQ(found.size(), line.entries.size());
  EXPECT_EQ(found.at("loss"), 1.0 / 3.0) << "the same bits, so that what is sent again is the same point";
  EXPECT_EQ(found.at("samples_per_second"), 500.0);
  EXPECT_EQ(found.at("memory/peak_bytes/rank_1"), 120.0);
  EXPECT_EQ(found.at("memory/retries/rank_1"), 1.0);
  EXPECT_EQ(found.at("task_loss/pick _ place"), 0.5);
  EXPECT_EQ(found.at("task_memory/bytes_a_sample/pick _ place"), 100.0);
  EXPECT_EQ(found.at("task_memory/predicted_a_sample/pick _ place"), 110.0);
  EXPECT_EQ(found.at("task_memory/largest_error/pick _ place"), 0.2);
  EXPECT_EQ(found.count("not_finite"), 0U);
}

TEST(MlflowMessages, WhatIsNotFiniteIsCountedInstead) {
  StepRecord record = step_record(1);
  record.loss = std::nan("");
  record.grad_norm = std::numeric_limits<double>::infinity();
  const auto line = parse_mlflow_line(mlflow_step_line(record, 1));
  ASSERT_EQ(line.kind, MlflowLine::Kind::kEntries);
  for (const auto& entry : line.entries) {
    EXPECT_NE(entry.key, "loss");
    EXPECT_NE(entry.key, "grad_norm");
  }
  EXPECT_EQ(line.entries.back().key, "not_finite");
  EXPECT_EQ(line.entries.back().number, 2.0);
}

TEST(MlflowMessages, ABatchHoldsEachKindInItsPlace) {
  const std::vector<MlflowEntry> entries{{EntryKindOf::kParam, "p", "1", 0, 0, 0},
                                         {EntryKindOf::kTag, "t", "\"x\"\n", 0, 0, 0},
                                         {EntryKindOf::kMetric, "m", "", 0.1, 9, 2}};
  EXPECT_EQ(Sorted::parse(mlflow_log_batch_body("r", entries)),
            Sorted::parse(R"({"run_id": "r", "params": [{"key": "p", "value": "1"}],
                            "tags": [{"key": "t", "value": "\"x\"\n"}],
                            "metrics": [{"key": "m", "value": 0.1, "timestamp": 9, "step": 2}]})"));
}

TEST(MlflowMessages, OtherBodies) {
  const auto begin = parse_mlflow_line(mlflow_begin_line("e", "n", "cafe", 12));
  EXPECT_EQ(Sorted::parse(mlflow_create_experiment_body("e")), Sorted::parse(R"({"name": "e"})"));
  const auto create = Sorted::parse(mlflow_create_run_body("7", begin));
  EXPECT_EQ(create.at("experiment_id"), "7");
  EXPECT_EQ(create.at("run_name"), "n");
  EXPECT_EQ(create.at("start_time"), 12);
  EXPECT_EQ(create.at("tags").at(0), Sorted::parse(R"({"key": "plimsoll.run", "value": "cafe"})"));
  const auto search = Sorted::parse(mlflow_search_run_body("7", "cafe"));
  EXPECT_EQ(search.at("experiment_ids"), Sorted::parse(R"(["7"])"));
  EXPECT_EQ(search.at("filter"), "tags.`plimsoll.run` = 'cafe'");
  EXPECT_EQ(Sorted::parse(mlflow_update_run_body("r", parse_mlflow_line(mlflow_state_line("FINISHED", 5)))),
            Sorted::parse(R"({"run_id": "r", "status": "FINISHED", "end_time": 5})"));
  EXPECT_FALSE(Sorted::parse(mlflow_update_run_body("r", parse_mlflow_line(mlflow_state_line("RUNNING", 5))))
                   .contains("end_time"));
}

TEST(MlflowMessages, RequestsKeepTheServersLimits) {
  EXPECT_THAT(sizes(mlflow_split(many_metrics(1000))), ElementsAre(1000U));
  EXPECT_THAT(sizes(mlflow_split(many_metrics(2500))), ElementsAre(1000U, 1000U, 500U));
  EXPECT_TRUE(mlflow_split({}).empty());
  std::vector<MlflowEntry> mixed(150, {EntryKindOf::kParam, "p", "v", 0, 0, 0});
  mixed.insert(mixed.end(), 101, {EntryKindOf::kTag, "t", "v", 0, 0, 0});
  // 100 params; then 50 with 100 tags; the last tag
  EXPECT_THAT(sizes(mlflow_split(mixed)), ElementsAre(100U, 150U, 1U));
  auto together = many_metrics(999);
  together.insert(together.end(), 2, {EntryKindOf::kTag, "t", "v", 0, 0, 0});
  EXPECT_THAT(sizes(mlflow_split(together)), ElementsAre(1000U, 1U));
}

TEST(MlflowMessages, NoRequestIsLongerThanTheServerTakes) {
  // 90 params of 12 kB once they are written as JSON: a control character is six letters.
  const std::vector<MlflowEntry> entries(90, {EntryKindOf::kParam, "p", std::string(2000, '\x01'), 0, 0, 0});
  const auto parts = mlflow_split(entries);
  EXPECT_GT(parts.size(), 1U);
  std::size_t count = 0;
  for (const auto part : parts) {
    EXPECT_LT(mlflow_log_batch_body("r", part).size(), 1000000U);
    count += part.size();
  }
  EXPECT_EQ(count, entries.size());
}

TEST(MlflowMessages, KeysAreWhatServersTake) {
  EXPECT_EQ(mlflow_key("train.max_steps"), "train.max_steps");
  EXPECT_EQ(mlflow_key("memory/peak bytes/rank-0"), "memory/peak bytes/rank-0");
  EXPECT_EQ(mlflow_key("a(GiB)%"), "a_GiB__");
  EXPECT_EQ(mlflow_key("/a//b/./../c/"), "_/a/_/b/_/__/c/_");
  EXPECT_EQ(mlflow_key(""), "_");
  EXPECT_EQ(mlflow_key("gr\xC3\xBCn"), "gr__n");
  EXPECT_THAT(mlflow_key(std::string(400, 'a')), SizeIs(250));
}

TEST(MlflowMessages, LongValuesAreCutBetweenCharacters) {
  std::string value = std::string(5999, 'x') + "\xC3\xBC";
  const auto line = parse_mlflow_line(mlflow_params_line({{"k", value}}));
  ASSERT_THAT(line.entries, SizeIs(1));
  EXPECT_EQ(line.entries[0].value, std::string(5999, 'x'));
}

TEST(MlflowMessages, AConfigurationIsFlattened) {
  const auto flat =
      mlflow_flatten("a = 1\n[t]\nword = \"x\"\nempty = \"\"\nlist = [1, \"b\"]\n[[t.rows]]\nk = 0.5\n", "c");
  EXPECT_EQ(flat,
            (std::map<std::string, std::string>{
                {"a", "1"}, {"t.word", "x"}, {"t.empty", ""}, {"t.list", "[1, \"b\"]"}, {"t.rows", "[{ k = 0.5 }]"}}));
}

TEST(MlflowMessages, AnswersThatAreNoneGiveNothing) {
  for (const char* text :
       {"", "OK", "[]", "{}", R"({"run": 1})", R"({"run": {"info": {"run_id": 5}}})", R"({"runs": []})"}) {
    EXPECT_FALSE(mlflow_run_id(text)) << text;
    EXPECT_FALSE(mlflow_experiment_id(text)) << text;
    EXPECT_EQ(mlflow_error_code(text), "") << text;
  }
  EXPECT_EQ(mlflow_run_id(R"({"run": {"info": {"run_id": "a"}}})"), "a");
  EXPECT_EQ(mlflow_run_id(R"({"runs": [{"info": {"run_id": "b"}}]})"), "b");
  EXPECT_EQ(mlflow_error_text("<html>\nno"), "<html> no");
}

TEST(MlflowAddress, IsCheckedAndKept) {
  const auto checked = [](const std::string& text) { return checked_server_address(text, "report.mlflow_uri"); };
  EXPECT_EQ(checked("http://localhost:5000"), "http://localhost:5000");
  EXPECT_EQ(checked("https://mlflow.example.org/a/b/"), "https://mlflow.example.org/a/b");
  EXPECT_EQ(checked("http://[::1]:5000/"), "http://[::1]:5000");
  for (const char* text : {"localhost:5000", "file:./mlruns", "sqlite:///x.db", "databricks", "http://", "http://:80",
                           "http://h:0", "http://h:65536", "http://h:", "http://h:80x", "http://h/a?b", "http://h/a b",
                           "http://a b/", "ftp://h/", "http:///x", "http://[::1", "http://h:1:2"}) {
    try {
      checked(text);
      ADD_FAILURE() << text;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kUsage);
      EXPECT_THAT(error.what(), AllOf(HasSubstr("report.mlflow_uri"), HasSubstr(text), HasSubstr("http://host:port")));
    }
  }
}

TEST(MlflowAddress, ShowsNoCredentials) {
  for (const char* text : {"http://me:secret@h:1", "https://secret@h", "ftp://me:secret@h", "http://me:sec/secret@h"}) {
    try {
      checked_server_address(text, "report.mlflow_uri");
      ADD_FAILURE() << text;
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), AllOf(Not(HasSubstr("sec")), HasSubstr("MLFLOW_TRACKING_PASSWORD")));
    }
  }
}

// ---- the spool

TEST_F(Mlflow, ASpoolTornAnywhereKeepsItsWholeLines) {
  put_run(2);
  const std::string whole = spool_text();
  for (std::size_t size = 0; size <= whole.size(); ++size) {
    std::ofstream(mlflow_spool_file(folder_), std::ios::binary) << whole.substr(0, size);
    const auto end = whole.rfind('\n', size == 0 ? 0 : size - 1);
    const std::string kept = size == 0 || end == std::string::npos ? "" : whole.substr(0, end + 1);
    MlflowSpool spool(folder_);
    EXPECT_EQ(spool_text(), kept);
    EXPECT_EQ(spool.told().begun, !kept.empty());
    const auto lines = std::count(kept.begin(), kept.end(), '\n');
    EXPECT_EQ(spool.told().last_step, std::max<std::int64_t>(0, lines - 2));
    spool.append(mlflow_state_line("FINISHED", 1));
    EXPECT_EQ(spool_text(), kept + mlflow_state_line("FINISHED", 1) + "\n");
  }
}

TEST_F(Mlflow, AReaderSeesALineOnlyOnceItIsWhole) {
  const auto file = mlflow_spool_file(folder_);
  MlflowSpoolReader reader(folder_);
  EXPECT_EQ(reader.next(), std::nullopt);
  std::ofstream(file) << "one\ntw";
  EXPECT_EQ(reader.next(), "one");
  EXPECT_EQ(reader.next(), std::nullopt);
  EXPECT_EQ(reader.offset(), 4);
  std::ofstream(file, std::ios::app) << "o\n";
  EXPECT_EQ(reader.next(), "two");
  EXPECT_EQ(reader.next(), std::nullopt);
}

TEST_F(Mlflow, AMarkIsReadBackAndADamagedOneIsNone) {
  put_run(1);
  EXPECT_FALSE(read_mlflow_mark(folder_));
  write_mlflow_mark(folder_, {"http://h:1", "aa", 12, 3, "1", "r"});
  const auto mark = read_mlflow_mark(folder_);
  ASSERT_TRUE(mark);
  EXPECT_EQ(mark->acknowledged, 12);
  EXPECT_EQ(mark->refused, 3);
  EXPECT_EQ(mark->run_id, "r");
  const std::string text = read_file(mlflow_mark_file(folder_));
  for (std::size_t size = 0; size + 2 < text.size(); ++size) {
    std::ofstream(mlflow_mark_file(folder_)) << text.substr(0, size);
    EXPECT_FALSE(read_mlflow_mark(folder_)) << size;
  }
}

// ---- delivery

TEST_F(Mlflow, EverythingArrivesOnce) {
  put_run(120);
  MlflowSpool(folder_).append(mlflow_state_line("FINISHED", 9000));
  EXPECT_EQ(deliver_all(), MlflowDelivery::Outcome::kNothing);
  ASSERT_THAT(server_.runs, SizeIs(1));
  const auto& run = server_.runs.at("run1");
  EXPECT_EQ(run.status, "FINISHED");
  EXPECT_EQ(run.token, "aa");
  EXPECT_EQ(run.params, (std::map<std::string, std::string>{{"lora.rank", "8"}, {"run.dir", ""}}));
  EXPECT_EQ(ModelServer::steps(run, "loss"), up_to(120));
  EXPECT_EQ(static_cast<std::size_t>(run.points), run.metrics.size()) << "nothing was sent twice";
  EXPECT_EQ(read_mlflow_mark(folder_)->acknowledged, static_cast<std::int64_t>(spool_text().size()));
  const auto calls = server_.calls.size();
  EXPECT_EQ(deliver_all(), MlflowDelivery::Outcome::kNothing);
  EXPECT_EQ(server_.calls.size(), calls) << "a second sender has nothing to say";
}

TEST_F(Mlflow, AnyRequestThatFailsForAWhileIsMadeAgain) {
  for (const int status : {0, 408, 429, 500, 503, 302, 401, 403, 405}) {
    std::filesystem::remove(mlflow_mark_file(folder_));
    std::filesystem::remove(mlflow_spool_file(folder_));
    put_run(50);
    MlflowSpool(folder_).append(mlflow_state_line("FINISHED", 9000));
    server_ = ModelServer();
    std::set<std::string> failed;  // each call once
    server_.before = [&](const std::string& call, const std::string&) -> std::optional<HttpAnswer> {
      if (!failed.insert(call).second) return std::nullopt;
      return HttpAnswer{status, "busy", "no answer"};
    };
    MlflowDelivery delivery(folder_, "http://h:1", transport());
    int laters = 0;
    while (deliver_all(delivery) == MlflowDelivery::Outcome::kLater) {
      ++laters;
      EXPECT_NE(delivery.trouble(), "");
    }
    EXPECT_EQ(laters, 6) << "one for each kind of call";
    EXPECT_EQ(delivery.trouble(), "");
    EXPECT_EQ(delivery.refused(), 0);
    EXPECT_EQ(ModelServer::steps(server_.runs.at("run1"), "loss"), up_to(50)) << status;
    EXPECT_EQ(server_.runs.at("run1").status, "FINISHED");
    EXPECT_THAT(server_.runs, SizeIs(1));
  }
}

TEST_F(Mlflow, AnAnswerThatIsLostDoublesNothing) {
  put_run(60);
  // Every request is done, but of each first one the answer is lost.
  std::set<std::string> lost;
  bool inside = false;
  server_.before = [&](const std::string& call, const std::string& body) -> std::optional<HttpAnswer> {
    if (inside || !lost.insert(call).second) return std::nullopt;
    inside = true;
    server_.answer("/api/2.0/mlflow/" + call, body);
    inside = false;
    return HttpAnswer{0, "", "timed out"};
  };
  MlflowDelivery::Outcome outcome = MlflowDelivery::Outcome::kLater;
  while (outcome == MlflowDelivery::Outcome::kLater) outcome = deliver_all();  // each time as after a crash
  EXPECT_THAT(server_.experiments, SizeIs(1));
  ASSERT_THAT(server_.runs, SizeIs(1)) << "the run that was made is found by its tag";
  EXPECT_EQ(ModelServer::steps(server_.runs.at("run1"), "loss"), up_to(60));
  EXPECT_GT(static_cast<std::size_t>(server_.runs.at("run1").points), server_.runs.at("run1").metrics.size())
      << "sent twice, stored once";
}

TEST_F(Mlflow, WhatIsRefusedStandsAloneAndStopsNothingElse) {
  put_run(100);
  // A value in the middle is not to the server's taste.
  server_.before = [&](const std::string& call, const std::string& body) -> std::optional<HttpAnswer> {
    if (call != "runs/log-batch") return std::nullopt;
    const Sorted json = Sorted::parse(body);
    for (const auto& metric : json.at("metrics")) {
      if (metric.at("key") == "loss" && (metric.at("step") == 41 || metric.at("step") == 42))
        return ModelServer::bad("ugly");
    }
    return std::nullopt;
  };
  {
    MlflowDelivery delivery(folder_, "http://h:1", transport());
    EXPECT_EQ(deliver_all(delivery), MlflowDelivery::Outcome::kNothing);
    EXPECT_EQ(delivery.refused(), 2);
  }
  auto expected = up_to(100);
  EXPECT_EQ(ModelServer::steps(server_.runs.at("run1"), "step_ms"), expected);
  expected.erase(expected.begin() + 40, expected.begin() + 42);
  EXPECT_EQ(ModelServer::steps(server_.runs.at("run1"), "loss"), expected);
  const std::string refused = read_file(mlflow_refused_file(folder_));
  EXPECT_EQ(std::count(refused.begin(), refused.end(), '\n'), 2);
  const auto first = Sorted::parse(refused.substr(0, refused.find('\n')));
  EXPECT_THAT(first.at("reason").get<std::string>(), AllOf(HasSubstr("400"), HasSubstr("ugly")));
  EXPECT_EQ(Sorted::parse(first.at("what").get<std::string>()).at("metrics").at(0).at("step"), 41);
  EXPECT_EQ(deliver_all(), MlflowDelivery::Outcome::kNothing) << "for good";
  EXPECT_EQ(read_mlflow_mark(folder_)->refused, 2);
}

TEST_F(Mlflow, DamagedLinesAreNotedAndPassed) {
  put_run(2);
  std::ofstream(mlflow_spool_file(folder_), std::ios::app) << "{\"step\": \n";
  MlflowSpool(folder_).append(mlflow_step_line(step_record(3), 5));
  MlflowDelivery delivery(folder_, "http://h:1", transport());
  EXPECT_EQ(deliver_all(delivery), MlflowDelivery::Outcome::kNothing);
  EXPECT_EQ(delivery.refused(), 1);
  EXPECT_EQ(ModelServer::steps(server_.runs.at("run1"), "loss"), up_to(3));
}

TEST_F(Mlflow, AServerThatLostTheRunGetsItAgain) {
  put_run(10);
  EXPECT_EQ(deliver_all(), MlflowDelivery::Outcome::kNothing);
  server_ = ModelServer();  // its database is gone
  MlflowSpool(folder_).append(mlflow_step_line(step_record(11), 5));
  MlflowDelivery delivery(folder_, "http://h:1", transport());
  EXPECT_EQ(deliver_all(delivery), MlflowDelivery::Outcome::kLater);
  EXPECT_THAT(delivery.trouble(), HasSubstr("run1"));
  EXPECT_EQ(deliver_all(delivery), MlflowDelivery::Outcome::kNothing);
  EXPECT_EQ(ModelServer::steps(server_.runs.at("run1"), "loss"), up_to(11));
  server_ = ModelServer();
  MlflowSpool(folder_).append(mlflow_step_line(step_record(12), 6));
  EXPECT_EQ(deliver_all(delivery), MlflowDelivery::Outcome::kLater);
  EXPECT_EQ(deliver_all(delivery), MlflowDelivery::Outcome::kLater) << "a second time it must be somebody's decision";
}

TEST_F(Mlflow, AnotherServerOrAnotherSpoolBeginsAtTheBeginning) {
  put_run(5);
  EXPECT_EQ(deliver_all(), MlflowDelivery::Outcome::kNothing);
  server_ = ModelServer();
  MlflowDelivery other(folder_, "http://other:1", transport());
  EXPECT_EQ(deliver_all(other), MlflowDelivery::Outcome::kNothing);
  EXPECT_EQ(ModelServer::steps(server_.runs.at("run1"), "loss"), up_to(5));
  std::filesystem::remove(mlflow_spool_file(folder_));
  put_run(7, "bb");
  MlflowDelivery again(folder_, "http://other:1", transport());
  // The right to send was to the old file.
  EXPECT_EQ(deliver_all(again), MlflowDelivery::Outcome::kNothing);
  EXPECT_EQ(ModelServer::steps(server_.runs.at("run2"), "loss"), up_to(7));
}

TEST_F(Mlflow, OneProcessSendsAtATime) {
  put_run(5);
  MlflowSendRight other(folder_);
  ASSERT_TRUE(other.take());
  EXPECT_EQ(deliver_all(), MlflowDelivery::Outcome::kLater);
  EXPECT_TRUE(server_.calls.empty());
  EXPECT_THROW(send_spooled(folder_, "http://127.0.0.1:1"), Error);
}

TEST_F(Mlflow, WhatIsNoMlflowServerIsNamed) {
  put_run(1);
  MlflowDelivery page(folder_, "http://h:1", [](const std::string&, const std::string&) {
    return HttpAnswer{200, "<html>hello</html>", ""};
  });
  EXPECT_EQ(page.deliver(), MlflowDelivery::Outcome::kLater);
  EXPECT_THAT(page.trouble(), HasSubstr("is it an MLflow server"));
  MlflowDelivery nothing(folder_, "http://h:1", [](const std::string&, const std::string&) {
    return HttpAnswer{404, "not here", ""};
  });
  // The first one still has the right to send.
  EXPECT_EQ(nothing.deliver(), MlflowDelivery::Outcome::kLater);
}

}  // namespace
}  // namespace plimsoll::report
