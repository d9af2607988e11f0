#include <fmt/format.h>

#include "launcher/commands.h"
#include "launcher/run_config.h"

namespace plimsoll {
namespace {

constexpr const char* kPreface =
    "# Configuration\n\n"
    "Every key, its default and what it may be. Written by `plimsoll config` from the declarations in the sources: "
    "change it\n"
    "there. Files are TOML; `--set table.key=value` overrides a key on the command line of every command that takes "
    "`--config`.\n";

}  // namespace

int run_config(const std::vector<std::string>& args) {
  cxxopts::Options options("plimsoll config",
                           "Print the manual of all configuration keys (Markdown), or a resolved configuration (TOML)");
  add_config_options(options);
  const auto parsed = parse_options(options, args);
  if (!parsed) return 0;
  if (parsed->count("config") + parsed->count("set") == 0) {
    fmt::print("{}{}", kPreface, run_config_reference());
    return 0;
  }
  fmt::print("{}", run_config_to_toml(read_config(*parsed)));
  return 0;
}

}  // namespace plimsoll
