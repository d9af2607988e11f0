// The program: finds the subcommand, and turns what it throws into a line on standard error and an exit code.

#include <algorithm>
#include <array>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <new>
#include <string_view>

#include "core/error.h"
#include "core/log.h"
#include "launcher/commands.h"
#include "launcher/version.h"

namespace {

struct Command {
  std::string_view name;
  int (*run)(const std::vector<std::string>&);
  const char* summary;
};

constexpr std::array kCommands{
    Command{"launch", plimsoll::run_launch, "start ranks under mpirun, restart and stop them"},
    Command{"dataset", plimsoll::run_dataset, "show single rows of a LeRobot dataset"},
    Command{"demo-data", plimsoll::run_demo_data, "simulate a small tabletop task and write it as a LeRobot dataset"},
    Command{"init-model", plimsoll::run_init_model, "write a randomly initialised Qwen2.5-VL directory"},
    Command{"features", plimsoll::run_features, "write what the VLM computes for one prompt"},
    Command{"plan", plimsoll::run_plan, "say what fits on cards of given sizes, from config.json alone"},
    Command{"tune", plimsoll::run_tune, "measure plans on this machine under emulated budgets"},
    Command{"train", plimsoll::run_train, "train as one rank: alone, or under mpirun or srun"},
    Command{"eval", plimsoll::run_eval, "let a policy act in the demo's simulator: success rate, pictures, a video"},
    Command{"simulate", plimsoll::run_simulate, "drive the memory policies with a trace of peaks or a made-up run"},
    Command{"cache", plimsoll::run_cache, "build a feature cache, look at it, verify or clear it"},
    Command{"report", plimsoll::run_report, "write the report of a run from what it wrote down, and sum it up"},
    Command{"doctor", plimsoll::run_doctor, "say what this machine has and what is missing"},
    Command{"config", plimsoll::run_config, "print the manual of all configuration keys, or a resolved configuration"},
};

void print_usage(std::FILE* to) {
  fmt::print(to, "usage: plimsoll COMMAND [options]; plimsoll COMMAND --help says more\n\n");
  for (const Command& command : kCommands) fmt::print(to, "  {:<12} {}\n", command.name, command.summary);
}

int run(std::vector<std::string> args) {
  const std::string name = args.empty() ? "" : args[0];
  if (name == "--help" || name == "-h" || name == "help") return print_usage(stdout), 0;
  if (name == "--version") return fmt::print("plimsoll {}\n", plimsoll::kVersion), 0;
  const auto* command =
      std::find_if(kCommands.begin(), kCommands.end(), [&](const Command& c) { return c.name == name; });
  if (command == kCommands.end()) {
    print_usage(stderr);
    plimsoll::fail(plimsoll::ExitCode::kUsage, "{}",
                   name.empty() ? "no command given" : "unknown command \"" + name + "\"");
  }
  plimsoll::start_logging("info");
  args.erase(args.begin());
  return command->run(args);
}

int complain(plimsoll::ExitCode code, std::string_view kind, std::string_view text) {
  // libtorch's errors end in a stack trace that helps nobody here.
  text = text.substr(0, text.find("\nException raised from"));
  fmt::print(stderr, "plimsoll: error: {}{}\n", kind, text);
  return static_cast<int>(code);
}

}  // namespace

int main(int argc, char** argv) {
  using plimsoll::ExitCode;
  // A file at the size limit (ulimit -f) is an error like a full disk, not a sudden death.
  std::signal(SIGXFSZ, SIG_IGN);
  try {
    return run(std::vector<std::string>(argv + 1, argv + argc));
  } catch (const plimsoll::Error& error) {
    return complain(error.code(), "", error.what());
  } catch (const std::bad_alloc&) {
    return complain(ExitCode::kMemory, "",
                    "host memory is exhausted; lower data.prefetch, data.workers or memory.budget");
  } catch (const std::filesystem::filesystem_error& error) {
    return complain(ExitCode::kData, "", error.what());
  } catch (const std::exception& error) {
    return complain(ExitCode::kData, "internal error: ", error.what());
  }
}
