#include <fmt/format.h>

#include "launcher/commands.h"
#include "launcher/options.h"
#include "train/config.h"

namespace plimsoll {
namespace {

constexpr const char* kPreface =
    "# Configuration\n\n"
    "Every key, its default and what it may be. Written by `plimsoll config` from the declarations in the sources: "
    "change it\n"
    "there. Files are TOML; `--set table.key=value` overrides a key on the command line of every command that takes "
    "`--config`.\n";

}  // namespace

int run_config(std::vector<std::string> args) {
  cxxopts::Options options("plimsoll config",
                           "Print the manual of all configuration keys (Markdown), or a resolved configuration (TOML)");
  options.add_options()("config", "Resolve this file instead", cxxopts::value<std::string>())(
      "set", "Override table.key=value; may be repeated", cxxopts::value<std::vector<std::string>>());
  const auto parsed = parse_options(options, args);
  if (!parsed) return 0;
  if (parsed->count("config") + parsed->count("set") == 0) {
    fmt::print("{}{}", kPreface, config_reference<train::Config>());
    return 0;
  }
  const std::string path = parsed->count("config") > 0 ? (*parsed)["config"].as<std::string>() : "";
  fmt::print("{}", config_to_toml(load_config<train::Config>(path, values(*parsed, "set"))));
  return 0;
}

}  // namespace plimsoll
