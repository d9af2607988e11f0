#include "launcher/run_config.h"

namespace plimsoll {

void add_config_options(cxxopts::Options& options) {
  options.add_options()("config", "Configuration file (TOML)", cxxopts::value<std::string>())(
      "set", "Override table.key=value; may be repeated", cxxopts::value<std::vector<std::string>>());
}

train::Config read_config(const cxxopts::ParseResult& parsed) {
  return read_config(parsed, parsed.count("config") > 0 ? parsed["config"].as<std::string>() : "");
}

train::Config read_config(const cxxopts::ParseResult& parsed, const std::string& path) {
  return load_config<train::Config>(path, values(parsed, "set"));
}

std::string run_config_reference() { return config_reference<train::Config>(); }
std::string run_config_to_toml(const train::Config& config) { return config_to_toml(config); }

}  // namespace plimsoll
