#pragma once
// One parquet file, read column by column in batches through Arrow, so that memory does not grow with the file.
//
// Whatever is wrong throws Error(kData) that names file, column and, where there is one, row (counted in this file).

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace plimsoll::data {

/// An open file. One thread at a time.
class ParquetTable {
 public:
  /// Reads the footer. A file that was cut short has none and is refused.
  explicit ParquetTable(const std::string& path);
  ~ParquetTable();
  ParquetTable(ParquetTable&&) noexcept;

  const std::string& path() const;
  std::int64_t rows() const;
  const std::vector<std::string>& columns() const;  ///< names of the top-level columns
  bool has(const std::string& column) const;
  /// Type of a column's values, those of its innermost lists, in the words of info.json ("float32", "int64", "bool",
  /// "string") or, where these have none, in Arrow's.
  std::string dtype(const std::string& column) const;

  /// Appends every row's values. A row is a number, or numbers in lists of any kind and depth (list, large_list,
  /// fixed_size_list, extension types over them), `width` in all. Any integer, float or boolean type is taken; integers
  /// from floats must be whole. Nulls and other widths are refused.
  void append(const std::string& column, std::int64_t width, std::vector<float>& out) const;
  void append(const std::string& column, std::int64_t width, std::vector<double>& out) const;
  void append(const std::string& column, std::int64_t width, std::vector<std::int64_t>& out) const;

  /// One text a row (string or large_string).
  std::vector<std::string> texts(const std::string& column) const;
  /// A list of texts a row.
  std::vector<std::vector<std::string>> text_lists(const std::string& column) const;

  /// `use(row, bytes)` for each row of a column struct<bytes: binary, path: string>, as image columns are; the bytes
  /// are valid during the call only.
  using UseBytes = std::function<void(std::int64_t, std::span<const std::uint8_t>)>;
  void for_each_image(const std::string& column, const UseBytes& use) const;

  /// The bytes of one row of such a column: skips through its row group's pages without building the rows before it.
  std::vector<std::uint8_t> image(const std::string& column, std::int64_t row) const;

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace plimsoll::data
