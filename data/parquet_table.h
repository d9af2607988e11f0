#pragma once
// One parquet file, read column by column in batches through Arrow, so that memory does not grow with the file.
//
// Whatever is wrong throws Error(kData) that names file, column and, where there is one, row (counted in this file).

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace plimsoll::data {

/// Where a row group has the pictures of an image column, for data/image_places.h.
struct ImageChunk {
  std::int64_t begin = 0, end = 0;  ///< bytes of the file that are its pages, one after another
  std::int64_t rows = 0;
  int level = 0;        ///< definition level of a row that holds bytes (parquet's word for how much of it is there)
  bool snappy = false;  ///< how the pages are packed; else they are as they are
};

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

  /// The bytes of one row of such a column: unpacks its row group's pages up to that row. data/image_places.h is much
  /// faster where it can be used.
  std::vector<std::uint8_t> image(const std::string& column, std::int64_t row) const;
  /// The column's pages by row group, in order; nothing where they are packed otherwise than by snappy, or encrypted,
  /// or where there is no such column.
  std::optional<std::vector<ImageChunk>> image_chunks(const std::string& column) const;

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace plimsoll::data
