#pragma once
// One column of LeRobot datasets as texts, for rules about samples. For data/lerobot_source.cpp.

#include <cstdint>
#include <string>
#include <unordered_map>
#include <utility>

#include "data/lerobot_info.h"
#include "data/parquet_table.h"
#include "data/sample_source.h"

namespace plimsoll::data {

/// Reads a column of one dataset after another. One thread.
class ColumnReader {
 public:
  explicit ColumnReader(std::string column) : column_(std::move(column)) {}

  /// Adds all rows of a dataset, that column of its data files alone. Throws Error(kData) naming file and column where
  /// it is missing, holds pictures or more than one value a row, and the row of a null.
  void read(const LeRobotInfo& info);
  /// What was read, by row, datasets one after another.
  SampleColumn take() { return std::move(read_); }

 private:
  void read_file(const ParquetTable& table);
  template <class Number>
  void read_numbers(const ParquetTable& table);
  void add(const std::string& text);

  std::string column_;
  SampleColumn read_;
  std::unordered_map<std::string, std::uint32_t> numbers_;  // by text
};

}  // namespace plimsoll::data
