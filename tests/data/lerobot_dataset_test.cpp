#include "data/lerobot_dataset.h"

#include <gmock/gmock.h>

#include <filesystem>
#include <functional>
#include <limits>
#include <thread>

#include "core/error.h"
#include "core/file.h"
#include "data/parquet_writer.h"
#include "tests/data/lerobot_files.h"
#include "tests/data/model_files.h"
#include "tests/error_of.h"

namespace plimsoll::data {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class LeRobotDatasetTest : public ::testing::Test {
 protected:
  std::string root() const { return folder.file("set"); }
  std::string in_set(const std::string& name) const { return root() + "/" + name; }
  std::string opening_error() const {
    return error_of(ExitCode::kData, [&] { LeRobotDataset opened(root()); });
  }
  void edit(const std::string& name, const std::function<void(nlohmann::json&)>& change) const {
    auto json = nlohmann::json::parse(read_file(in_set(name)));
    change(json);
    std::ofstream(in_set(name)) << json.dump();
  }
  void cut(const std::string& name, std::uintmax_t bytes) const {
    std::filesystem::resize_file(in_set(name), std::filesystem::file_size(in_set(name)) - bytes);
  }
  TestFolder folder;
};

void expect_counting_frame(const LeRobotDataset& dataset, std::int64_t index) {
  const auto state = state_of(index);
  EXPECT_THAT(dataset.values(dataset.numbers("observation.state"), index), ElementsAre(state[0], state[1]));
  EXPECT_THAT(dataset.values(dataset.numbers("action"), index), ElementsAre(-state[0], -state[1]));
  EXPECT_THAT(dataset.values(dataset.numbers("observation.force"), index), ElementsAre(index));
  const auto top = dataset.camera("observation.images.top"), wrist = dataset.camera("observation.images.wrist");
  const Image video = dataset.image(top, index), picture = dataset.image(wrist, index);
  EXPECT_EQ(video.size(), (ImageSize{32, 48}));
  EXPECT_EQ(dataset.image_size(top, index), video.size());
  for (const std::uint8_t value : video.pixels) ASSERT_NEAR(value, level_of(index), 3) << "frame " << index;
  EXPECT_EQ(picture.size(), (ImageSize{28 + 2 * (index % 3), 28}));
  EXPECT_EQ(dataset.image_size(wrist, index), picture.size());
  EXPECT_EQ(picture.pixels, grey(picture.height, picture.width, level_of(index)).pixels) << "frame " << index;
}

TEST_F(LeRobotDatasetTest, ReadsBackWhatWasWritten) {
  write_counting_dataset(root(), {5, 1, 8, 3});
  const LeRobotDataset dataset(root());
  ASSERT_EQ(dataset.size(), 17);
  EXPECT_THAT(dataset.info().tasks, ElementsAre("task 0", "task 1"));
  EXPECT_THAT(dataset.info().cameras(), ElementsAre("observation.images.top", "observation.images.wrist"));
  for (std::int64_t i = 0; i < dataset.size(); ++i) expect_counting_frame(dataset, i);
  const RowIndex row = dataset.row(8);
  EXPECT_EQ(row.index, 8);
  EXPECT_EQ(row.frame_index, 2);
  EXPECT_EQ(row.episode_index, 2);
  EXPECT_EQ(row.task_index, 0);
  EXPECT_FLOAT_EQ(row.timestamp, 0.2f);
  EXPECT_EQ(dataset.task(5), "task 1");
  EXPECT_EQ(dataset.episode_of(13).end, 14);
}

TEST_F(LeRobotDatasetTest, ReadsSeveralFilesWhoseNumbersDiffer) {
  auto options = counting_options();
  options.frames_per_data_file = 7;
  options.frames_per_video_file = 4;
  write_counting_dataset(root(), {5, 3, 4, 6, 2}, options);
  EXPECT_TRUE(std::filesystem::exists(in_set("data/chunk-000/file-001.parquet")));
  EXPECT_TRUE(std::filesystem::exists(in_set("videos/observation.images.top/chunk-000/file-003.mp4")));
  const LeRobotDataset dataset(root());
  for (const std::int64_t i : {19, 0, 7, 8, 18, 12, 4, 5, 11, 17}) expect_counting_frame(dataset, i);
}

TEST_F(LeRobotDatasetTest, GivesTheSameFramesToManyThreads) {
  write_counting_dataset(root(), {8, 8});
  LeRobotOptions options;
  options.idle_decoders = 1;
  const LeRobotDataset dataset(root(), options);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&dataset, t] {
      for (std::int64_t i = 0; i < 16; ++i) expect_counting_frame(dataset, (5 * i + t) % 16);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_F(LeRobotDatasetTest, ReadsOnlyTheFeaturesAskedFor) {
  write_counting_dataset(root(), {4});
  std::filesystem::remove_all(in_set("videos"));
  LeRobotOptions options;
  options.features = std::vector<std::string>{"action"};
  const LeRobotDataset dataset(root(), options);
  EXPECT_THAT(dataset.values(dataset.numbers("action"), 3), ElementsAre(-3, -94));
  EXPECT_THAT(error_of(ExitCode::kData, [&] { dataset.numbers("observation.state"); }), HasSubstr("observation.state"));
  options.features = std::vector<std::string>{"observation.pose"};
  EXPECT_THAT(error_of(ExitCode::kData, [&] { LeRobotDataset opened(root(), options); }),
              AllOf(HasSubstr("observation.pose"), HasSubstr("action")));
}

TEST_F(LeRobotDatasetTest, ReadsTheNamesOfDimensions) {
  write_counting_dataset(root(), {4});
  const auto names = [&](const char* written) {
    auto info = nlohmann::json::parse(read_file(in_set("meta/info.json")));
    info["features"]["action"]["names"] = nlohmann::json::parse(written);
    std::ofstream(in_set("meta/info.json")) << info;
    return read_lerobot_info(root()).find("action")->names;
  };
  EXPECT_THAT(names("null"), ::testing::IsEmpty());
  EXPECT_THAT(names(R"(["x", "y"])"), ElementsAre("x", "y"));
  EXPECT_THAT(names(R"({"motors": ["x", "y"]})"), ElementsAre("x", "y"));
  EXPECT_THAT(names(R"(["x"])"), ::testing::IsEmpty()) << "not one a value";
  EXPECT_THAT(names(R"({"arm": ["x"], "hand": ["y"]})"), ::testing::IsEmpty()) << "in an order that is not known";
  EXPECT_THAT(names("[1, 2]"), ::testing::IsEmpty());
}

TEST_F(LeRobotDatasetTest, HashesWhatItWouldReturn) {
  write_counting_dataset(root(), {4, 4});
  write_counting_dataset(folder.file("same"), {4, 4});
  write_counting_dataset(folder.file("other"), {4, 5});
  EXPECT_EQ(LeRobotDataset(root()).hash(), LeRobotDataset(folder.file("same")).hash());
  EXPECT_NE(LeRobotDataset(root()).hash(), LeRobotDataset(folder.file("other")).hash());
}

TEST_F(LeRobotDatasetTest, RefusesOtherVersions) {
  write_counting_dataset(root(), {4});
  edit("meta/info.json", [](auto& json) { json["codebase_version"] = "v1.6"; });
  EXPECT_THAT(opening_error(), AllOf(HasSubstr("info.json"), HasSubstr("v1.6"), HasSubstr("convert")));
  edit("meta/info.json", [](auto& json) { json["codebase_version"] = "v4.0"; });
  EXPECT_THAT(opening_error(), HasSubstr("v4.0"));
  edit("meta/info.json", [](auto& json) { json["codebase_version"] = "v2.1"; });
  EXPECT_THAT(opening_error(), HasSubstr("meta/tasks.jsonl")) << "its other files are of v3.0";
}

TEST_F(LeRobotDatasetTest, ReadsVersion2) {
  write_counting_dataset_v2(root(), {5, 1, 8, 3});
  const LeRobotDataset dataset(root());
  ASSERT_EQ(dataset.size(), 17);
  EXPECT_THAT(dataset.info().tasks, ElementsAre("task 0", "task 1"));
  for (std::int64_t i = 0; i < dataset.size(); ++i) expect_counting_frame(dataset, i);
  EXPECT_EQ(dataset.task(5), "task 1");
  EXPECT_EQ(dataset.episode_of(13).end, 14);
  // Statistics of all frames, put together from those of the episodes.
  const auto whole = nlohmann::json::parse(read_file(in_set("stats-of-v3.json")));
  for (const char* name : {"observation.state", "action", "observation.force"}) {
    const FeatureStatistics& found = dataset.info().statistics_of(*dataset.info().find(name));
    for (std::size_t i = 0; i < found.mean.size(); ++i) {
      EXPECT_NEAR(found.mean[i], whole[name]["mean"][i].get<double>(), 1e-9);
      EXPECT_NEAR(found.std[i], whole[name]["std"][i].get<double>(), 1e-6);
      EXPECT_EQ(found.min[i], whole[name]["min"][i].get<double>());
      EXPECT_EQ(found.max[i], whole[name]["max"][i].get<double>());
    }
    EXPECT_TRUE(found.q01.empty());
  }
  // v2.0 has them of all frames, in the file that v3.0 has too.
  std::filesystem::remove(in_set("meta/episodes_stats.jsonl"));
  std::filesystem::rename(in_set("stats-of-v3.json"), in_set("meta/stats.json"));
  edit("meta/info.json", [](auto& json) { json["codebase_version"] = "v2.0"; });
  EXPECT_EQ(LeRobotDataset(root()).info().statistics.at("action").mean[0], whole["action"]["mean"][0].get<double>());
}

TEST_F(LeRobotDatasetTest, KnowsWhichEpisodesAFileHolds) {
  auto options = counting_options();
  options.frames_per_data_file = 6;
  options.frames_per_video_file = 8;
  write_counting_dataset(root(), {5, 1, 8, 3}, options);
  const LeRobotInfo info = read_lerobot_info(root());
  const auto data = info.data_files();
  ASSERT_EQ(data.size(), 3U);
  EXPECT_THAT(data[1].path, HasSubstr("data/chunk-000/file-001.parquet"));
  const auto episodes_of = [](const LeRobotDataFile& file) { return std::array{file.first, file.last}; };
  EXPECT_EQ(episodes_of(data[0]), (std::array<std::size_t, 2>{0, 2}));
  EXPECT_EQ(episodes_of(data[1]), (std::array<std::size_t, 2>{2, 3}));
  EXPECT_EQ(episodes_of(data[2]), (std::array<std::size_t, 2>{3, 4}));
  EXPECT_EQ(data[0].rows, 6);
  EXPECT_EQ(data[2].rows, 3);
  ASSERT_EQ(info.cameras()[0], "observation.images.top");
  const auto videos = info.video_files(0);
  ASSERT_EQ(videos.size(), 2U);
  EXPECT_THAT(videos.begin()->second, ElementsAre(0, 1, 2));
  EXPECT_THAT(videos.rbegin()->second, ElementsAre(3));
  EXPECT_DOUBLE_EQ(info.last_frame(info.episodes[2], 0), 1.3) << "14 frames at 10 a second";
}

TEST_F(LeRobotDatasetTest, SaysWhatIsWrongInVersion2) {
  write_counting_dataset_v2(root(), {3, 2});
  const auto refused_with = [&](const char* file, const std::string& from, const std::string& to) {
    const std::string whole = read_file(in_set(file));
    std::string changed = whole;
    const auto at = changed.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    changed.replace(at, from.size(), to);
    std::ofstream(in_set(file)) << changed;
    const std::string error = opening_error();
    std::ofstream(in_set(file)) << whole;
    EXPECT_THAT(error, HasSubstr(file));
    return error;
  };
  const char *episodes = "meta/episodes.jsonl", *tasks = "meta/tasks.jsonl", *stats = "meta/episodes_stats.jsonl",
             *info = "meta/info.json";
  EXPECT_EQ(opening_error(), "no error");
  EXPECT_THAT(refused_with(episodes, "\"episode_index\":1", "\"episode_index\":4"), HasSubstr("entry 2"));
  EXPECT_THAT(refused_with(episodes, "\"length\":2", "\"length\":0"), HasSubstr("at least one"));
  EXPECT_THAT(refused_with(episodes, "\"length\":2", "\"size\":2"), HasSubstr("lacks \"length\""));
  EXPECT_THAT(refused_with(episodes, "{", "["), HasSubstr("line 1 is not JSON"));
  EXPECT_THAT(refused_with(tasks, "\"task_index\":1", "\"task_index\":0"), HasSubstr("each once"));
  EXPECT_THAT(refused_with(tasks, "\"task 1\"", "1"), HasSubstr("another type"));
  EXPECT_THAT(refused_with(stats, "\"count\":[3]", "\"count\":[0]"), HasSubstr("action.count"));
  EXPECT_THAT(refused_with(stats, "\"max\":[", "\"max\":[7,"), HasSubstr("values"));
  EXPECT_THAT(refused_with(info, "\"chunks_size\":1000", "\"chunks_size\":0"), HasSubstr("chunks_size"));
  const std::string fewer = [&] {
    edit(info, [](auto& json) { json["total_episodes"] = 7; });
    return opening_error();
  }();
  EXPECT_THAT(fewer, AllOf(HasSubstr(episodes), HasSubstr("2 episodes"), HasSubstr("7")));
  edit(info, [](auto& json) { json["total_episodes"] = 2; });
  std::filesystem::remove(in_set("data/chunk-000/episode_000001.parquet"));
  EXPECT_THAT(opening_error(), HasSubstr("episode_000001.parquet"));
}

TEST_F(LeRobotDatasetTest, NamesWhatIsWrongInInfo) {
  write_counting_dataset(root(), {4});
  const auto original = read_file(in_set("meta/info.json"));
  const auto error_after = [&](const std::function<void(nlohmann::json&)>& change) {
    edit("meta/info.json", change);
    auto error = opening_error();
    std::ofstream(in_set("meta/info.json")) << original;
    return error;
  };
  EXPECT_THAT(error_after([](auto& json) { json.erase("fps"); }), AllOf(HasSubstr("info.json"), HasSubstr("fps")));
  EXPECT_THAT(error_after([](auto& json) { json["fps"] = 0; }), HasSubstr("fps"));
  EXPECT_THAT(error_after([](auto& json) { json["fps"] = "ten"; }), HasSubstr("ten"));
  EXPECT_THAT(error_after([](auto& json) { json["data_path"] = "data/{nobody}.parquet"; }), HasSubstr("nobody"));
  EXPECT_THAT(error_after([](auto& json) { json["features"]["action"]["dtype"] = "text"; }),
              AllOf(HasSubstr("action"), HasSubstr("text")));
  EXPECT_THAT(error_after([](auto& json) { json["features"]["action"]["shape"] = {3}; }),
              AllOf(HasSubstr("file-000.parquet"), HasSubstr("column action"), HasSubstr("row 0"), HasSubstr("3")));
  EXPECT_THAT(error_after([](auto& json) {
                json["features"]["observation.pose"] = {{"dtype", "float32"}, {"shape", {2}}};
              }),
              AllOf(HasSubstr("file-000.parquet"), HasSubstr("column observation.pose: is missing")));
  EXPECT_THAT(error_after([](auto& json) { json["features"]["observation.state"]["dtype"] = "image"; }),
              HasSubstr("shape"));
  EXPECT_THAT(error_after([](auto& json) {
                json["features"]["observation.state"] = {{"dtype", "image"}, {"shape", {8, 8, 3}}};
              }),
              AllOf(HasSubstr("column observation.state"), HasSubstr("struct")));
  std::ofstream(in_set("meta/info.json")) << "{";
  EXPECT_THAT(opening_error(), HasSubstr("JSON"));
}

TEST_F(LeRobotDatasetTest, RefusesDamagedAndMissingFiles) {
  write_counting_dataset(root(), {4});
  cut("data/chunk-000/file-000.parquet", 20);
  EXPECT_THAT(opening_error(), AllOf(HasSubstr("file-000.parquet"), HasSubstr("complete")));
  std::filesystem::remove(in_set("data/chunk-000/file-000.parquet"));
  EXPECT_THAT(opening_error(), HasSubstr("file-000.parquet"));
  std::filesystem::remove_all(in_set("meta/episodes"));
  EXPECT_THAT(opening_error(), HasSubstr("meta/episodes"));
  std::filesystem::remove(in_set("meta/info.json"));
  EXPECT_THAT(opening_error(), HasSubstr("info.json"));
}

TEST_F(LeRobotDatasetTest, RefusesVideosThatEndEarly) {
  write_counting_dataset(root(), {4});
  write_counting_dataset(folder.file("long"), {4, 8});
  const std::string video = "videos/observation.images.top/chunk-000/file-000.mp4";
  const auto replace = std::filesystem::copy_options::overwrite_existing;
  std::filesystem::copy_file(in_set(video), folder.file("long/" + video), replace);
  EXPECT_THAT(error_of(ExitCode::kData, [&] { LeRobotDataset opened(folder.file("long")); }),
              AllOf(HasSubstr("file-000.mp4"), HasSubstr("has 4 frames"), HasSubstr("episode 1 needs 12"),
                    HasSubstr("shorter")));
  cut(video, 200);
  EXPECT_THAT(opening_error(), HasSubstr("file-000.mp4"));
  std::filesystem::remove(in_set(video));
  EXPECT_THAT(opening_error(), HasSubstr("file-000.mp4"));
}

/// Replaces a data file's index columns.
void write_rows(const std::string& path, const std::vector<std::array<std::int64_t, 4>>& rows) {
  ParquetWriter writer(path,
                       {{"timestamp", ColumnType::kFloat},
                        {"frame_index"},
                        {"episode_index"},
                        {"index"},
                        {"task_index"},
                        {"action", ColumnType::kFloats, 2}},
                       64);
  for (const auto& row : rows)
    writer.add({static_cast<double>(row[0]) / 10, row[0], row[1], row[2], row[3], std::vector<double>{0, 0}});
  writer.finish();
}

TEST_F(LeRobotDatasetTest, ChecksTheIndexOfEveryRow) {
  write_counting_dataset(root(), {2});
  const std::string file = in_set("data/chunk-000/file-000.parquet");
  LeRobotOptions options;
  options.features = std::vector<std::string>{"action"};
  const auto error_with = [&](const std::vector<std::array<std::int64_t, 4>>& rows) {
    write_rows(file, rows);
    return error_of(ExitCode::kData, [&] { LeRobotDataset opened(root(), options); });
  };
  EXPECT_EQ(error_with({{0, 0, 0, 0}, {1, 0, 1, 0}}), "no error");
  EXPECT_THAT(error_with({{0, 0, 0, 0}, {1, 0, 1, 7}}),
              AllOf(HasSubstr(file), HasSubstr("column task_index: row 1 is 7"), HasSubstr("1 tasks")));
  EXPECT_THAT(error_with({{0, 0, 0, 0}, {1, 0, 1, -1}}), HasSubstr("column task_index: row 1 is -1"));
  EXPECT_THAT(error_with({{0, 0, 1, 0}, {1, 0, 0, 0}}), HasSubstr("column index: row 0 is 1"));
  EXPECT_THAT(error_with({{0, 0, 0, 0}, {1, 5, 1, 0}}), HasSubstr("column episode_index: row 1 is 5"));
  EXPECT_THAT(error_with({{1, 0, 0, 0}, {1, 0, 1, 0}}), HasSubstr("column frame_index: row 0 is 1"));
  EXPECT_THAT(error_with({{0, 0, 0, 0}}), HasSubstr("has 1 rows, but meta/episodes says 2"));
}

TEST_F(LeRobotDatasetTest, RefusesNoEpisodesAndBrokenTaskTables) {
  write_counting_dataset(root(), {2});
  const std::vector<ColumnSpec> tasks{{"task_index"}, {"task", ColumnType::kText}};
  const auto tasks_error = [&](const std::vector<std::int64_t>& indices) {
    ParquetWriter writer(in_set("meta/tasks.parquet"), tasks, 8);
    for (const std::int64_t index : indices) writer.add({index, "task " + std::to_string(index)});
    writer.finish();
    return opening_error();
  };
  EXPECT_EQ(tasks_error({0}), "no error");
  EXPECT_THAT(tasks_error({0, 0}), AllOf(HasSubstr("tasks.parquet"), HasSubstr("task_index"), HasSubstr("row 1")));
  EXPECT_THAT(tasks_error({1}), HasSubstr("row 0 is 1"));
  EXPECT_EQ(tasks_error({1, 0}), "no error");
  write_episode_list(root(), {});
  EXPECT_THAT(opening_error(), AllOf(HasSubstr("meta/episodes"), HasSubstr("no episode")));
  write_counting_dataset_v2(folder.file("v2"), {2});
  std::ofstream(folder.file("v2/meta/episodes.jsonl")) << "";
  auto info = nlohmann::json::parse(read_file(folder.file("v2/meta/info.json")));
  info["total_episodes"] = 0;
  std::ofstream(folder.file("v2/meta/info.json")) << info;
  EXPECT_THAT(error_of(ExitCode::kData, [&] { LeRobotDataset opened(folder.file("v2")); }),
              AllOf(HasSubstr("meta/episodes.jsonl"), HasSubstr("no episode")));
}

TEST_F(LeRobotDatasetTest, RefusesAListOfEpisodesThatIsNotWhole) {
  write_counting_dataset(root(), {2, 3, 2});
  const std::string whole = read_file(in_set("meta/info.json"));
  const auto error_with = [&](const char* total) {
    edit("meta/info.json", [&](auto& json) { json[total] = 99; });
    std::string error = opening_error();
    std::ofstream(in_set("meta/info.json")) << whole;
    return error;
  };
  const std::string info = in_set("meta/info.json");
  EXPECT_THAT(error_with("total_frames"), HasSubstr(info + ": total_frames is 99, but meta/episodes lists 7"));
  EXPECT_THAT(error_with("total_episodes"), HasSubstr(info + ": total_episodes is 99, but meta/episodes lists 3"));
  EXPECT_EQ(error_with("total_tasks"), "no error") << "nothing goes by it";
}

TEST_F(LeRobotDatasetTest, RefusesTaskTextsThatAreInNoTableOrNoText) {
  write_counting_dataset(root(), {2, 3});
  const auto error_with = [&](const std::string& second) {
    ParquetWriter writer(in_set("meta/tasks.parquet"), {{"task_index"}, {"task", ColumnType::kText}}, 8);
    writer.add({std::int64_t{0}, std::string("task 0")});
    writer.add({std::int64_t{1}, second});
    writer.finish();
    return opening_error();
  };
  EXPECT_EQ(error_with("task 1"), "no error");
  EXPECT_THAT(error_with("task \xFF"), AllOf(HasSubstr(in_set("meta/tasks.parquet: task 1 (its task_index)")),
                                             HasSubstr("no valid UTF-8"), HasSubstr("write the text as UTF-8")));
  EXPECT_THAT(error_with("sweep"),
              AllOf(HasSubstr(in_set("meta/episodes/chunk-000/file-000.parquet: column tasks: row 1 is \"task 1\"")),
                    HasSubstr(in_set("meta/tasks.parquet")), HasSubstr("add it there or correct it")));
}

TEST_F(LeRobotDatasetTest, RefusesTaskTextsThatAreInNoTableOfVersion2) {
  write_counting_dataset_v2(root(), {2, 3});
  const std::string listed = read_file(in_set("meta/episodes.jsonl"));
  const auto error_with = [&](const std::string& texts) {
    std::string changed = listed;
    const std::string from = "[\"task 1\"]";
    changed.replace(changed.find(from), from.size(), texts);
    std::ofstream(in_set("meta/episodes.jsonl")) << changed;
    return opening_error();
  };
  EXPECT_EQ(error_with("[\"task 1\", \"task 0\"]"), "no error");
  EXPECT_EQ(error_with("\"task 1\""), "no error") << "one text that is in no list";
  EXPECT_THAT(error_with("[\"task 0\", \"sweep\"]"),
              AllOf(HasSubstr(in_set("meta/episodes.jsonl: entry 2: tasks is \"sweep\"")),
                    HasSubstr(in_set("meta/tasks.jsonl"))));
  EXPECT_THAT(error_with("7"), AllOf(HasSubstr("meta/episodes.jsonl: entry 2"), HasSubstr("another type")));
}

TEST_F(LeRobotDatasetTest, NotesWhatIsReadAllTheSame) {
  auto options = counting_options();
  options.frames_per_data_file = 1;
  write_counting_dataset(root(), {2, 3}, options);
  EXPECT_THAT(LeRobotDataset(root()).notes(), IsEmpty());
  edit("meta/info.json", [](auto& json) {
    json["total_tasks"] = 5;
    json["features"]["action"]["dtype"] = "float64";
    json["features"]["index"]["dtype"] = "int32";
  });
  const auto of = [](const char* column, const char* found, const char* said) {
    return AllOf(HasSubstr(fmt::format("file-000.parquet: column {}: holds values of type {}", column, found)),
                 HasSubstr(fmt::format("info.json says {}", said)));
  };
  EXPECT_THAT(LeRobotDataset(root()).notes(),
              ElementsAre(HasSubstr("total_tasks is 5, but meta/tasks.parquet lists 2"), of("index", "int64", "int32"),
                          of("action", "float32", "float64")))
      << "of each column the first file";
}

TEST_F(LeRobotDatasetTest, RefusesEpisodesWhoseFramesCannotBe) {
  write_counting_dataset(root(), {2, 3});
  const auto error_with = [&](std::int64_t length, std::int64_t from, std::int64_t to) {
    write_episode_list(root(), {{0, 2, 0, 2}, {1, length, from, to}});
    return opening_error();
  };
  constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
  EXPECT_THAT(error_with(3, 2, kMost),
              AllOf(HasSubstr("meta/episodes/chunk-000/file-000.parquet"), HasSubstr("dataset_to_index"),
                    HasSubstr("row 1"), HasSubstr(std::to_string(kMost)), HasSubstr("at most")));
  EXPECT_THAT(error_with(kMost, 2, 5), HasSubstr("at most"));
  EXPECT_THAT(error_with(3, 2, -kMost), AllOf(HasSubstr("row 1"), HasSubstr("ascend")));
  EXPECT_THAT(error_with(3, -2, 1), HasSubstr("row 1"));
  EXPECT_THAT(error_with(3, 2, 6), HasSubstr("must begin at 2"));
  EXPECT_EQ(error_with(3, 2, 5), "no error");
}

TEST_F(LeRobotDatasetTest, RefusesVideosOfAnotherSizeThanDeclared) {
  write_counting_dataset(root(), {4});
  const std::string video = in_set("videos/observation.images.top/chunk-000/file-000.mp4");
  write_grey_video(video, 48, 32, 4);
  EXPECT_THAT(opening_error(), AllOf(HasSubstr(video), HasSubstr("48 x 32"), HasSubstr("meta/info.json"),
                                     HasSubstr("[32, 48, 3]"), HasSubstr("observation.images.top")));
  edit("meta/info.json", [](auto& json) { json["features"]["observation.images.top"]["shape"] = {3, 48, 32}; });
  EXPECT_EQ(opening_error(), "no error") << "channels may come first";
}

TEST_F(LeRobotDatasetTest, WritesOnlyIntoNewFolders) {
  write_counting_dataset(root(), {2});
  try {
    write_counting_dataset(root(), {2});
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kUsage);
    EXPECT_THAT(error.what(), HasSubstr(root()));
  }
}

TEST_F(LeRobotDatasetTest, KeepsStatisticsOfAllFrames) {
  write_counting_dataset(root(), {3, 2});
  const LeRobotDataset dataset(root());
  const FeatureStatistics& state = dataset.info().statistics_of(*dataset.info().find("observation.state"));
  EXPECT_THAT(state.mean, ElementsAre(2, 96));
  EXPECT_THAT(state.min, ElementsAre(0, 92));
  EXPECT_THAT(state.max, ElementsAre(4, 100));
  EXPECT_NEAR(state.std[0], std::sqrt(2.0), 1e-12);
  EXPECT_NEAR(state.q01[0], 0.04, 1e-12);
  EXPECT_NEAR(state.q99[0], 3.96, 1e-12);
  EXPECT_EQ(dataset.info().statistics.at("observation.images.top").mean.size(), 3u);
}

// Depth
// ------------------------------------------------------------------------------------------------------------------

TEST_F(LeRobotDatasetTest, KnowsDepthByWhatInfoSays) {
  write_counting_dataset(root(), {1});
  const std::string top = "observation.images.top", wrist = "observation.images.wrist";
  const auto original = read_file(in_set("meta/info.json"));
  const auto cameras_with = [&](const std::string& camera, const char* patch) {
    edit("meta/info.json", [&](auto& json) { json["features"][camera].merge_patch(nlohmann::json::parse(patch)); });
    const LeRobotInfo info = read_lerobot_info(root());
    EXPECT_EQ(info.find(camera) == nullptr, info.depth.contains(camera));
    std::ofstream(in_set("meta/info.json")) << original;
    return info.cameras();
  };
  EXPECT_THAT(cameras_with(top, R"({"info": {"video.is_depth_map": true}})"), ElementsAre(wrist));
  EXPECT_THAT(cameras_with(top, R"({"info": {"is_depth_map": true}})"), ElementsAre(wrist));
  EXPECT_THAT(cameras_with(top, R"({"info": null, "video_info": {"video.is_depth_map": true}})"), ElementsAre(wrist));
  EXPECT_THAT(cameras_with(top, R"({"video_info": {"is_depth_map": true}})"), ElementsAre(wrist));
  EXPECT_THAT(cameras_with(wrist, R"({"shape": [28, 28, 1]})"), ElementsAre(top));
  EXPECT_THAT(cameras_with(wrist, R"({"shape": [1, 28, 28]})"), ElementsAre(top));
  EXPECT_THAT(cameras_with(top, R"({"info": {"video.is_depth_map": false}})"), ElementsAre(top, wrist));
  EXPECT_THAT(cameras_with(wrist, R"({"shape": [28, 28, 1], "info": {"is_depth_map": false}})"),
              ElementsAre(top, wrist))
      << "a grey camera";
  EXPECT_THAT(cameras_with(top, R"({"info": null})"), ElementsAre(top, wrist));
}

TEST_F(LeRobotDatasetTest, LeavesDepthOut) {
  write_counting_dataset(root(), {2, 2});
  write_counting_dataset_v2(folder.file("v2"), {2, 2});
  LeRobotOptions options;
  options.features = std::vector<std::string>{"observation.images.top", "action"};
  for (const std::string& path : {root(), folder.file("v2")}) {
    const std::string file = path + "/meta/info.json";
    auto info = nlohmann::json::parse(read_file(file));
    info["features"]["observation.images.top"]["info"]["video.is_depth_map"] = true;
    std::ofstream(file) << info;
    std::filesystem::remove_all(path + "/videos");  // which nothing may read
    const LeRobotDataset dataset(path);
    EXPECT_THAT(dataset.info().cameras(), ElementsAre("observation.images.wrist"));
    EXPECT_EQ(dataset.image(dataset.camera("observation.images.wrist"), 3).pixels[0], level_of(3));
    EXPECT_THAT(dataset.info().depth_notes(),
                ElementsAre(AllOf(HasSubstr(file), HasSubstr("observation.images.top"), HasSubstr("is depth"),
                                  HasSubstr("video.is_depth_map"))));
    EXPECT_THAT(
        error_of(ExitCode::kData, [&] { LeRobotDataset opened(path, options); }),
        AllOf(HasSubstr(file), HasSubstr("observation.images.top"), HasSubstr("is depth"), HasSubstr("data.cameras")));
  }
}

// Times
// ------------------------------------------------------------------------------------------------------------------

TEST(LeRobotRow, ToleratesWhatFloat32CannotTellApart) {
  EXPECT_NEAR(time_tolerance(0.2, 1e-4), 1e-4, 1e-7);
  EXPECT_DOUBLE_EQ(time_tolerance(3000, 1e-4), 1e-4 + 0x1p-12);
}

}  // namespace
}  // namespace plimsoll::data
