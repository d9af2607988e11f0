#include "core/error.h"
#include "launcher/commands.h"
#include "launcher/run_config.h"
#include "train/run.h"

namespace plimsoll {
namespace {

std::int64_t max_steps(const cxxopts::ParseResult& parsed) {
  const auto steps = parsed["max-steps"].as<std::int64_t>();
  if (steps < 1) fail(ExitCode::kUsage, "--max-steps {} is not allowed; expected: at least 1", steps);
  return steps;
}

}  // namespace

int run_train(const std::vector<std::string>& args) {
  cxxopts::Options options(
      "plimsoll train",
      "Train as one rank: alone, or started by `plimsoll launch`, mpirun or srun. SIGUSR1, SIGTERM and SIGINT "
      "end it with a checkpoint (under mpirun send SIGUSR1: the others kill the ranks)");
  add_config_options(options);
  auto add = options.add_options();
  add("resume", "Continue from the newest complete checkpoint of the run");
  add("max-steps", "Override train.max_steps", cxxopts::value<std::int64_t>());
  add("plan-only", "Print the plan and its predicted memory, train nothing");
  const auto parsed = parse_options(options, args);
  if (!parsed) return 0;
  required(*parsed, "config");
  train::Config config = read_config(*parsed);
  if (parsed->count("max-steps") > 0) config.train.max_steps = max_steps(*parsed);
  train::RunOptions run;
  run.resume = parsed->count("resume") > 0;
  run.plan_only = parsed->count("plan-only") > 0;
  return static_cast<int>(train::run(config, run));
}

}  // namespace plimsoll
