// Plots and the page that holds them: what is drawn, what names out of a dataset cannot do, and gnuplots that are
// missing, broken or stuck.

#include <gmock/gmock.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>

#include "core/file.h"
#include "report/gnuplot.h"
#include "report/html_report.h"
#include "report/plots.h"
#include "report/report_files.h"

namespace plimsoll::report {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::StartsWith;
using namespace std::chrono_literals;

constexpr const char* kPng = "\x89PNG\r\n\x1a\n";
const std::string kNasty = "`touch hacked` 'x' \"<script>alert(1)</script>\" $(touch hacked) \\ @y\n\x1b[31m";

StepLine plot_step(std::int64_t step, double loss) {
  StepLine line;
  line.step = step;
  line.loss = loss;
  line.lr = 0.5;
  line.step_ms = 1000;
  line.samples = 8;
  line.ranks = {{3 << 20, 0, 4 << 20, 0}};
  return line;
}

RunStreams plotted_run() {
  RunStreams run;
  run.folder = "runs/a";
  run.steps = {plot_step(1, 4), plot_step(2, 2), plot_step(3, 3)};
  DecisionRecord decision;
  decision.step = 2;
  decision.target = 0.5;
  decision.changed = true;
  decision.reason = "room below the target";
  run.decisions = {decision};
  return run;
}

std::string curves(const RunStreams& run) { return training_curves_script(run, summarise_run(run)); }
std::string tasks(const RunStreams& run) { return task_comparison_script(run, summarise_run(run)); }
std::string page(const RunStreams& run, const std::vector<Picture>& pictures = {}) {
  return html_report(run, summarise_run(run), summarise_epochs(run), pictures, {"a note"});
}

TEST(Plots, CurvesHoldTheStreamsNumbers) {
  const std::string script = curves(plotted_run());
  EXPECT_THAT(script, HasSubstr("$panel0 << EOD\n1 4 4\n2 2 3\n3 3 3\nEOD\n"));  // loss and its mean of 3 steps
  EXPECT_THAT(script, HasSubstr("'mean of 3 steps'"));
  EXPECT_THAT(script, HasSubstr("$panel1 << EOD\n1 0.5\n2 0.5\n3 0.5\nEOD\n"));  // no vl_lr: no such curve
  EXPECT_THAT(script, Not(HasSubstr("'adapters'")));
  EXPECT_THAT(script, HasSubstr("$panel2 << EOD\n1 8\n2 8\n3 8\nEOD\n"));
  EXPECT_THAT(script, HasSubstr("$panel3 << EOD\n1 3 4 2\n2 3 4 2\n3 3 4 2\nEOD\n"));  // MiB: peak, budget, target
  EXPECT_THAT(script, HasSubstr("set arrow from 2.5, graph 0 to 2.5, graph 1"));
  EXPECT_THAT(script, HasSubstr("layout 4,1"));
}

TEST(Plots, NothingToDrawIsNoScript) {
  RunStreams run;
  EXPECT_EQ(curves(run), "");
  EXPECT_EQ(tasks(run), "");
  run.steps.resize(2);
  run.steps[0].step = 1;
  run.steps[1].step = 2;
  EXPECT_EQ(curves(run), "");
  run.steps[1].loss = 5;
  EXPECT_THAT(curves(run), HasSubstr("$panel0 << EOD\n1 NaN NaN\n2 5 5\nEOD\n"));
  EXPECT_THAT(curves(run), HasSubstr("layout 1,1"));
}

TEST(Plots, LongRunsAreDrawnInGroups) {
  RunStreams run;
  for (int i = 1; i <= 3000; ++i) run.steps.push_back(plot_step(i, i % 2 == 0 ? 1 : 3));
  const std::string script = curves(run);
  EXPECT_THAT(script, HasSubstr("$panel0 << EOD\n2 2 2\n4 2 2\n"));
  EXPECT_THAT(script, Not(HasSubstr("\n3 ")));
}

TEST(Plots, TasksAreComparedWhereThereAreTwo) {
  RunStreams run = plotted_run();
  for (StepLine& step : run.steps) step.tasks = {{"pick", *step.loss, 3}};
  EXPECT_EQ(tasks(run), "");
  for (StepLine& step : run.steps) step.tasks.push_back({"place", *step.loss / 2, std::nullopt});
  const std::string script = tasks(run);
  EXPECT_THAT(script, HasSubstr("$panel0 << EOD\n1 4 2\n2 2 1\n3 3 1.5\nEOD\n"));
  EXPECT_THAT(script, HasSubstr("$bars0 << EOD\n0 3\n1 1.5\nEOD\n"));  // the last step's
  EXPECT_THAT(script, HasSubstr("$bars1 << EOD\n0 9\n1 NaN\nEOD\n"));  // counts
  EXPECT_THAT(script, HasSubstr("set xtics ('pick' 0, 'place' 1)"));
  EXPECT_THAT(script, HasSubstr("layout 3,1"));
  EXPECT_THAT(script, Not(HasSubstr("$bars2"))) << "nothing is known of their memory";
}

TEST(Plots, MemoryOfATaskIsASamples) {
  RunStreams run = plotted_run();
  const TaskMemory compared{1, 3, 5 << 20, 6 << 20, 0.5, 0.5};
  for (StepLine& step : run.steps) step.tasks = {{"pick", *step.loss, 3, compared}, {"place", *step.loss, 3}};
  const std::string script = tasks(run);
  EXPECT_THAT(script, HasSubstr("layout 4,1"));
  EXPECT_THAT(script, HasSubstr("$bars2 << EOD\n0 2\n1 NaN\nEOD\n")) << "18 MiB of 9 samples";
  EXPECT_THAT(script, HasSubstr("'activations a sample, MiB'"));
}

TEST(Plots, NamesAreQuoted) {
  EXPECT_EQ(quoted("it's"), "'it''s'");
  EXPECT_EQ(quoted("a\nb"), "'a b'");
  EXPECT_EQ(quoted("'"), "''''");
}

TEST(Html, EscapesWhatComesFromStreams) {
  RunStreams run = plotted_run();
  run.folder = "runs/" + kNasty;
  run.decisions[0].reason = kNasty;
  run.decisions[0].policy = kNasty;
  run.cache_changes = {{2, kNasty, kNasty, 0.5}};
  run.configuration = {{"data.path", kNasty}};
  run.exit = ExitRecord{ExitCode::kData, kNasty, 1, std::nullopt, 1};
  run.steps[0].tasks = {{kNasty, 1.0, 1}};
  const std::string text = page(run, {{kNasty, "png"}});
  EXPECT_THAT(text, Not(HasSubstr("<script")));
  EXPECT_THAT(text, Not(HasSubstr("\x1b")));
  EXPECT_THAT(text, HasSubstr("&lt;script&gt;"));
}

TEST(Html, ShowsReasonsChangesAndNotesAndFetchesNothing) {
  const std::string text = page(plotted_run(), {{"Curves", "\xff\xfe\xfd"}});
  EXPECT_THAT(text, HasSubstr("<td>room below the target</td>"));
  EXPECT_THAT(text, HasSubstr("<tr class=\"changed\"><td>2</td>"));
  EXPECT_THAT(text, HasSubstr("<td>a note</td>"));
  EXPECT_THAT(text, HasSubstr("<img alt=\"Curves\" src=\"data:image/png;base64,//79\">"));
  EXPECT_THAT(text, Not(HasSubstr("http")));
  EXPECT_THAT(page(plotted_run()), Not(HasSubstr("<img")));
}

TEST(Html, OfManyDecisionsTheChangesAndTheNewestAreShown) {
  RunStreams run = plotted_run();
  run.decisions[0].reason = "the first change";
  DecisionRecord kept;
  kept.step = 3;
  kept.reason = "kept long ago";
  run.decisions.push_back(kept);
  kept.reason = "kept lately";
  run.decisions.insert(run.decisions.end(), 500, kept);
  const std::string text = page(run);
  EXPECT_THAT(text, HasSubstr("the first change"));
  EXPECT_THAT(text, HasSubstr("kept lately"));
  EXPECT_THAT(text, Not(HasSubstr("kept long ago")));
  EXPECT_THAT(text, HasSubstr("501 of 502 are shown"));
}

TEST(Html, ShowsWhatTheFeatureCacheHitHeldAndSaved) {
  RunStreams run = plotted_run();
  EXPECT_THAT(page(run), Not(HasSubstr("Feature cache")));
  CacheUseRecord first, last;
  first.step = 2;
  first.loaded = last.loaded = 10;
  first.from_disk = 4;
  first.kept = 6;
  first.disk_bytes = 600;
  first.upkeep_ms = 500;
  last.step = 3;
  last.from_disk = 3;
  last.from_memory = 2;
  last.from_device = 1;
  last.disk_bytes = 900;
  last.memory_bytes = 300;
  last.device_bytes = 100;
  last.saved_ms = 1500;
  last.age = 3.5;
  run.cache_use = {first, last};
  const std::string use = page(run);
  EXPECT_THAT(use, HasSubstr("<h2>Feature cache</h2>"));
  EXPECT_THAT(use, HasSubstr("<tr><td>device memory</td><td>1</td><td>5.0 %</td><td>100 B</td></tr>"));
  EXPECT_THAT(use, HasSubstr("<tr><td>host memory</td><td>2</td><td>10.0 %</td><td>300 B</td></tr>"));
  EXPECT_THAT(use, HasSubstr("<tr><td>disk</td><td>7</td><td>35.0 %</td><td>900 B</td></tr>"));
  EXPECT_THAT(use, HasSubstr("<tr><td>the model itself</td><td>10</td><td>50.0 %</td><td>-</td></tr>"));
  EXPECT_THAT(use, HasSubstr("<tr><td>computing saved</td><td>1.5 s</td></tr>"));
  EXPECT_THAT(use, HasSubstr("took</td><td>0.5 s</td></tr>"));
  EXPECT_THAT(use, HasSubstr("written</td><td>6</td></tr>"));
  EXPECT_THAT(use, HasSubstr("in steps</td><td>3.5</td></tr>"));
  EXPECT_THAT(use, Not(HasSubstr("rebuilds</h2>")));
  EXPECT_THAT(use, Not(HasSubstr("drift of")));
  run.drift = {{2, 8, 0.5, 0.9}, {3, 8, 0.25, 0.9}};
  run.cache_changes = {{2, "rebuild", "moved too far", 0.5}};
  const std::string rebuilt = page(run);
  EXPECT_THAT(rebuilt, HasSubstr("<td>0.25 at last, 0.5 at most</td>"));
  EXPECT_THAT(rebuilt, HasSubstr("<h2>Feature cache: rebuilds</h2>"));
  EXPECT_THAT(rebuilt, HasSubstr("<tr><td>2</td><td>rebuild</td><td>0.5</td><td>moved too far</td></tr>"));
}

TEST(Html, OfACacheThatSaidNothingYetOnlyTheRebuildsAreShown) {
  RunStreams run = plotted_run();
  run.cache_changes = {{2, "rebuild", "they are old", std::nullopt}};
  const std::string text = page(run);
  EXPECT_THAT(text, Not(HasSubstr("<h2>Feature cache</h2>")));
  EXPECT_THAT(text, Not(HasSubstr("computing saved")));
  EXPECT_THAT(text, HasSubstr("<td>they are old</td>"));
}

TEST(Base64, AsInTheRfc) {
  EXPECT_EQ(base64(""), "");
  EXPECT_EQ(base64("f"), "Zg==");
  EXPECT_EQ(base64("fo"), "Zm8=");
  EXPECT_EQ(base64("foo"), "Zm9v");
  EXPECT_EQ(base64("foobar"), "Zm9vYmFy");
}

/// A folder that is the whole PATH, so that gnuplot is what a test puts there.
class Gnuplot : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::path(::testing::TempDir()) / ("gnuplot-" + std::to_string(::getpid()));
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_ / "bin");
    std::filesystem::create_directories(folder_ / "run");
    path_ = std::getenv("PATH");
  }
  void TearDown() override {
    ::setenv("PATH", path_.c_str(), 1);
    std::filesystem::remove_all(folder_);
  }
  void only_this_gnuplot(const std::string& script) {
    const auto program = folder_ / "bin/gnuplot";
    if (!script.empty()) {
      std::ofstream(program) << "#!/bin/sh\n" << script << "\n";
      std::filesystem::permissions(program, std::filesystem::perms::owner_all);
    }
    ::setenv("PATH", (folder_ / "bin").c_str(), 1);
  }
  /// Skips where it is not installed; the other tests are of that case.
  bool is_installed() const { return std::system("command -v gnuplot > /dev/null 2>&1") == 0; }
  void put_run() const {
    std::ofstream file(folder_ / "run/metrics.jsonl");
    for (int i = 1; i <= 30; ++i) {
      nlohmann::json line = {{"step", i}, {"loss", 3.0 / i}, {"lr", 0.1}, {"samples", 4}, {"step_ms", 100}};
      line["memory"] = {{{"peak", 100 + i}, {"budget", 200}}};
      line["task_losses"] = {{kNasty, 1.0 / i}, {"\xc3\xa9t\xc3\xa9 {/Symbol a}^2_3", 2.0 / i}};
      line["task_memory"][kNasty] = {{"micro_batches", 1}, {"samples", 4}, {"measured", 8 << 20}};
      file << line.dump() << "\n";
    }
  }

  std::filesystem::path folder_;
  std::string path_;
};

TEST_F(Gnuplot, DrawsWhatIsAskedWhateverNamesSay) {
  if (!is_installed()) GTEST_SKIP() << "gnuplot is not installed";
  put_run();
  std::filesystem::current_path(folder_ / "run");
  const WrittenReport report = write_report(".");
  for (const char* name : {"training_curves.png", "task_comparison.png"}) {
    EXPECT_THAT(report.files, Contains(std::filesystem::path(".") / name));
    EXPECT_THAT(read_file(name), StartsWith(kPng));
    EXPECT_GT(std::filesystem::file_size(name), 5000U) << name;
  }
  EXPECT_FALSE(std::filesystem::exists("hacked"));
  for (const std::string& note : report.notes) EXPECT_THAT(note, Not(HasSubstr("plot"))) << note;
  EXPECT_THAT(read_file("report.html"), HasSubstr(base64(read_file("training_curves.png"))));
  std::filesystem::current_path("/");
}

TEST_F(Gnuplot, ASingleStepIsDrawnToo) {
  if (!is_installed()) GTEST_SKIP() << "gnuplot is not installed";
  RunStreams run = plotted_run();
  run.steps.resize(1);
  const Drawing drawing = draw(curves(run));
  EXPECT_THAT(drawing.png, StartsWith(kPng)) << drawing.problem;
}

TEST_F(Gnuplot, ItsAbsenceIsSaidOnceAndIsNoError) {
  put_run();
  std::ofstream(folder_ / "run/training_curves.png") << "of an earlier report";
  only_this_gnuplot("");
  const WrittenReport report = write_report(folder_ / "run");
  EXPECT_EQ(
      std::count(report.notes.begin(), report.notes.end(), "no plots: gnuplot is not installed (Debian's gnuplot-nox)"),
      1);
  EXPECT_FALSE(std::filesystem::exists(folder_ / "run/training_curves.png"));
  const std::string html = read_file(folder_ / "run/report.html");
  EXPECT_THAT(html, HasSubstr("gnuplot is not installed"));
  EXPECT_THAT(html, Not(HasSubstr("<img")));
}

TEST_F(Gnuplot, OneThatFailsIsQuoted) {
  only_this_gnuplot("echo >&2; echo 'gnuplot: no fonts' >&2; exit 3");
  Drawing drawing = draw("plot 1");
  EXPECT_THAT(drawing.png, IsEmpty());
  EXPECT_EQ(drawing.problem, "no plot: gnuplot failed: gnuplot: no fonts");
  only_this_gnuplot("kill -9 $$");
  EXPECT_EQ(draw("plot 1").problem, "no plot: gnuplot failed: it said nothing");
  only_this_gnuplot("echo this is no picture");
  EXPECT_EQ(draw("plot 1").problem, "no plot: gnuplot failed: it said nothing");
  std::filesystem::permissions(folder_ / "bin/gnuplot", std::filesystem::perms::owner_read);
  EXPECT_THAT(draw("plot 1").problem, StartsWith("no plots: gnuplot cannot be started"));
}

TEST_F(Gnuplot, OneThatHangsIsKilled) {
  only_this_gnuplot("echo $$ > " + (folder_ / "pid").string() + "; while :; do :; done");
  const Drawing drawing = draw("plot 1", 2s);
  EXPECT_THAT(drawing.problem, HasSubstr("did not end within 2 s and was killed"));
  const int pid = std::stoi(read_file(folder_ / "pid"));
  EXPECT_NE(::kill(pid, 0), 0) << "it still runs";
}

TEST_F(Gnuplot, ReadsItsScriptAndWritesAPictureOfAnySize) {
  // "cat" is not in this PATH: the shell itself copies what it reads.
  only_this_gnuplot("while read -r line; do echo \"$line\"; done");
  const std::string script = std::string(kPng) + std::string(300000, 'x') + "\n";
  EXPECT_EQ(draw(script).png.size(), script.size());
}

}  // namespace
}  // namespace plimsoll::report
