#include "data/lerobot_column.h"

#include <vector>

#include "core/error.h"

namespace plimsoll::data {

void ColumnReader::read(const LeRobotInfo& info) {
  const LeRobotFeature* feature = info.find(column_);
  if (feature != nullptr && feature->kind == FeatureKind::kVideo)
    fail(ExitCode::kData,
         "{}/meta/info.json: column {}: is a video, but a rule needs one number or text a row; name another in "
         "tasks.rules",
         info.root, column_);
  if (feature != nullptr && feature->kind == FeatureKind::kNumbers && feature->width() != 1)
    fail(ExitCode::kData,
         "{}/meta/info.json: column {}: has {} values a row, but a rule needs one; name another in tasks.rules",
         info.root, column_, feature->width());
  for (const LeRobotDataFile& file : info.data_files()) read_file(ParquetTable(file.path));
}

void ColumnReader::read_file(const ParquetTable& table) {
  const std::string dtype = table.dtype(column_);
  if (dtype == "string") {
    for (const std::string& text : table.texts(column_)) add(text);
  } else if (dtype == "bool") {
    std::vector<std::int64_t> values;
    table.append(column_, 1, values);
    for (const std::int64_t value : values) add(value != 0 ? "true" : "false");
  } else if (dtype == "float16" || dtype == "float32") {
    read_numbers<float>(table);  // in which they read back as the shortest text
  } else if (dtype == "float64") {
    read_numbers<double>(table);
  } else if (is_number_dtype(dtype)) {
    read_numbers<std::int64_t>(table);
  } else {
    fail(ExitCode::kData,
         "{}: column {}: is of type {}, but a rule needs one number or text a row; name another in tasks.rules",
         table.path(), column_, dtype);
  }
}

template <class Number>
void ColumnReader::read_numbers(const ParquetTable& table) {
  std::vector<Number> values;
  table.append(column_, 1, values);
  for (const Number value : values) add(fmt::format("{}", value));
}

void ColumnReader::add(const std::string& text) {
  const auto next = static_cast<std::uint32_t>(read_.texts.size());
  const auto [found, added] = numbers_.try_emplace(text, next);
  if (added) read_.texts.push_back(text);
  read_.of_sample.push_back(found->second);
}

}  // namespace plimsoll::data
