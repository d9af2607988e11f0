// `plimsoll cache build|stat|verify|clear`: makes what is missing in a feature cache, says what lies there and whether
// it is whole, and away with it.

#include <fmt/format.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <utility>

#include "cache/survey.h"
#include "core/bytes.h"
#include "core/error.h"
#include "launcher/commands.h"
#include "launcher/options.h"
#include "launcher/run_config.h"
#include "train/run.h"

namespace plimsoll {
namespace {

nlohmann::ordered_json json_of(const cache::FolderReport& report) {
  auto fingerprint = nlohmann::ordered_json::parse(report.fingerprint, nullptr, false);
  if (fingerprint.is_discarded()) fingerprint = nullptr;  // missing or damaged: what is discarded cannot be written
  return {{"folder", report.folder.string()},
          {"fingerprint", std::move(fingerprint)},
          {"segments", report.segments},
          {"records", report.records},
          {"samples", report.samples},
          {"bytes", report.bytes},
          {"torn_bytes", report.torn_bytes},
          {"being_written", report.being_written},
          {"newest_step", cache::step_of_stamp(report.newest_stamp)},
          {"damaged", report.damaged}};
}

std::string size_text(std::uint64_t bytes) { return format_bytes(static_cast<std::int64_t>(bytes)); }

void print(const cache::FolderReport& report) {
  fmt::print("{}\n  {} samples, {} records in {} segments, {}\n", report.folder.string(), report.samples,
             report.records, report.segments, size_text(report.bytes));
  if (report.torn_bytes > 0)
    fmt::print("  {} behind them: of a writer that was killed, or is at work\n", size_text(report.torn_bytes));
  if (report.being_written > 0) fmt::print("  a run is writing to it\n");
  const auto facts = nlohmann::ordered_json::parse(report.fingerprint, nullptr, false);
  if (facts.is_object()) {
    for (const auto& [name, value] : facts.items())
      fmt::print("  {}: {}\n", name, value.is_string() ? value.get<std::string>() : value.dump());
  }
  for (const std::string& damaged : report.damaged) fmt::print("  damaged: {}\n", damaged);
}

int show(const std::string& dir, bool check, bool as_json) {
  const auto reports = cache::survey(dir, check);
  std::size_t damaged = 0;
  for (const auto& report : reports) damaged += report.damaged.size();
  if (as_json) {
    nlohmann::ordered_json all = nlohmann::ordered_json::array();
    for (const auto& report : reports) all.push_back(json_of(report));
    fmt::print("{}\n", all.dump(2));
  } else {
    for (const auto& report : reports) print(report);
    if (reports.empty()) fmt::print("{}: holds no features\n", dir);
    if (check) fmt::print("{}\n", damaged == 0 ? "all is as it was written" : "what is damaged is not used by a run");
  }
  return check && damaged > 0 ? static_cast<int>(ExitCode::kData) : 0;
}

// A run may be at work in the configuration's own run.dir; logs of a build are kept beside what it makes.
std::string run_folder_of_build(const std::string& cache) {
  if (cache.empty()) fail(ExitCode::kUsage, "cache.dir is empty; give the folder of the feature cache");
  const std::filesystem::path folder = std::filesystem::path(cache) / "build";
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error)
    fail(ExitCode::kUsage, "cache.dir = \"{}\": {}; give `cache build` rights to write there, or choose another folder",
         cache, error.message());
  return folder.string();
}

int build(const cxxopts::ParseResult& parsed, bool as_json) {
  required(parsed, "config");
  train::RunOptions run;
  run.build_cache = [as_json](const train::BuiltCache& built) {
    if (as_json) {
      const nlohmann::ordered_json json = {{"folder", built.folder}, {"samples", built.samples},
                                           {"known", built.known},   {"made", built.made},
                                           {"bytes", built.bytes},   {"seconds", built.seconds}};
      fmt::print("{}\n", json.dump());
    } else {
      fmt::print("{} of {} samples have their features in {} ({}); {} were made in {:.1f} s\n", built.known,
                 built.samples, built.folder, size_text(built.bytes), built.made, built.seconds);
    }
  };
  train::Config config = read_config(parsed);
  config.run.dir = run_folder_of_build(config.cache.dir);
  return static_cast<int>(train::run(config, run));
}

}  // namespace

int run_cache(const std::vector<std::string>& args) {
  cxxopts::Options options("plimsoll cache",
                           "A feature cache: build (make what is missing, by --config; under mpirun by several ranks), "
                           "stat (what is there), verify (read and check all of it; exit code 4 when something is "
                           "damaged), clear (remove the named folders, or all)");
  add_config_options(options);
  auto add = options.add_options();
  add("action", "build, stat, verify or clear", cxxopts::value<std::string>());
  add("dir", "Folder of the cache (cache.dir)", cxxopts::value<std::string>());
  add("names", "clear: names of folders, or all", cxxopts::value<std::vector<std::string>>());
  add("json", "Print JSON");
  options.parse_positional({"action", "dir", "names"});
  options.positional_help("build --config C | stat|verify DIR | clear DIR [NAME...|all]");
  const auto parsed = parse_options(options, args);
  if (!parsed) return 0;
  const std::string action = parsed->count("action") > 0 ? (*parsed)["action"].as<std::string>() : "";
  if (action == "build") return build(*parsed, parsed->count("json") > 0);
  if (action != "stat" && action != "verify" && action != "clear")
    fail(ExitCode::kUsage, "plimsoll cache {}: give build and --config, or stat, verify or clear, then the folder",
         action);
  if (parsed->count("dir") == 0)
    fail(ExitCode::kUsage, "plimsoll cache {}: give the folder of the cache (cache.dir)", action);
  const auto dir = (*parsed)["dir"].as<std::string>();
  const bool as_json = parsed->count("json") > 0;
  if (action != "clear") return show(dir, action == "verify", as_json);
  if (parsed->count("names") == 0)
    fail(ExitCode::kUsage, "plimsoll cache clear {}: say which folders (`plimsoll cache stat` lists them), or all",
         dir);
  const std::uint64_t bytes = cache::clear(dir, (*parsed)["names"].as<std::vector<std::string>>());
  if (as_json) {
    fmt::print("{}\n", nlohmann::json{{"bytes", bytes}}.dump());
  } else {
    fmt::print("{} removed\n", size_text(bytes));
  }
  return 0;
}

}  // namespace plimsoll
