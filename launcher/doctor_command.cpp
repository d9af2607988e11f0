#include <fmt/format.h>

#include <algorithm>

#include "core/error.h"
#include "launcher/commands.h"
#include "launcher/doctor.h"
#include "launcher/run_config.h"

namespace plimsoll {

int run_doctor(const std::vector<std::string>& args) {
  cxxopts::Options options("plimsoll doctor",
                           "Say what this machine has and what is missing; exit code 2 when something is");
  options.add_options()("json", "Print JSON");
  add_config_options(options);
  const auto parsed = parse_options(options, args);
  if (!parsed) return 0;
  const train::Config config = read_config(*parsed);
  const std::vector<Finding> findings = examine(config.run.dir);
  fmt::print("{}", parsed->count("json") > 0 ? findings_as_json(findings) : findings_as_text(findings));
  const bool ok = std::all_of(findings.begin(), findings.end(), [](const Finding& finding) { return finding.ok; });
  return static_cast<int>(ok ? ExitCode::kDone : ExitCode::kUsage);
}

}  // namespace plimsoll
