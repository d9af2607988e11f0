#pragma once
// Where the pictures of an image column lie in their parquet file, so that one is read without those around it.
//
// A reader of columns unpacks whole pages, and LeRobot's recordings have all pictures of an episode in one page: as a
// dictionary, in which each is once. Snappy, which they are packed by, leaves pictures nearly as they are, though, in
// pieces of 64 KiB that do not refer to each other: whatever is in front of a picture's piece need not be read.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "data/parquet_table.h"

namespace plimsoll::data {

/// An open file, read at any place, by any thread. Throws Error(kData) naming it.
class FileBytes {
 public:
  explicit FileBytes(const std::string& path);
  ~FileBytes();
  FileBytes(const FileBytes&) = delete;
  FileBytes& operator=(const FileBytes&) = delete;

  const std::string& path() const { return path_; }
  /// `count` bytes from `offset` on; fewer where the file ends before.
  std::vector<std::uint8_t> read(std::int64_t offset, std::int64_t count) const;

 private:
  std::string path_;
  int descriptor_ = -1;
};

/// Of one picture.
struct ImagePlace {
  std::int64_t begin = 0;   ///< byte of the file: the picture's own, or that of the piece which it begins in
  std::int32_t before = 0;  ///< bytes that this piece unpacks to in front of it
  std::int32_t size = 0;    ///< bytes of the picture
  bool snappy = false;      ///< else it is in the file as it is
};

/// The places of all rows of a column in one file, 24 bytes each. Immutable: any thread.
class ImagePlaces {
 public:
  ImagePlaces(std::string column, std::vector<ImagePlace> places)
      : column_(std::move(column)), places_(std::move(places)) {}

  std::int64_t rows() const { return static_cast<std::int64_t>(places_.size()); }
  /// The bytes of one row's picture, out of the file that the places were found in. Throws Error(kData) naming file,
  /// column and row where they are not what they were.
  std::vector<std::uint8_t> read(const FileBytes& file, std::int64_t row) const;

 private:
  std::string column_;
  std::vector<ImagePlace> places_;
};

/// So many bytes, or all where a picture has fewer, are each picture's head: enough to know the size of a PNG.
inline constexpr std::int64_t kImageHead = 32;

struct FoundImages {
  ImagePlaces places;
  std::vector<std::vector<std::uint8_t>> heads;  ///< by row
};

/// Reads the pages' headers, the pictures' heads and hardly more. Nothing where places cannot be told, and
/// ParquetTable::image() is the way: another compression than snappy's or none, another encoding than plain values and
/// dictionaries, rows without a picture, and all that does not read as it should.
std::optional<FoundImages> find_images(const ParquetTable& table, const std::string& column);

}  // namespace plimsoll::data
