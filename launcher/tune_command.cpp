// `plimsoll tune`: measures plans on this machine under emulated budgets, and writes the table that `train` starts
// from.

#include <fmt/format.h>

#include <filesystem>

#include "core/bytes.h"
#include "core/error.h"
#include "core/file.h"
#include "launcher/commands.h"
#include "launcher/run_config.h"
#include "train/options.h"
#include "train/plan_table_file.h"
#include "train/tune.h"

namespace plimsoll {
namespace {

void write_table(const std::filesystem::path& out, const memory::PlanTable& table) {
  std::error_code error;
  if (out.has_parent_path()) std::filesystem::create_directories(out.parent_path(), error);
  if (error) fail(ExitCode::kUsage, "--out {}: {}", out.string(), error.message());
  write_file_durably(out, memory::to_toml(table));
  std::filesystem::path page = out;
  write_file_durably(page.replace_extension(".md"), memory::to_markdown(table));
}

}  // namespace

int run_tune(const std::vector<std::string>& args) {
  cxxopts::Options options("plimsoll tune",
                           "Measure plans on this machine under emulated budgets, and write the table that `train` "
                           "starts from (memory.table), and the same as Markdown beside it. One rank is measured, "
                           "alone, with the share that each of launch.ranks will have");
  add_config_options(options);
  auto add = options.add_options();
  add("budget", "Budgets, separated by commas", cxxopts::value<std::string>());
  add("steps", "Timed steps of a plan", cxxopts::value<std::int64_t>()->default_value("8"));
  add("contenders", "Plans measured per budget", cxxopts::value<std::int64_t>()->default_value("3"));
  add("out",
      "Table to write (default: configs/tables/ and the configuration's name, where memory.table = \"auto\" looks)",
      cxxopts::value<std::string>());
  const auto parsed = parse_options(options, args);
  if (!parsed) return 0;
  const std::filesystem::path configuration = required(*parsed, "config");
  const std::filesystem::path out = parsed->count("out") > 0
                                        ? std::filesystem::path((*parsed)["out"].as<std::string>())
                                        : std::filesystem::path(train::kTablesFolder) / configuration.filename();
  if (out.extension() != ".toml") fail(ExitCode::kUsage, "--out {}: give a name that ends in .toml", out.string());
  train::TuneOptions tune;
  tune.steps = (*parsed)["steps"].as<std::int64_t>();
  tune.contenders = (*parsed)["contenders"].as<std::int64_t>();
  if (tune.steps < 1 || tune.contenders < 1)
    fail(ExitCode::kUsage, "--steps {} --contenders {}: give at least 1", tune.steps, tune.contenders);
  const auto budgets = parse_sizes(required(*parsed, "budget"), "--budget");
  for (const std::int64_t budget : budgets) {
    if (budget > train::machine_memory())
      fail(ExitCode::kUsage, "--budget {}: more than the {} of this machine, where plans are measured; give less",
           format_bytes(budget), format_bytes(train::machine_memory()));
  }
  const auto table =
      train::tune(read_config(*parsed), budgets, tune, [](const std::string& text) { fmt::print("{}\n", text); });
  if (table.rows.empty()) fail(ExitCode::kMemory, "no plan fits any of these budgets: {}", required(*parsed, "budget"));
  write_table(out, table);
  const bool found_by_itself = out.parent_path() == train::kTablesFolder;
  fmt::print("\n{}\n{} written; `train` in this folder starts from it{}\n", memory::to_markdown(table), out.string(),
             found_by_itself ? "" : " with --set memory.table=" + out.string());
  return 0;
}

}  // namespace plimsoll
