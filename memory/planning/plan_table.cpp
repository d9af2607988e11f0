#include "memory/planning/plan_table.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "core/bytes.h"
#include "core/error.h"
#include "core/toml.h"

namespace plimsoll::memory {
namespace {

/// Reads the keys of one TOML table, each once; what is left over is unknown.
class Keys {
 public:
  Keys(const Setting& table, std::string origin) : table_(table.as_table()), origin_(std::move(origin)) {}

  const Setting& get(const char* name) {
    for (const auto& [key, value] : table_) {
      if (key != name) continue;
      ++read_;
      return value;
    }
    fail(ExitCode::kUsage, "{}: no key \"{}\"; make the table anew with `plimsoll tune`", origin_, name);
  }
  std::int64_t number(const char* name, std::int64_t least, std::int64_t most) {
    const Setting& value = get(name);
    if (!value.is_integer() || value.as_integer() < least || value.as_integer() > most)
      fail(ExitCode::kUsage, "{}: {} = {}: give a whole number from {} to {}", origin_, name, value.to_toml(), least,
           most);
    return value.as_integer();
  }
  int small(const char* name, int least) {
    return static_cast<int>(number(name, least, std::numeric_limits<int>::max()));
  }
  std::string text(const char* name) {
    const Setting& value = get(name);
    if (!value.is_string()) fail(ExitCode::kUsage, "{}: {} = {}: give a text", origin_, name, value.to_toml());
    return value.as_string();
  }
  bool truth(const char* name) {
    const Setting& value = get(name);
    if (!value.is_bool()) fail(ExitCode::kUsage, "{}: {} = {}: give true or false", origin_, name, value.to_toml());
    return value.as_bool();
  }
  void finish() const {
    if (read_ != table_.size())
      fail(ExitCode::kUsage, "{}: {} keys of which {} are known; make the table anew with `plimsoll tune`", origin_,
           table_.size(), read_);
  }

 private:
  const Setting::Table& table_;
  std::string origin_;
  std::size_t read_ = 0;
};

constexpr std::int64_t kMostBytes = std::int64_t{1} << 48;

TableRow row_of(const Setting& table, const std::string& origin) {
  Keys keys(table, origin);
  TableRow row;
  row.budget = keys.number("budget", 1, kMostBytes);
  row.plan.resolution = keys.small("resolution", 0);
  row.plan.micro_batch = keys.small("micro_batch", 1);
  row.plan.recompute_blocks = keys.small("recompute_blocks", 0);
  row.plan.recompute_vision = keys.small("recompute_vision", 0);
  row.plan.recompute_expert = keys.small("recompute_expert", 0);
  row.plan.offload = keys.truth("offload");
  row.accumulation = keys.number("accumulation", 1, kMostBytes);
  row.predicted_peak = keys.number("predicted_peak", 0, kMostBytes);
  row.measured_peak = keys.number("measured_peak", 0, kMostBytes);
  row.milli_samples_per_second = keys.number("milli_samples_per_second", 0, kMostBytes);
  keys.finish();
  return row;
}

std::string rate(std::int64_t milli) { return fmt::format("{}.{:03}", milli / 1000, milli % 1000); }

}  // namespace

std::string to_toml(const PlanTable& table) {
  std::string text = fmt::format(
      "# Plans that `plimsoll tune` measured: which to start with under which budget. Sizes in bytes.\n"
      "key = {}\nnote = {}\nshare = {}\n",
      Setting(table.key).to_toml(), Setting(table.note).to_toml(), table.share);
  for (const TableRow& row : table.rows) {
    text += fmt::format(
        "\n[[row]]\nbudget = {}\nresolution = {}\nmicro_batch = {}\naccumulation = {}\nrecompute_blocks = {}\n"
        "recompute_vision = {}\nrecompute_expert = {}\noffload = {}\npredicted_peak = {}\nmeasured_peak = {}\n"
        "milli_samples_per_second = {}\n",
        row.budget, row.plan.resolution, row.plan.micro_batch, row.accumulation, row.plan.recompute_blocks,
        row.plan.recompute_vision, row.plan.recompute_expert, row.plan.offload, row.predicted_peak, row.measured_peak,
        row.milli_samples_per_second);
  }
  return text;
}

PlanTable plan_table_from_toml(std::string_view text, const std::string& origin) {
  const Setting root = parse_toml(text, origin);
  Keys keys(root, origin);
  PlanTable table;
  table.key = keys.text("key");
  table.note = keys.text("note");
  table.share = keys.number("share", 1, kMostBytes);
  const Setting& rows = keys.get("row");
  if (!rows.is_list()) fail(ExitCode::kUsage, "{}: \"row\" is no list of tables", origin);
  for (const Setting& row : rows.as_list()) {
    if (!row.is_table()) fail(ExitCode::kUsage, "{}: a \"row\" is no table", origin);
    table.rows.push_back(row_of(row, row.origin.empty() ? origin : row.origin));
  }
  keys.finish();
  std::sort(table.rows.begin(), table.rows.end(),
            [](const TableRow& a, const TableRow& b) { return a.budget < b.budget; });
  return table;
}

std::string to_markdown(const PlanTable& table) {
  std::string text = fmt::format("{}; {} samples a rank and step\n\n", table.note, table.share);
  text +=
      "| budget | plan | accumulation | predicted peak | measured peak | samples/s |\n|---:|---|---:|---:|---:|---:|\n";
  for (const TableRow& row : table.rows) {
    text += fmt::format("| {} | {} | {} | {} | {} | {} |\n", format_bytes(row.budget), to_string(row.plan),
                        row.accumulation, format_bytes(row.predicted_peak), format_bytes(row.measured_peak),
                        rate(row.milli_samples_per_second));
  }
  return text;
}

const TableRow* matching_row(const PlanTable& table, std::string_view key, std::int64_t share,
                             std::int64_t smallest_budget, const std::string& origin) {
  if (table.key != key) {
    fail(ExitCode::kUsage,
         "memory.table = \"{}\": it is of \"{}\" and this run is of \"{}\"; make one with `plimsoll tune`, or set "
         "memory.table = \"off\"",
         origin, table.key, key);
  }
  if (table.share != share) return nullptr;
  const TableRow* best = nullptr;
  for (const TableRow& row : table.rows) {
    if (row.budget <= smallest_budget) best = &row;
  }
  return best;
}

}  // namespace plimsoll::memory
