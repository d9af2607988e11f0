// `plimsoll tune`: measures plans on this machine under emulated budgets, and writes the table that `train` starts
// from.

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>

#include "core/bytes.h"
#include "core/error.h"
#include "core/file.h"
#include "launcher/commands.h"
#include "launcher/run_config.h"
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

train::TuneWatch sentences() {
  return {[](std::int64_t budget) { fmt::print("{}:\n", format_bytes(budget)); },
          [](const train::MeasuredPlan& plan) {
            if (plan.ran_out) return;
            fmt::print("  {}: peak {}, {:.2f} samples/s\n", memory::to_string(plan.row.plan),
                       format_bytes(plan.row.measured_peak),
                       static_cast<double>(plan.row.milli_samples_per_second) / 1000.0);
          },
          [](std::int64_t, const std::string& why) { fmt::print("  {}\n", why); }};
}

std::string line_of(const train::MeasuredPlan& measured) {
  const memory::TableRow& row = measured.row;
  nlohmann::json line{{"budget", row.budget},
                      {"resolution", row.plan.resolution},
                      {"micro_batch", row.plan.micro_batch},
                      {"recompute_blocks", row.plan.recompute_blocks},
                      {"recompute_vision", row.plan.recompute_vision},
                      {"recompute_expert", row.plan.recompute_expert},
                      {"offload", row.plan.offload},
                      {"predicted_peak", row.predicted_peak},
                      {"ran_out", measured.ran_out}};
  if (measured.by_hand) line["by_hand"] = true;
  if (measured.ran_out) return line.dump();
  line["accumulation"] = row.accumulation;
  line["measured_peak"] = row.measured_peak;
  line["samples_per_second"] = static_cast<double>(row.milli_samples_per_second) / 1000.0;
  if (measured.reserved > 0) {
    line["reserved"] = measured.reserved;
    line["predicted_reserved"] = measured.predicted_reserved;
    line["live"] = measured.live;
    line["predicted_live"] = measured.predicted_live;
  }
  return line.dump();
}

train::TuneWatch lines() {
  return {[](std::int64_t) {},
          [](const train::MeasuredPlan& plan) {
            fmt::print("{}\n", line_of(plan));
            std::fflush(stdout);
          },
          [](std::int64_t budget, const std::string& why) {
            fmt::print("{}\n", nlohmann::json{{"budget", budget}, {"nothing_fits", why}}.dump());
          }};
}

/// "24GiB:2,40GiB:4".
std::vector<train::TuneOptions::ByHand> by_hand(const std::string& text) {
  std::vector<train::TuneOptions::ByHand> all;
  std::istringstream entries(text);
  for (std::string entry; std::getline(entries, entry, ',');) {
    const auto colon = std::min(entry.find(':'), entry.size());
    const std::string micro = entry.substr(std::min(colon + 1, entry.size()));
    const bool digits = micro.find_first_not_of("0123456789") == std::string::npos;
    if (micro.empty() || micro.size() > 6 || !digits || std::stol(micro) < 1)
      fail(ExitCode::kUsage, "--by-hand {}: give a budget and a micro-batch, such as 24GiB:2", entry);
    all.push_back({parse_bytes(entry.substr(0, colon), "--by-hand"), std::stol(micro)});
  }
  return all;
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
  add("by-hand",
      "Plans to measure as well: BUDGET:MICRO-BATCH, separated by commas, with every language block recomputed, as "
      "people set them by hand; BUDGET one of --budget",
      cxxopts::value<std::string>());
  add("json", "Print a line of JSON for each plan that is measured, and nothing else");
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
  if (parsed->count("by-hand") > 0) tune.by_hand = by_hand((*parsed)["by-hand"].as<std::string>());
  for (const auto& wanted : tune.by_hand)
    if (std::ranges::find(budgets, wanted.budget) == budgets.end())
      fail(ExitCode::kUsage, "--by-hand: {} is none of --budget; name it there too", format_bytes(wanted.budget));
  const auto table =
      train::tune(read_config(*parsed), budgets, tune, parsed->count("json") > 0 ? lines() : sentences());
  if (table.rows.empty()) fail(ExitCode::kMemory, "no plan fits any of these budgets: {}", required(*parsed, "budget"));
  write_table(out, table);
  if (parsed->count("json") > 0) return 0;
  const bool found_by_itself = out.parent_path() == train::kTablesFolder;
  fmt::print("\n{}\n{} written; `train` in this folder starts from it{}\n", memory::to_markdown(table), out.string(),
             found_by_itself ? "" : " with --set memory.table=" + out.string());
  return 0;
}

}  // namespace plimsoll
