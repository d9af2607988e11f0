#include "train/plan_table_file.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <filesystem>
#include <vector>

#include "core/error.h"
#include "core/file.h"
#include "ddp/handshake.h"
#include "train/calibration_file.h"
#include "train/options.h"

namespace plimsoll::train {
namespace {

namespace fs = std::filesystem;

std::vector<fs::path> tables_by_name() {
  std::vector<fs::path> files;
  std::error_code none;
  for (const auto& entry : fs::directory_iterator(kTablesFolder, none)) {
    if (entry.path().extension() == ".toml") files.push_back(entry.path());
  }
  std::ranges::sort(files);
  return files;
}

memory::PlanTable table_in(const std::string& file) {
  return memory::plan_table_from_toml(read_file(file, ExitCode::kUsage), file);
}

/// table_key() of any device of the kind.
bool serves(const memory::PlanTable& table, const RowWanted& wanted) {
  return table.share == wanted.share && table.key.starts_with(wanted.of_a_gpu ? "cuda, " : "cpu, ") &&
         table.key.find(fmt::format(", {}, on ", wanted.model)) != std::string::npos;
}

std::optional<FoundRow> row_in(const std::string& file, const RowWanted& wanted, std::int64_t bytes) {
  const memory::PlanTable table = table_in(file);
  if (!serves(table, wanted)) return std::nullopt;
  const memory::TableRow* row = memory::matching_row(table, table.key, wanted.share, bytes, file);
  return row == nullptr ? std::nullopt : std::optional(FoundRow{file, *row});
}

/// Of the first that is this run's and of its share; else of the first that is this run's.
std::string name_of_own(const std::string& key, std::int64_t share) {
  std::string other;
  for (const auto& file : tables_by_name()) {
    try {
      const auto table = table_in(file.string());
      if (table.key != key) continue;
      if (table.share == share) return file.string();
      if (other.empty()) other = file.string();
    } catch (const Error& error) {
      spdlog::warn("{}; it is passed over", error.what());
    }
  }
  return other;
}

}  // namespace

std::string table_key(const Session& session) {
  return fmt::format("{}, on {}", calibration_key(session), session.device.name);
}

std::optional<FoundTable> find_table(Session& session) {
  std::string file = session.config.memory.table, text;
  if (file == "off") return std::nullopt;
  if (session.communicator.rank() == 0 && file == "auto") file = name_of_own(table_key(session), session.share);
  file = ddp::share_text(session.communicator, file).front();
  if (file.empty()) return std::nullopt;
  std::string trouble;
  if (session.communicator.rank() == 0) {
    try {
      text = read_file(file, ExitCode::kUsage);
    } catch (const Error& error) {
      trouble = fmt::format("memory.table: {}; make one with `plimsoll tune`, or set memory.table = \"off\"",
                            error.what());  // the others must hear of it
    }
  }
  trouble = ddp::share_text(session.communicator, trouble).front();
  if (!trouble.empty()) throw Error(ExitCode::kUsage, trouble);
  text = ddp::share_text(session.communicator, text).front();
  return FoundTable{file, memory::plan_table_from_toml(text, file)};
}

std::optional<FoundRow> find_row(const std::string& memory_table, const RowWanted& wanted, std::int64_t bytes) {
  if (memory_table == "off") return std::nullopt;
  if (memory_table != "auto") return row_in(memory_table, wanted, bytes);
  for (const auto& file : tables_by_name()) {
    try {
      if (auto found = row_in(file.string(), wanted, bytes)) return found;
    } catch (const Error& error) {
      spdlog::warn("{}; it is passed over", error.what());
    }
  }
  return std::nullopt;
}

}  // namespace plimsoll::train
