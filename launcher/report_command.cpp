// `plimsoll report`: what a run left behind, from its streams; for people, and as JSON.

#include <fmt/format.h>

#include "core/error.h"
#include "launcher/commands.h"
#include "launcher/options.h"
#include "report/report_files.h"

namespace plimsoll {

int run_report(const std::vector<std::string>& args) {
  cxxopts::Options options("plimsoll report",
                           "Write the report of a run into its folder, from its streams, and say what it comes to; "
                           "also of a run that goes on or was killed");
  options.add_options()("dir", "Folder of the run (run.dir)", cxxopts::value<std::string>())(
      "json", "Print training_report.json");
  options.parse_positional({"dir"});
  options.positional_help("RUN_DIR");
  const auto parsed = parse_options(options, args);
  if (!parsed) return 0;
  if (parsed->count("dir") == 0) fail(ExitCode::kUsage, "plimsoll report: give the folder of the run (run.dir)");
  const report::WrittenReport report = report::write_report((*parsed)["dir"].as<std::string>());
  if (parsed->count("json") > 0) {
    fmt::print("{}", report.training_report);
    return 0;
  }
  fmt::print("{}", report.summary);
  for (const std::string& note : report.notes) fmt::print("note         {}\n", note);
  for (const auto& file : report.files) fmt::print("wrote        {}\n", file.string());
  return 0;
}

}  // namespace plimsoll
