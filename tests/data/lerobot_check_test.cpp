#include "data/lerobot_check.h"

#include <gmock/gmock.h>

#include <filesystem>
#include <fstream>
#include <limits>

#include "core/error.h"
#include "data/parquet_writer.h"
#include "tests/data/lerobot_files.h"
#include "tests/data/model_files.h"

namespace plimsoll::data {
namespace {

using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::Contains;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::SizeIs;

class LeRobotCheck : public ::testing::Test {
 protected:
  std::string root() const { return folder_.file("set"); }
  std::string in_set(const std::string& name) const { return root() + "/" + name; }
  DatasetReport report() const { return check_lerobot_dataset(root()); }
  void edit(const std::string& name, const std::function<void(nlohmann::json&)>& change) const {
    auto json = nlohmann::json::parse(read_file(in_set(name)));
    change(json);
    std::ofstream(in_set(name)) << json.dump();
  }
  void replace(const std::string& name, const std::string& from, const std::string& to) const {
    std::string text = read_file(in_set(name));
    const auto at = text.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    std::ofstream(in_set(name)) << text.replace(at, from.size(), to);
  }
  // Rows of a data file of write_counting_dataset(); `wrong` may change them. Without its pictures.
  void rewrite_rows(const std::string& file, std::int64_t begin, std::int64_t rows,
                    const std::function<void(std::int64_t, std::vector<Cell>&)>& wrong,
                    ColumnType action = ColumnType::kFloats) const {
    ParquetWriter writer(in_set(file),
                         {{"timestamp", ColumnType::kFloat},
                          {"frame_index"},
                          {"episode_index"},
                          {"index"},
                          {"task_index"},
                          {"observation.state", ColumnType::kFloats, 2},
                          {"observation.force", ColumnType::kFloat},
                          {"action", action, 2}},
                         64);
    for (std::int64_t i = 0; i < rows; ++i) {
      std::vector<Cell> cells{static_cast<double>(i) / 10, i,   std::int64_t{0},          begin + i, std::int64_t{0},
                              std::vector<double>{0, 0},   0.0, std::vector<double>{0, 0}};
      wrong(i, cells);
      writer.add(cells);
    }
    writer.finish();
  }
  // The list of tasks, in place of "task 0" and "task 1".
  void rewrite_tasks(const std::vector<std::string>& texts) const {
    ParquetWriter writer(in_set("meta/tasks.parquet"), {{"task_index"}, {"task", ColumnType::kText}}, 8);
    for (std::size_t i = 0; i < texts.size(); ++i) writer.add({static_cast<std::int64_t>(i), texts[i]});
    writer.finish();
  }
  TestFolder folder_;
};

TEST_F(LeRobotCheck, FindsNothingWhereNothingIsWrong) {
  write_counting_dataset(root(), {5, 1, 8, 3});
  const DatasetReport found = report();
  EXPECT_THAT(found.faults, IsEmpty());
  EXPECT_THAT(found.warnings, Each(HasSubstr("wrist"))) << "whose pictures differ in size";
  EXPECT_EQ(found.episodes, 4);
  EXPECT_EQ(found.frames, 17);
  EXPECT_EQ(found.tasks, 2);
  write_counting_dataset_v2(folder_.file("v2"), {5, 1});
  EXPECT_THAT(check_lerobot_dataset(folder_.file("v2")).faults, IsEmpty());
}

// What one pass finds: each of these ends the reading for those who train.
TEST_F(LeRobotCheck, FindsAllThatIsWrongInOnePass) {
  auto options = counting_options();
  options.frames_per_data_file = options.frames_per_video_file = 1;
  write_counting_dataset(root(), {4, 3, 2, 5}, options);
  edit("meta/info.json", [](auto& json) { json["total_frames"] = 99; });
  edit("meta/info.json", [](auto& json) { json["features"]["odd"] = {{"dtype", "text"}, {"shape", {1}}}; });
  edit("meta/stats.json", [](auto& json) { json["action"]["mean"] = {0.0, "MISSING"}; });
  edit("meta/stats.json", [](auto& json) { json["observation.force"]["max"] = {-1.0}; });
  edit("meta/stats.json", [](auto& json) { json["observation.state"]["std"][1] = 0; });
  edit("meta/info.json", [](auto& json) { json["features"]["observation.state"]["dtype"] = "float64"; });
  rewrite_tasks({"task 0", "sweep the floor"});
  replace("meta/stats.json", "\"MISSING\"", "NaN");  // as Python writes it
  std::filesystem::resize_file(in_set("data/chunk-000/file-000.parquet"), 100);
  std::filesystem::remove(in_set("data/chunk-000/file-002.parquet"));
  rewrite_rows("data/chunk-000/file-001.parquet", 4, 3, [](std::int64_t row, std::vector<Cell>& cells) {
    cells[2] = std::int64_t{row == 2 ? 7 : 1};
    if (row == 0) cells[4] = std::int64_t{12};
    if (row == 1) cells[5] = std::vector<double>{0, std::numeric_limits<double>::quiet_NaN()};
    if (row == 1) cells[0] = 0.25;
  });
  const std::string videos = "videos/observation.images.top/chunk-000/";
  std::filesystem::remove(in_set(videos + "file-001.mp4"));
  std::filesystem::copy_file(in_set(videos + "file-002.mp4"), in_set(videos + "file-003.mp4"),
                             std::filesystem::copy_options::overwrite_existing);
  write_grey_video(in_set(videos + "file-002.mp4"), 48, 32, 2);
  const DatasetReport found = report();
  const auto& faults = found.faults;
  const std::string second = "file-001.parquet: column ";
  EXPECT_THAT(faults, Contains(AllOf(HasSubstr("info.json"), HasSubstr("odd"), HasSubstr("text"))));
  EXPECT_THAT(faults, Contains(AllOf(HasSubstr("total_frames is 99"), HasSubstr("14"))));
  EXPECT_THAT(faults, Contains(AllOf(HasSubstr("statistics of \"action\""), HasSubstr("element 1 of mean is nan"))));
  EXPECT_THAT(faults, Contains(AllOf(HasSubstr("observation.force"), HasSubstr("max -1"))));
  EXPECT_THAT(faults, Contains(HasSubstr("file-000.parquet")));
  EXPECT_THAT(faults, Contains(HasSubstr("file-002.parquet")));
  EXPECT_THAT(faults, Contains(HasSubstr(second + "episode_index: row 2 is 7")));
  EXPECT_THAT(faults, Contains(HasSubstr(second + "task_index: row 0 is 12")));
  EXPECT_THAT(faults, Contains(HasSubstr(second + "timestamp: row 1 is 0.25 s")));
  EXPECT_THAT(faults, Contains(HasSubstr(second + "observation.state: row 1 holds nan")));
  EXPECT_THAT(faults, Contains(HasSubstr("file-001.mp4")));
  EXPECT_THAT(faults, Contains(AllOf(HasSubstr("file-003.mp4"), HasSubstr("episode 3"))));
  EXPECT_THAT(faults, Contains(HasSubstr(second + "observation.images.wrist: is missing")));
  EXPECT_THAT(faults, Contains(AllOf(HasSubstr(second + "observation.state"), HasSubstr("float32"),
                                     HasSubstr("info.json says float64"))));
  EXPECT_THAT(faults, Contains(AllOf(HasSubstr("file-002.mp4"), HasSubstr("48 x 32"), HasSubstr("[32, 48, 3]"))));
  EXPECT_THAT(faults, Contains(AllOf(HasSubstr("meta/episodes/chunk-000/file-000.parquet: column tasks: row 3"),
                                     HasSubstr("\"task 1\""), HasSubstr("meta/tasks.parquet"))));
  EXPECT_THAT(found.warnings, Contains(AllOf(HasSubstr("observation.state"), HasSubstr("element 1 has zero range"))));
}

TEST_F(LeRobotCheck, FindsAnEmptyDataset) {
  const auto say_nothing_is_there = [&] {
    edit("meta/info.json", [](auto& json) { json["total_episodes"] = json["total_frames"] = 0; });
  };
  write_counting_dataset(root(), {2});
  write_episode_list(root(), {});
  say_nothing_is_there();
  EXPECT_THAT(report().faults, ElementsAre(AllOf(HasSubstr("meta/episodes"), HasSubstr("no episode"))));
  std::filesystem::remove_all(root());
  write_counting_dataset_v2(root(), {2});
  std::ofstream(in_set("meta/episodes.jsonl")) << "";
  say_nothing_is_there();
  EXPECT_THAT(report().faults, ElementsAre(AllOf(HasSubstr("meta/episodes.jsonl"), HasSubstr("no episode"))));
}

TEST_F(LeRobotCheck, NamesEpisodesWhoseTaskIsInNoTable) {
  write_counting_dataset(root(), {2, 3, 1});
  rewrite_tasks({"task 0", "sweep the floor"});
  EXPECT_THAT(report().faults, ElementsAre(AllOf(HasSubstr(in_set("meta/episodes/chunk-000/file-000.parquet")),
                                                 HasSubstr("column tasks: row 1"), HasSubstr("\"task 1\""),
                                                 HasSubstr(in_set("meta/tasks.parquet")))));
  std::filesystem::remove_all(root());
  write_counting_dataset_v2(root(), {2, 3, 1});
  replace("meta/tasks.jsonl", "\"task 1\"", "\"sweep the floor\"");
  EXPECT_THAT(report().faults, ElementsAre(AllOf(HasSubstr(in_set("meta/episodes.jsonl")), HasSubstr("entry 2: tasks"),
                                                 HasSubstr("\"task 1\""), HasSubstr(in_set("meta/tasks.jsonl")))));
  replace("meta/episodes.jsonl", "\"tasks\"", "\"texts\"");
  EXPECT_THAT(report().warnings, Contains(AllOf(HasSubstr("entry 1"), HasSubstr("lacks \"tasks\""))));
}

TEST_F(LeRobotCheck, ComparesTypesOfColumnsWithWhatInfoSays) {
  write_counting_dataset(root(), {3});
  edit("meta/info.json", [](auto& json) {
    json["features"]["action"]["dtype"] = "float64";
    json["features"]["observation.force"]["dtype"] = "bool";
    json["features"]["timestamp"]["dtype"] = "float64";
    json["features"]["index"]["dtype"] = "int32";
  });
  const auto of = [](const char* column, const char* found, const char* said) {
    return AllOf(HasSubstr("file-000.parquet"), HasSubstr(fmt::format("column {}: ", column)),
                 HasSubstr(fmt::format("type {},", found)), HasSubstr(fmt::format("info.json says {}", said)));
  };
  EXPECT_THAT(report().faults,
              ElementsAre(of("timestamp", "float32", "float64"), of("index", "int64", "int32"),
                          of("action", "float32", "float64"), of("observation.force", "float32", "bool")));
  edit("meta/info.json", [](auto& json) { json["features"]["action"]["dtype"] = "float32"; });
  const auto text = [](std::int64_t, std::vector<Cell>& cells) { cells.back() = std::string("left"); };
  rewrite_rows("data/chunk-000/file-000.parquet", 0, 3, text, ColumnType::kText);
  EXPECT_THAT(report().faults, Contains(HasSubstr("column action")).Times(1)) << "once";
  EXPECT_THAT(report().faults, Contains(of("action", "string", "float32")));
}

TEST_F(LeRobotCheck, GoesOnWhereEpisodesLieAboutTheirFrames) {
  write_counting_dataset(root(), {2, 3});
  write_episode_list(root(), {{0, 2, 0, std::numeric_limits<std::int64_t>::max()}, {1, 3, 2, 5, "task 1"}});
  const auto faults = report().faults;
  EXPECT_THAT(faults, Contains(AllOf(HasSubstr("dataset_to_index"), HasSubstr("row 0"), HasSubstr("at most"))));
  EXPECT_THAT(faults, Contains(HasSubstr("row 1: episode 1 of length 3 has frames 2 to 5, but must begin at 0")));
  EXPECT_THAT(faults, Contains(HasSubstr("has 5 rows, but meta/episodes says 3")));
}

TEST_F(LeRobotCheck, TakesTimesAsFloat32HasThem) {
  write_counting_dataset(root(), {9});
  const double fps = 3e-4;  // the last row is after seven hours
  edit("meta/info.json", [&](auto& json) { json["fps"] = fps; });
  const auto faults_of_times = [&](double late, double first) {
    rewrite_rows("data/chunk-000/file-000.parquet", 0, 9, [&](std::int64_t row, std::vector<Cell>& cells) {
      cells[0] = row == 0 ? first : static_cast<double>(row) / fps + (row == 8 ? late : 0);
    });
    std::vector<std::string> faults;
    for (const auto& fault : report().faults)
      if (fault.find("column timestamp:") != std::string::npos) faults.push_back(fault);
    return faults;
  };
  EXPECT_THAT(faults_of_times(0, 0), IsEmpty());
  EXPECT_THAT(faults_of_times(0.01, 0), ElementsAre(HasSubstr("row 8")));
  EXPECT_THAT(faults_of_times(0, std::numeric_limits<double>::quiet_NaN()), ElementsAre(HasSubstr("row 0 is nan")));
}

TEST_F(LeRobotCheck, NotesDepthAndReadsNoneOfIt) {
  write_counting_dataset(root(), {2});
  edit("meta/info.json",
       [](auto& json) { json["features"]["observation.images.top"]["info"]["video.is_depth_map"] = true; });
  std::filesystem::remove_all(in_set("videos"));
  const DatasetReport found = report();
  EXPECT_THAT(found.faults, IsEmpty());
  EXPECT_THAT(found.warnings, Contains(AllOf(HasSubstr(in_set("meta/info.json")), HasSubstr("observation.images.top"),
                                             HasSubstr("is depth"))));
}

TEST_F(LeRobotCheck, CountsRowsThatAreWrongAlike) {
  write_counting_dataset(root(), {9});
  rewrite_rows("data/chunk-000/file-000.parquet", 0, 9,
               [](std::int64_t, std::vector<Cell>& cells) { cells[4] = std::int64_t{5}; });
  std::vector<std::string> of_tasks;
  for (const auto& fault : report().faults)
    if (fault.find("column task_index:") != std::string::npos) of_tasks.push_back(fault);
  EXPECT_THAT(of_tasks, ElementsAre(HasSubstr("row 0"), HasSubstr("row 1"), HasSubstr("row 2"),
                                    HasSubstr("6 more rows like these")));
}

TEST_F(LeRobotCheck, GoesOnWhereAPathOrALengthIsImpossible) {
  write_counting_dataset_v2(root(), {3, 2});
  const std::string info = read_file(in_set("meta/info.json"));
  replace("meta/info.json", "{video_key}", "{camera}");
  EXPECT_THAT(report().faults, ElementsAre(HasSubstr("no template"))) << "the numbers are still looked at";
  std::ofstream(in_set("meta/info.json")) << info;
  replace("meta/episodes.jsonl", "\"length\":2", "\"length\":9223372036854775807");
  EXPECT_THAT(report().faults, Contains(AllOf(HasSubstr("episodes.jsonl: entry 2"), HasSubstr("at most"))));
}

TEST_F(LeRobotCheck, NamesTheFilesOfTheDatasetsOwnVersion) {
  write_counting_dataset_v2(root(), {3, 2});
  edit("meta/info.json", [](auto& json) { json["total_episodes"] = 7, json["total_frames"] = 9; });
  rewrite_rows("data/chunk-000/episode_000000.parquet", 0, 3, [](std::int64_t, std::vector<Cell>& cells) {
    cells[2] = std::int64_t{4};
    cells[4] = std::int64_t{12};
  });
  rewrite_rows("data/chunk-000/episode_000001.parquet", 3, 1,
               [](std::int64_t, std::vector<Cell>& cells) { cells[2] = std::int64_t{1}; });
  std::filesystem::remove(in_set("meta/episodes_stats.jsonl"));
  const auto faults = report().faults;
  EXPECT_THAT(faults, Contains(AllOf(HasSubstr("total_episodes"), HasSubstr("7"))).Times(1)) << "once";
  EXPECT_THAT(faults, Contains(HasSubstr("total_frames is 9, but meta/episodes.jsonl lists 5")));
  EXPECT_THAT(faults, Contains(HasSubstr("has 1 rows, but meta/episodes.jsonl says 2")));
  EXPECT_THAT(faults, Contains(HasSubstr("row 0 is 4, but meta/episodes.jsonl says 0")));
  EXPECT_THAT(faults, Contains(HasSubstr("row 0 is 12, but meta/tasks.jsonl has 2 tasks")));
  EXPECT_THAT(faults, Contains(HasSubstr("meta/episodes_stats.jsonl: has no statistics of \"action\"")));
  EXPECT_THAT(faults,
              Each(Not(AnyOf(HasSubstr("meta/episodes says"), HasSubstr("tasks.parquet"), HasSubstr("/stats.json")))));
  std::filesystem::rename(in_set("stats-of-v3.json"), in_set("meta/stats.json"));
  edit("meta/stats.json", [](auto& json) { json["action"]["max"] = {-1e9, 1e9}; });
  EXPECT_THAT(report().faults, Contains(HasSubstr("meta/stats.json: statistics of \"action\": element 0 has")))
      << "where v2.0 has them";
}

TEST_F(LeRobotCheck, LooksAtTaskTexts) {
  write_counting_dataset(root(), {2});
  rewrite_tasks({"place the b\xC3\xA4ll \xF0\x9F\xA4\x96", "bad \xFF bytes", std::string(5000, 'x')});
  const DatasetReport found = report();
  EXPECT_THAT(found.faults, Contains(AllOf(HasSubstr("task 1"), HasSubstr("UTF-8"))));
  EXPECT_THAT(found.faults, Contains(HasSubstr("total_tasks")));
  EXPECT_THAT(found.faults, Contains(AllOf(HasSubstr("column tasks: row 0"), HasSubstr("\"task 0\""))));
  EXPECT_THAT(found.faults, SizeIs(3));
  EXPECT_THAT(found.warnings, Contains(AllOf(HasSubstr("task 2"), HasSubstr("5000 bytes"))));
}

TEST_F(LeRobotCheck, WarnsOfZeroRanges) {
  write_counting_dataset(root(), {3});
  edit("meta/stats.json", [](auto& json) {
    json["observation.force"]["min"] = json["observation.force"]["max"] = {4.0};
    json["observation.state"]["std"][1] = 0;
    json["action"]["q01"][1] = json["action"]["q99"][1] = 2.5;
  });
  const DatasetReport found = report();
  EXPECT_THAT(found.warnings, Contains(HasSubstr("zero range")).Times(3));
  EXPECT_THAT(found.warnings, Contains(AllOf(HasSubstr("\"observation.force\": element 0"),
                                             HasSubstr("min and max are 4 (min_max makes that -1)"))));
  EXPECT_THAT(found.warnings, Contains(AllOf(HasSubstr("\"observation.state\": element 1"), HasSubstr("std is 0"))));
  EXPECT_THAT(found.warnings, Contains(AllOf(HasSubstr("\"action\": element 1"),
                                             HasSubstr("q01 and q99 are 2.5 (quantiles makes that -1)"))));
  EXPECT_THAT(found.faults, IsEmpty());
  edit("meta/stats.json", [](auto& json) { json["action"]["q01"][0] = 1000; });
  EXPECT_THAT(report().faults, ElementsAre(AllOf(HasSubstr("\"action\": element 0"), HasSubstr("q01 1000"))));
}

TEST_F(LeRobotCheck, RefusesWhatIsNoDataset) { EXPECT_THROW(check_lerobot_dataset(folder_.file("nowhere")), Error); }

}  // namespace
}  // namespace plimsoll::data
