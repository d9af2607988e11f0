#include "launcher/options.h"

#include <fmt/format.h>

#include <cstdio>

#include "core/error.h"

namespace plimsoll {

std::optional<cxxopts::ParseResult> parse_options(cxxopts::Options& options, const std::vector<std::string>& args) {
  options.add_options()("h,help", "Print this help");
  std::vector<const char*> argv{options.program().c_str()};
  for (const std::string& arg : args) argv.push_back(arg.c_str());
  try {
    cxxopts::ParseResult parsed = options.parse(static_cast<int>(argv.size()), argv.data());
    if (parsed.count("help") > 0) {
      fmt::print("{}", options.help());
      return std::nullopt;
    }
    if (!parsed.unmatched().empty()) {
      fail(ExitCode::kUsage, "{}: unexpected argument \"{}\"; see {} --help", options.program(), parsed.unmatched()[0],
           options.program());
    }
    return parsed;
  } catch (const cxxopts::exceptions::exception& error) {
    fail(ExitCode::kUsage, "{}: {}; see {} --help", options.program(), error.what(), options.program());
  }
}

std::string required(const cxxopts::ParseResult& parsed, const std::string& name) {
  if (parsed.count(name) == 0) fail(ExitCode::kUsage, "option --{} is missing; see --help", name);
  return parsed[name].as<std::string>();
}

std::vector<std::string> values(const cxxopts::ParseResult& parsed, const std::string& name) {
  return parsed.count(name) == 0 ? std::vector<std::string>() : parsed[name].as<std::vector<std::string>>();
}

}  // namespace plimsoll
