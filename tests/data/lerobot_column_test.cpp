// One column of datasets as texts.
#include "data/lerobot_column.h"

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

/// A row of the dataset below.
struct ColumnRow {
  std::string scene;
  std::int64_t level = 0;
  double load = 0;
};

/// Three rows in two files, as far as columns are concerned.
class ColumnReaderTest : public ::testing::Test {
 protected:
  ColumnReaderTest() {
    write("file-0.parquet", {{"day", 3, 0.1}, {"night, \u00e9", -1, 2}});
    write("file-1.parquet", {{"day", 3, 0.1}});
    info.root = folder.path();
    info.data_path = "file-{file_index}.parquet";
    info.episodes = {{0, 2, 0, 0, {}}, {2, 3, 0, 1, {}}};
    info.features = {{"pair", "float32", {2}, FeatureKind::kNumbers, {}},
                     {"top", "video", {28, 28, 3}, FeatureKind::kVideo, {}}};
  }
  void write(const std::string& name, const std::vector<ColumnRow>& rows) const {
    ParquetWriter writer(folder.file(name),
                         {{"scene", ColumnType::kText},
                          {"level"},
                          {"load", ColumnType::kFloat},
                          {"mass", ColumnType::kDouble},
                          {"single", ColumnType::kFloats, 1},
                          {"pair", ColumnType::kFloats, 2},
                          {"words", ColumnType::kTexts},
                          {"picture", ColumnType::kImage}},
                         4);
    for (const ColumnRow& row : rows)
      writer.add({row.scene, row.level, row.load, row.load, std::vector<double>{row.load}, std::vector<double>{1, 2},
                  std::vector<std::string>{"a"}, std::vector<std::uint8_t>{1}});
    writer.finish();
  }
  SampleColumn read(const std::string& column) const {
    ColumnReader reader(column);
    reader.read(info);
    return reader.take();
  }
  std::string refused(const std::string& column) const {
    return error_of(ExitCode::kData, [&] { read(column); });
  }
  TestFolder folder;
  LeRobotInfo info;
};

TEST_F(ColumnReaderTest, MakesTextsOfTextsAndNumbers) {
  const SampleColumn scene = read("scene");
  EXPECT_THAT(scene.texts, ElementsAre("day", "night, \u00e9"));
  EXPECT_THAT(scene.of_sample, ElementsAre(0, 1, 0));
  EXPECT_THAT(read("level").texts, ElementsAre("3", "-1"));
  for (const char* column : {"load", "mass", "single"}) {
    EXPECT_THAT(read(column).texts, ElementsAre("0.1", "2")) << "as short as it reads back: " << column;
    EXPECT_THAT(read(column).of_sample, ElementsAre(0, 1, 0));
  }
}

TEST_F(ColumnReaderTest, ReadsDatasetsOneAfterAnother) {
  ColumnReader reader("level");
  reader.read(info);
  LeRobotInfo other = info;
  write("other-0.parquet", {{"dusk", 7, 0}, {"day", 3, 0}});
  other.data_path = "other-{file_index}.parquet";
  other.episodes = {{0, 2, 0, 0, {}}};
  reader.read(other);
  const SampleColumn level = reader.take();
  EXPECT_THAT(level.texts, ElementsAre("3", "-1", "7"));
  EXPECT_THAT(level.of_sample, ElementsAre(0, 1, 0, 2, 0));
}

TEST_F(ColumnReaderTest, NamesFileAndColumn) {
  EXPECT_THAT(refused("weather"), AllOf(HasSubstr(folder.file("file-0.parquet")),
                                        HasSubstr("column weather: is missing"), HasSubstr("scene")));
  EXPECT_THAT(refused("pair"), HasSubstr("meta/info.json: column pair: has 2 values a row"));
  EXPECT_THAT(refused("top"), HasSubstr("meta/info.json: column top: is a video"));
  EXPECT_THAT(refused("picture"),
              AllOf(HasSubstr(folder.file("file-0.parquet")), HasSubstr("column picture: is of type")));
  EXPECT_THAT(refused("words"),
              AllOf(HasSubstr("file-0.parquet"), HasSubstr("column words"), HasSubstr("texts are needed")));
}

}  // namespace
}  // namespace plimsoll::data
