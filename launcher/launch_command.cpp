#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>

#include "core/error.h"
#include "launcher/commands.h"
#include "launcher/run_config.h"
#include "launcher/supervisor.h"

namespace plimsoll {
namespace {

cxxopts::Options describe() {
  cxxopts::Options options(
      "plimsoll launch",
      "Start ranks of `plimsoll train` under mpirun, restart them from the last checkpoint when one is "
      "lost, and stop them with a checkpoint on SIGTERM, SIGINT or at the time limit.\n"
      "What follows -- goes to mpirun as it is. PLIMSOLL_MPIRUN names another mpirun.");
  add_config_options(options);
  auto add = options.add_options();
  add("n", "Number of ranks (default: launch.ranks)", cxxopts::value<std::int64_t>());
  add("host", "mpirun's --host", cxxopts::value<std::string>());
  add("hostfile", "mpirun's --hostfile", cxxopts::value<std::string>());
  add("resume", "Continue from the newest complete checkpoint of the run");
  add("max-steps", "Override train.max_steps", cxxopts::value<std::int64_t>());
  return options;
}

/// What stands before and after the first "--".
struct Arguments {
  std::vector<std::string> own, of_mpirun;
};

Arguments split(const std::vector<std::string>& args) {
  const auto dashes = std::find(args.begin(), args.end(), "--");
  if (dashes == args.end()) return {args, {}};
  return {{args.begin(), dashes}, {dashes + 1, args.end()}};
}

void append(std::vector<std::string>& to, const std::vector<std::string>& more) {
  to.insert(to.end(), more.begin(), more.end());
}

bool mentions(const std::vector<std::string>& arguments, const std::string& option) {
  return std::any_of(arguments.begin(), arguments.end(), [&](const std::string& a) { return a.rfind(option, 0) == 0; });
}

std::vector<std::string> mpirun_command(const cxxopts::ParseResult& parsed, std::int64_t ranks,
                                        const std::vector<std::string>& extra) {
  const char* program = std::getenv("PLIMSOLL_MPIRUN");
  std::vector<std::string> command{program != nullptr ? program : "mpirun", "-n", std::to_string(ranks)};
  bool elsewhere = false;
  for (const char* option : {"host", "hostfile"}) {
    if (parsed.count(option) > 0) append(command, {std::string("--") + option, parsed[option].as<std::string>()});
    elsewhere |= parsed.count(option) > 0 || mentions(extra, std::string("--") + option);
  }
  // On one machine mpirun counts cores without their hyperthreads, and refuses more ranks than that.
  if (!elsewhere) command.emplace_back("--oversubscribe");
  // By default mpirun pins a rank, its loader threads included, to one core.
  if (!mentions(extra, "--bind-to")) append(command, {"--bind-to", "none"});
  append(command, {"-x", "PLIMSOLL_ATTEMPT", "-x", "PLIMSOLL_TERMINAL"});
  append(command, extra);
  return command;
}

std::vector<std::string> train_command(const cxxopts::ParseResult& parsed) {
  // A stop request while a rank still loads its libraries must not kill it: `train` takes the signal over when it can.
  std::vector<std::string> command{"env", "--ignore-signal=USR1", std::filesystem::read_symlink("/proc/self/exe"),
                                   "train"};
  if (parsed.count("config") > 0) append(command, {"--config", parsed["config"].as<std::string>()});
  for (const std::string& text : values(parsed, "set")) append(command, {"--set", text});
  if (parsed.count("max-steps") > 0) {
    append(command, {"--max-steps", std::to_string(parsed["max-steps"].as<std::int64_t>())});
  }
  if (parsed.count("resume") > 0) command.emplace_back("--resume");
  return command;
}

void prepare_environment() {
  // mpirun gives ranks a terminal of its own making: only we know whether a person watches.
  ::setenv("PLIMSOLL_TERMINAL", ::isatty(STDOUT_FILENO) == 1 ? "1" : "0", 1);
  if (::geteuid() != 0) return;
  ::setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 1);
  ::setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 1);
}

}  // namespace

int run_launch(const std::vector<std::string>& args) {
  const Arguments arguments = split(args);
  cxxopts::Options options = describe();
  const auto parsed = parse_options(options, arguments.own);
  if (!parsed) return 0;
  // Read here too: a mistake is told once and at once, before any rank starts.
  required(*parsed, "config");
  const train::Config config = read_config(*parsed);
  const std::int64_t ranks = parsed->count("n") > 0 ? (*parsed)["n"].as<std::int64_t>() : config.launch.ranks;
  if (ranks < 1) fail(ExitCode::kUsage, "-n {} is not allowed; expected: at least 1", ranks);
  std::vector<std::string> mpirun_arguments = config.launch.mpirun_args;
  append(mpirun_arguments, arguments.of_mpirun);

  prepare_environment();
  Supervision supervision;
  supervision.command = mpirun_command(*parsed, ranks, mpirun_arguments);
  append(supervision.command, train_command(*parsed));
  supervision.run_dir = config.run.dir;
  supervision.max_restarts = config.launch.max_restarts;
  supervision.time_limit = config.launch.time_limit;
  return supervise(supervision);
}

}  // namespace plimsoll
