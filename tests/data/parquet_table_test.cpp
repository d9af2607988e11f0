#include "data/parquet_table.h"

#include <gmock/gmock.h>

#include "core/error.h"
#include "data/parquet_writer.h"
#include "tests/data/model_files.h"
#include "tests/error_of.h"

namespace plimsoll::data {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class ParquetTableTest : public ::testing::Test {
 protected:
  // A file of one column "x" with these cells.
  std::string written(ColumnType type, const std::vector<Cell>& cells) const {
    ParquetWriter writer(folder.file("table.parquet"), {{"x", type, 2}}, 4);
    for (const Cell& cell : cells) writer.add({cell});
    writer.finish();
    return folder.file("table.parquet");
  }
  TestFolder folder;
};

TEST_F(ParquetTableTest, CallsTypesAsInfoJsonDoes) {
  const auto dtype = [&](ColumnType type) { return ParquetTable(written(type, {})).dtype("x"); };
  EXPECT_EQ(dtype(ColumnType::kInteger), "int64");
  EXPECT_EQ(dtype(ColumnType::kFloat), "float32");
  EXPECT_EQ(dtype(ColumnType::kDouble), "float64");
  EXPECT_EQ(dtype(ColumnType::kText), "string");
  EXPECT_EQ(dtype(ColumnType::kFloats), "float32");
  EXPECT_EQ(dtype(ColumnType::kDoubles), "float64");
  EXPECT_EQ(dtype(ColumnType::kTexts), "string");
  EXPECT_EQ(dtype(ColumnType::kChannels), "float64");
  EXPECT_THAT(dtype(ColumnType::kImage), HasSubstr("struct"));
  EXPECT_THAT(error_of(ExitCode::kData, [&] { ParquetTable(folder.file("table.parquet")).dtype("y"); }),
              AllOf(HasSubstr("table.parquet"), HasSubstr("column y: is missing"), HasSubstr("x")));
}

TEST_F(ParquetTableTest, NamesTheRowOfANumberThatIsNotWhole) {
  const auto error_with = [&](ColumnType type, std::int64_t width, const std::vector<Cell>& cells) {
    const std::string path = written(type, cells);
    return error_of(ExitCode::kData, [&] {
      std::vector<std::int64_t> values;
      ParquetTable(path).append("x", width, values);
    });
  };
  EXPECT_EQ(error_with(ColumnType::kDouble, 1, {0.0, 1.0, -2.0}), "no error");
  EXPECT_THAT(error_with(ColumnType::kDouble, 1, {0.0, 1.0, 2.5}),
              AllOf(HasSubstr("table.parquet"), HasSubstr("column x"), HasSubstr("row 2 holds 2.5")));
  const std::vector<double> whole{1, 2}, half{3, 0.5};
  EXPECT_THAT(error_with(ColumnType::kFloats, 2, {whole, whole, whole, whole, whole, half}),
              HasSubstr("row 5 holds 0.5"));
}

TEST_F(ParquetTableTest, ReadsListsOfTexts) {
  using Texts = std::vector<std::string>;
  const ParquetTable table(written(ColumnType::kTexts, {Texts{"a", "b"}, Texts{}, Texts{"c"}}));
  const auto lists = table.text_lists("x");
  ASSERT_EQ(lists.size(), 3U);
  EXPECT_THAT(lists[0], ElementsAre("a", "b"));
  EXPECT_THAT(lists[1], IsEmpty());
  EXPECT_THAT(lists[2], ElementsAre("c"));
}

}  // namespace
}  // namespace plimsoll::data
