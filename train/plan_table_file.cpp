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

/// Of the first that is this run's and of its share; else of the first that is this run's.
std::string name_of_own(const std::string& key, std::int64_t share) {
  std::string other;
  for (const auto& file : tables_by_name()) {
    try {
      const auto table = memory::plan_table_from_toml(read_file(file, ExitCode::kUsage), file.string());
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

}  // namespace plimsoll::train
