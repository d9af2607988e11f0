// The built program from outside: what a user types, sees and gets as an exit code.
#include <gmock/gmock.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <regex>
#include <sstream>

#include "core/file.h"

namespace plimsoll {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

struct Outcome {
  int code = -1;
  std::string out, err;
};

class Program : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::path(::testing::TempDir()) / ("program-" + std::to_string(::getpid()));
    std::filesystem::create_directories(folder_);
    program_ = std::filesystem::read_symlink("/proc/self/exe").parent_path() / "plimsoll";
    ASSERT_TRUE(std::filesystem::exists(program_)) << "build the program first";
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  /// `arguments` are words for a shell.
  Outcome run(const std::string& arguments) const {
    const auto out = folder_ / "out", err = folder_ / "err";
    const std::string command = program_.string() + " " + arguments + " > " + out.string() + " 2> " + err.string();
    const int status = std::system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read_file(out), read_file(err)};
  }
  std::string config_file(const std::string& text) const {
    std::ofstream(folder_ / "c.toml") << text;
    return (folder_ / "c.toml").string();
  }
  std::vector<std::string> commands() const {
    std::istringstream usage(run("--help").out);
    std::vector<std::string> names;
    const std::regex form("^  ([a-z-]+) +[a-z].*");
    std::smatch match;
    for (std::string line; std::getline(usage, line);) {
      if (std::regex_match(line, match, form)) names.push_back(match[1]);
    }
    return names;
  }

  std::filesystem::path folder_, program_;
};

TEST_F(Program, HelpAndVersion) {
  EXPECT_THAT(commands(), ::testing::IsSupersetOf({"launch", "doctor", "config"}));
  for (const std::string& name : commands()) {
    const Outcome help = run(name + " --help");
    EXPECT_EQ(help.code, 0) << name;
    EXPECT_THAT(help.out, AllOf(HasSubstr("Usage:"), HasSubstr("plimsoll " + name), HasSubstr("--help")));
    EXPECT_EQ(help.err, "") << name;
  }
  EXPECT_THAT(run("--version").out, StartsWith("plimsoll "));
}

TEST_F(Program, WrongUsageIsExitCode2AndSaysWhat) {
  EXPECT_THAT(run("").err, HasSubstr("plimsoll: error: no command given"));
  EXPECT_EQ(run("").code, 2);
  EXPECT_THAT(run("fly").err, HasSubstr("plimsoll: error: unknown command \"fly\""));
  for (const std::string& name : commands()) {
    const Outcome outcome = run(name + " --no-such-option");
    EXPECT_EQ(outcome.code, 2) << name;
    EXPECT_THAT(outcome.err, AllOf(StartsWith("plimsoll: error: "), HasSubstr("no-such-option"))) << name;
  }
  EXPECT_THAT(run("doctor extra").err, HasSubstr("unexpected argument \"extra\""));
  EXPECT_THAT(run("launch").err, HasSubstr("--config"));
  EXPECT_THAT(run("launch -n x --config c").err, HasSubstr("x"));
}

TEST_F(Program, AMistakeInTheConfigurationIsToldBeforeAnyRankStarts) {
  const auto refusal = [&](const std::string& text, const std::string& more) {
    ::setenv("PLIMSOLL_MPIRUN", "/bin/false", 1);
    const Outcome outcome = run("launch -n 2 --config " + config_file(text) + " " + more);
    ::unsetenv("PLIMSOLL_MPIRUN");
    EXPECT_EQ(outcome.code, 2) << outcome.err;
    return outcome.err;
  };
  const std::string file = (folder_ / "c.toml").string();
  EXPECT_EQ(refusal("[train]\nmax_step = 1\n", ""),
            "plimsoll: error: " + file + ":2: unknown key train.max_step; the nearest known one is train.max_steps\n");
  EXPECT_THAT(refusal("[trian]\nlr = 1\n", ""),
              HasSubstr(file + ":1: unknown table [trian]; the nearest known one is [train]"));
  EXPECT_THAT(refusal("[train]\nlr = \"fast\"\n", ""), HasSubstr(file + ":2: train.lr = \"fast\""));
  EXPECT_THAT(refusal("[train]\nlr = -1.0\n", ""), HasSubstr("expected: above 0"));
  EXPECT_THAT(refusal("[memory]\nbudget = \"24 parsecs\"\n", ""), HasSubstr("memory.budget = \"24 parsecs\""));
  EXPECT_THAT(refusal("[train\n", ""), HasSubstr("not valid TOML"));
  EXPECT_THAT(refusal("", "--set batch.efective=8"),
              HasSubstr("--set: unknown key batch.efective; the nearest known one is batch.effective"));
  EXPECT_THAT(refusal("", "--set batch.effective=0"), HasSubstr("--set: batch.effective = 0"));
  EXPECT_THAT(refusal("", "--set batch"), HasSubstr("table.key=value"));
  EXPECT_THAT(refusal("", "-n 0"), HasSubstr("-n 0"));
  const Outcome missing = run("launch --config " + (folder_ / "no.toml").string());
  EXPECT_EQ(missing.code, 2);
  EXPECT_THAT(missing.err, HasSubstr("no.toml"));
}

TEST_F(Program, LaunchWithoutMpirunSaysSo) {
  ::setenv("PLIMSOLL_MPIRUN", "/no/such/mpirun", 1);
  const Outcome outcome = run("launch -n 2 --config " + config_file("[run]\ndir = \"" + folder_.string() + "\"\n"));
  ::unsetenv("PLIMSOLL_MPIRUN");
  EXPECT_EQ(outcome.code, 2);
  EXPECT_THAT(outcome.err, HasSubstr("cannot start /no/such/mpirun"));
}

TEST_F(Program, LaunchHandsEverythingToTheRanks) {
  const auto script = folder_ / "mpirun";
  std::ofstream(script) << "#!/bin/sh\nprintf '%s\\n' \"$@\" > " << (folder_ / "words").string() << "\necho '"
                        << R"({"exit_code":75,"reason":"r","step":1,"checkpoint":null,"attempt":1})"
                        << "' > " << (folder_ / "exit.json").string() << "\n";
  std::filesystem::permissions(script, std::filesystem::perms::owner_all);
  ::setenv("PLIMSOLL_MPIRUN", script.c_str(), 1);
  const std::string file =
      config_file("[run]\ndir = \"" + folder_.string() + "\"\n[launch]\nmpirun_args = [\"--quiet\"]\n");
  const Outcome outcome = run("launch -n 3 --config " + file +
                              " --set 'memory.budget=[\"300MiB\",\"200MiB\"]' --set data.path=a,b -- --tag-output");
  const std::string words = read_file(folder_ / "words");
  const Outcome on_hosts = run("launch -n 3 --host one:2,two --config " + file);
  ::unsetenv("PLIMSOLL_MPIRUN");
  EXPECT_EQ(on_hosts.code, 75) << on_hosts.err;
  EXPECT_THAT(read_file(folder_ / "words"), StartsWith("-n\n3\n--host\none:2,two\n--bind-to\nnone\n"));
  EXPECT_EQ(outcome.code, 75) << outcome.err;
  EXPECT_THAT(words, StartsWith("-n\n3\n--oversubscribe\n--bind-to\nnone\n"));
  EXPECT_THAT(words, HasSubstr("\n--quiet\n--tag-output\nenv\n--ignore-signal=USR1\n" + program_.string() +
                               "\ntrain\n--config\n" + file +
                               "\n--set\nmemory.budget=[\"300MiB\",\"200MiB\"]\n--set\ndata.path=a,b\n"));
}

TEST_F(Program, ResolvedConfigurationLoadsBackIdentically) {
  const Outcome first = run("config --set memory.target=0.7 --set 'memory.budget=[0.5, \"1GiB\"]'");
  ASSERT_EQ(first.code, 0) << first.err;
  EXPECT_THAT(first.out, HasSubstr("budget = [0.5, \"1GiB\"]"));
  EXPECT_EQ(run("config --config " + config_file(first.out)).out, first.out);
}

TEST_F(Program, TheManualOfTheConfigurationIsCurrent) {
  EXPECT_TRUE(run("config").out == read_file("docs/configuration.md"))
      << "docs/configuration.md is old: plimsoll config > docs/configuration.md";
}

TEST_F(Program, EveryConfigurationInTheRepositoryLoads) {
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator("configs")) {
    if (entry.path().extension() != ".toml") continue;
    const Outcome outcome = run("config --config " + entry.path().string());
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    ++files;
  }
  EXPECT_GT(files, 0) << "configs/ is empty";
}

// What the issue that each was written for says of them.
TEST_F(Program, TheConfigurationsSayWhatTheyAreFor) {
  const auto resolved = [&](const std::string& name) { return run("config --config configs/" + name + ".toml").out; };
  for (const char* text : {"rank = 8", "alpha = 16", "dropout = 0.05", "epochs = 10", "lr = 0.0001", "vl_lr = 1e-05",
                           "effective = 32", "stage = 2"}) {
    EXPECT_THAT(resolved("stage2"), HasSubstr(text));
  }
  EXPECT_THAT(resolved("stage1"), HasSubstr("stage = 1"));
  EXPECT_THAT(resolved("reactive"), HasSubstr("policy = \"reactive\""));
  for (const char* text : {"policy = \"fixed\"", "micro = 2", "accumulation = 16", "effective = 32"}) {
    EXPECT_THAT(resolved("fixed"), HasSubstr(text));
  }
}

TEST_F(Program, DoctorSpeaksJson) {
  const auto json = nlohmann::json::parse(run("doctor --json").out);
  EXPECT_TRUE(json["ok"].is_boolean());
  EXPECT_EQ(run("doctor --set run.dir=/proc/no/such").code, 2);
}

}  // namespace
}  // namespace plimsoll
