#pragma once
// The measured table that a run may start from (memory.table).

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

}  // namespace plimsoll::train
