#include "launcher/commands.h"
#include "launcher/options.h"
#include "train/run.h"

namespace plimsoll {

int run_train(std::vector<std::string> args) {
  cxxopts::Options options(
      "plimsoll train",
      "Train as one rank: alone, or started by `plimsoll launch`, mpirun or srun. SIGUSR1, SIGTERM and SIGINT "
      "end it with a checkpoint (under mpirun send SIGUSR1: the others kill the ranks)");
  auto add = options.add_options();
  add("config", "Configuration file (TOML)", cxxopts::value<std::string>());
  add("set", "Override table.key=value; may be repeated", cxxopts::value<std::vector<std::string>>());
  add("resume", "Continue from the newest complete checkpoint of the run");
  add("max-steps", "Override train.max_steps", cxxopts::value<std::int64_t>());
  add("plan-only", "Print the plan and its predicted memory, train nothing");
  const auto parsed = parse_options(options, args);
  if (!parsed) return 0;
  std::vector<std::string> overrides = values(*parsed, "set");
  if (parsed->count("max-steps") > 0) {
    overrides.push_back("train.max_steps=" + std::to_string((*parsed)["max-steps"].as<std::int64_t>()));
  }
  const auto config = load_config<train::Config>(required(*parsed, "config"), overrides);
  train::RunOptions run;
  run.resume = parsed->count("resume") > 0;
  run.plan_only = parsed->count("plan-only") > 0;
  return static_cast<int>(train::run(config, run));
}

}  // namespace plimsoll
