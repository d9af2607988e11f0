#pragma once
// Writing a parquet file row by row (snappy), with the column types that LeRobot datasets have.

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <variant>
#include <vector>

namespace plimsoll::data {

/// Type of a column, and the kind of Cell it takes.
enum class ColumnType {
  kInteger,   ///< int64                                     std::int64_t
  kFloat,     ///< float                                     double
  kDouble,    ///< double                                    double
  kText,      ///< string                                    std::string
  kFloats,    ///< fixed_size_list<float>[width]             std::vector<double>
  kDoubles,   ///< list<double>                              std::vector<double>
  kIntegers,  ///< list<int64>                               std::vector<std::int64_t>
  kTexts,     ///< list<string>                              std::vector<std::string>
  kChannels,  ///< list<list<list<double>>>, [n][1][1]       std::vector<double>
  kImage,     ///< struct<bytes: binary, path: string>       std::vector<std::uint8_t>
};
using Cell = std::variant<std::int64_t, double, std::string, std::vector<double>, std::vector<std::int64_t>,
                          std::vector<std::string>, std::vector<std::uint8_t>>;

struct ColumnSpec {
  std::string name;
  ColumnType type = ColumnType::kInteger;
  int width = 1;  ///< of kFloats
};

/// One file being written; holds the rows of one row group in memory. One thread. Throws Error(kData) naming the file
/// when the disk refuses.
class ParquetWriter {
 public:
  ParquetWriter(const std::string& path, std::vector<ColumnSpec> columns, std::int64_t rows_per_group,
                const std::map<std::string, std::string>& metadata = {});
  /// Without finish() the file has no footer and no reader opens it.
  ~ParquetWriter();

  /// One cell a column, in order, each of its column's kind.
  void add(const std::vector<Cell>& row);
  void finish();
  std::int64_t rows() const;

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace plimsoll::data
