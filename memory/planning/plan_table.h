#pragma once
// A table of plans that were measured on a machine: which one to start with under which budget. Written by `plimsoll
// tune`, read by `train` (memory.table). Pure but for what the caller reads and writes; any thread.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "memory/planning/plan.h"

namespace plimsoll::memory {

/// What one budget's best plan needed and did.
struct TableRow {
  std::int64_t budget = 0;  ///< bytes a rank may use
  Plan plan;
  std::int64_t accumulation =
      1;  ///< micro-batches of a share at most; steps of light samples are filled, and take fewer
  std::int64_t predicted_peak = 0;  ///< bytes, of the heaviest micro-batch that was run or that the plan was judged on
  std::int64_t measured_peak = 0;   ///< bytes
  std::int64_t milli_samples_per_second = 0;
  friend bool operator==(const TableRow&, const TableRow&) = default;
};

struct PlanTable {
  std::string key;             ///< device, model and what is trained: a table serves no other
  std::string note;            ///< for people: which model, which machine
  std::int64_t share = 0;      ///< samples of a step on one rank
  std::vector<TableRow> rows;  ///< budgets ascending
  friend bool operator==(const PlanTable&, const PlanTable&) = default;
};

/// TOML with a comment on top, and back. Throws Error(kUsage) naming `origin`, key and value where the text is no such
/// table, or a number is out of range.
std::string to_toml(const PlanTable& table);
PlanTable plan_table_from_toml(std::string_view text, const std::string& origin);

/// A Markdown table of the rows.
std::string to_markdown(const PlanTable& table);

/// The row to start with: that of the largest budget up to the smallest of any rank. Null when every row asks for more,
/// or the table is of another share. Throws Error(kUsage) naming `origin` when it is of another key.
const TableRow* matching_row(const PlanTable& table, std::string_view key, std::int64_t share,
                             std::int64_t smallest_budget, const std::string& origin);

}  // namespace plimsoll::memory
