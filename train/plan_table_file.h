#pragma once
// The measured table that a run may start from (memory.table).

#include <cstdint>
#include <optional>
#include <string>

#include "memory/planning/plan_table.h"
#include "train/session.h"

namespace plimsoll::train {

/// Where `plimsoll tune` writes and "auto" looks, below the current folder.
inline constexpr const char* kTablesFolder = "configs/tables";

/// What a table's times hold for: what a calibration's errors depend on, and the processor.
std::string table_key(const Session& session);

struct FoundTable {
  std::string file;
  memory::PlanTable table;
};

/// The table that memory.table names, as rank 0 reads it. "auto": the first file by name in kTablesFolder whose key is
/// this run's; what is damaged there is warned of and passed over. Nothing for "off" and where none is found. Throws
/// Error(kUsage) when a file that was named is missing or damaged. Collective.
std::optional<FoundTable> find_table(Session& session);

/// For whom a measured row is looked for that has no device here (`plimsoll plan`).
struct RowWanted {
  bool of_a_gpu = true;    ///< else of a CPU; of whatever name
  std::string model;       ///< model_key()
  std::int64_t share = 1;  ///< samples of a step on one rank
};

struct FoundRow {
  std::string file;
  memory::TableRow row;
};

/// The row that a rank with so many bytes would start from, out of the table that memory.table names; "auto": out of
/// the first by name in kTablesFolder that has one. Nothing for "off", and where there is none. Throws Error(kUsage)
/// when a file that was named is missing or damaged. Not collective.
std::optional<FoundRow> find_row(const std::string& memory_table, const RowWanted& wanted, std::int64_t bytes);

}  // namespace plimsoll::train
