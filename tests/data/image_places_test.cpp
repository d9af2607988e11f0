#include "data/image_places.h"

#include <arrow/api.h>
#include <arrow/io/file.h>
#include <gmock/gmock.h>
#include <parquet/arrow/writer.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>

#include "core/error.h"
#include "tests/data/model_files.h"
#include "tests/error_of.h"

namespace plimsoll::data {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

using EncodedPictures = std::vector<std::vector<std::uint8_t>>;

/// How a column of pictures is written.
struct PagesAre {
  arrow::Compression::type compression = arrow::Compression::SNAPPY;
  bool dictionary = true;
  parquet::ParquetDataPageVersion version = parquet::ParquetDataPageVersion::V1;
  std::int64_t rows_per_group = 1 << 20;
};

std::string text_of(const PagesAre& how) {
  return fmt::format("{}, {}, version {}, groups of {} rows",
                     how.compression == arrow::Compression::SNAPPY ? "snappy" : "not snappy",
                     how.dictionary ? "dictionary" : "plain",
                     how.version == parquet::ParquetDataPageVersion::V1 ? 1 : 2, how.rows_per_group);
}

std::vector<std::uint8_t> random_bytes(std::size_t size, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<std::uint8_t> bytes(size);
  for (std::uint8_t& byte : bytes) byte = static_cast<std::uint8_t>(random());
  return bytes;
}

/// What is like a picture (it does not compress), what compresses well, and both by turns, within a piece of snappy's
/// and across its borders.
EncodedPictures various_bytes() {
  EncodedPictures pictures;
  for (const int size : {0, 1, 31, 32, 33, 1000, 65'531, 65'532, 65'536, 70'000, 200'000, 5, 130'000}) {
    const auto bytes = random_bytes(static_cast<std::size_t>(size), static_cast<unsigned>(size));
    std::vector<std::uint8_t> even = bytes, mixed = bytes;
    for (std::size_t i = 0; i < bytes.size(); ++i) {
      even[i] = static_cast<std::uint8_t>(i % 7);
      if (i % 1000 < 900) mixed[i] = even[i];
    }
    for (const auto& one : {bytes, even, mixed}) pictures.push_back(one);
  }
  pictures.push_back(pictures[15]);  // a dictionary holds it once
  return pictures;
}

/// The table of a column "picture"; where `none` is a row, this has none.
std::shared_ptr<arrow::Table> table_of(const EncodedPictures& pictures, std::size_t none) {
  arrow::BinaryBuilder bytes;
  arrow::StringBuilder paths;
  for (std::size_t row = 0; row < pictures.size(); ++row) {
    const auto& picture = pictures[row];
    EXPECT_TRUE(
        (row == none ? bytes.AppendNull() : bytes.Append(picture.data(), static_cast<std::int32_t>(picture.size())))
            .ok());
    EXPECT_TRUE(paths.AppendNull().ok());
  }
  const arrow::ArrayVector columns{bytes.Finish().ValueOrDie(), paths.Finish().ValueOrDie()};
  const std::shared_ptr<arrow::Array> both =
      arrow::StructArray::Make(columns, std::vector<std::string>{"bytes", "path"}).ValueOrDie();
  return arrow::Table::Make(arrow::schema({arrow::field("picture", both->type())}), arrow::ArrayVector{both});
}

class ImagePlacesTest : public ::testing::Test {
 protected:
  std::string path() const { return folder.file("pictures.parquet"); }
  void write(const EncodedPictures& pictures, const PagesAre& how, std::size_t none = SIZE_MAX) const {
    parquet::WriterProperties::Builder properties;
    properties.compression(how.compression)->data_page_version(how.version);
    if (!how.dictionary) properties.disable_dictionary();
    const auto file = arrow::io::FileOutputStream::Open(path()).ValueOrDie();
    const auto status = parquet::arrow::WriteTable(*table_of(pictures, none), arrow::default_memory_pool(), file,
                                                   how.rows_per_group, properties.build());
    ASSERT_TRUE(status.ok()) << status.message();
    ASSERT_TRUE(file->Close().ok());
  }
  void expect_found(const EncodedPictures& pictures) const {
    const ParquetTable table(path());
    const auto found = find_images(table, "picture");
    ASSERT_TRUE(found);
    ASSERT_EQ(found->places.rows(), std::ssize(pictures));
    const FileBytes file(path());
    for (std::size_t row = pictures.size(); row-- > 0;) {
      const auto& picture = pictures[row];
      const auto number = static_cast<std::int64_t>(row);
      EXPECT_TRUE(found->places.read(file, number) == picture) << "row " << row;
      EXPECT_TRUE(table.image("picture", number) == picture) << "row " << row;
      const auto head = std::min(picture.size(), static_cast<std::size_t>(kImageHead));
      EXPECT_TRUE(std::equal(picture.begin(), picture.begin() + static_cast<std::ptrdiff_t>(head),
                             found->heads[row].begin(), found->heads[row].end()))
          << "row " << row;
    }
  }
  TestFolder folder;
};

TEST_F(ImagePlacesTest, AreThoseOfEveryPicture) {
  const EncodedPictures pictures = various_bytes();
  for (const auto compression : {arrow::Compression::SNAPPY, arrow::Compression::UNCOMPRESSED}) {
    for (const bool dictionary : {true, false}) {
      for (const auto version : {parquet::ParquetDataPageVersion::V1, parquet::ParquetDataPageVersion::V2}) {
        for (const std::int64_t rows : {4, 1000}) {
          const PagesAre how{compression, dictionary, version, rows};
          SCOPED_TRACE(text_of(how));
          write(pictures, how);
          expect_found(pictures);
        }
      }
    }
  }
}

// A dictionary that has become too large ends after its first 1024 rows, and plain values follow in the same chunk.
TEST_F(ImagePlacesTest, GoOnBehindADictionary) {
  EncodedPictures pictures;
  for (unsigned row = 0; row < 1100; ++row) pictures.push_back(random_bytes(2000, row));
  write(pictures, {});
  expect_found(pictures);
}

TEST_F(ImagePlacesTest, AreNotTakenFromWhatHasNone) {
  const EncodedPictures pictures = various_bytes();
  write(pictures, {.compression = arrow::Compression::ZSTD});
  const ParquetTable table(path());
  EXPECT_FALSE(find_images(table, "picture"));
  EXPECT_FALSE(find_images(table, "no such column"));
  EXPECT_TRUE(table.image("picture", 30) == pictures[30]) << "but they can be read";
  write(pictures, {}, 7);
  EXPECT_FALSE(find_images(ParquetTable(path()), "picture")) << "row 7 is null";
}

TEST_F(ImagePlacesTest, NameTheRowOfAPictureThatIsGone) {
  const EncodedPictures pictures = various_bytes();
  for (const auto compression : {arrow::Compression::SNAPPY, arrow::Compression::UNCOMPRESSED}) {
    write(pictures, {.compression = compression});
    const auto found = find_images(ParquetTable(path()), "picture");
    ASSERT_TRUE(found);
    std::filesystem::resize_file(path(), 100'000);
    const FileBytes file(path());
    EXPECT_TRUE(found->places.read(file, 3) == pictures[3]) << "what is still there is read";
    EXPECT_THAT(error_of(ExitCode::kData, [&] { found->places.read(file, 36); }),
                AllOf(HasSubstr("pictures.parquet"), HasSubstr("column picture: row 36"), HasSubstr("damaged")));
  }
  EXPECT_THAT(error_of(ExitCode::kData, [&] { FileBytes missing(folder.file("none")); }), HasSubstr("none: cannot be"));
}

// Whatever a page says, nothing is looked for outside of it (the sanitizers would find that).
TEST_F(ImagePlacesTest, LieWithinDamagedPages) {
  const EncodedPictures pictures{random_bytes(300, 1), random_bytes(70'000, 2), random_bytes(40, 3)};
  for (const bool dictionary : {true, false}) {
    const PagesAre how{.dictionary = dictionary};
    write(pictures, how);
    const std::string whole = [&] {
      std::ifstream stream(path(), std::ios::binary);
      return std::string(std::istreambuf_iterator<char>(stream), {});
    }();
    for (std::size_t at = 4; at < 60; ++at) {
      std::string damaged = whole;
      damaged[at] = static_cast<char>(~damaged[at]);
      std::ofstream(path(), std::ios::binary) << damaged;
      const ParquetTable table(path());
      const auto found = find_images(table, "picture");
      if (!found) continue;
      const FileBytes file(path());
      for (std::int64_t row = 0; row < std::ssize(pictures); ++row)
        EXPECT_LE(found->places.read(file, row).size(), damaged.size()) << "byte " << at;
    }
  }
}

}  // namespace
}  // namespace plimsoll::data
