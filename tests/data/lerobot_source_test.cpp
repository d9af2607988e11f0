#include "data/lerobot_source.h"

#include <gmock/gmock.h>
#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>

#include <cmath>
#include <sstream>

#include "core/error.h"
#include "data/demo_data.h"
#include "data/loader.h"
#include "data/sample_stream.h"
#include "tests/data/lerobot_files.h"
#include "tests/data/model_files.h"
#include "tests/error_of.h"

namespace plimsoll::data {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

class LeRobotSourceTest : public ::testing::Test {
 protected:
  LeRobotSourceOptions options() const { return force_source_options(folder.file("set")); }
  template <class Change>
  std::string refusal(Change change) const {
    auto changed = options();
    change(changed);
    return error_of([&] { LeRobotSource source(changed, processor); });
  }
  /// Values as they were before normalisation, rounded.
  static std::vector<float> raw(std::vector<float> values, const Normaliser& scale) {
    scale.denormalise(values);
    for (float& value : values) value = std::round(value * 1000) / 1000;
    return values;
  }
  TestFolder folder;
  ModelFolder model;
  std::shared_ptr<const VlmProcessor> processor = std::make_shared<VlmProcessor>(model.path());
};

TEST_F(LeRobotSourceTest, MakesSamplesOfRows) {
  write_counting_dataset(folder.file("set"), {5, 4});
  const LeRobotSource source(options(), processor);
  ASSERT_EQ(source.size(), 9);
  EXPECT_EQ(source.dims().state, 2);
  EXPECT_EQ(source.dims().action, 2);
  EXPECT_EQ(source.dims().sensor_window, 4);
  EXPECT_EQ(source.dims().sensor_channels, 1);
  const Sample sample = source.load(6);
  EXPECT_EQ(sample.index, 6);
  EXPECT_EQ(sample.task_index, 1);
  EXPECT_EQ(sample.instruction, "task 1");
  EXPECT_THAT(raw(sample.state, *source.state_normaliser()), ElementsAre(6, 88));
  EXPECT_THAT(raw(sample.sensor, *source.sensor_normaliser()), ElementsAre(5, 5, 5, 6))
      << "history before the start repeats the first row";
  EXPECT_THAT(raw(sample.actions, source.action_normaliser()), ElementsAre(-6, -88, -7, -86, -8, -84));
  EXPECT_THAT(sample.action_is_pad, ElementsAre(0, 0, 0));
  const Sample last = source.load(4);
  EXPECT_THAT(raw(last.actions, source.action_normaliser()), ElementsAre(-4, -92, -4, -92, -4, -92))
      << "rows past the end repeat the last";
  EXPECT_THAT(last.action_is_pad, ElementsAre(0, 1, 1));
  EXPECT_THAT(raw(last.sensor, *source.sensor_normaliser()), ElementsAre(1, 2, 3, 4));
}

TEST_F(LeRobotSourceTest, KnowsEveryShapeBeforeLoading) {
  DemoDataOptions demo;
  demo.episodes = 12;
  demo.frames_per_episode = 2;
  demo.table.heavy_fraction = 0.4;
  write_demo_dataset(folder.file("set"), demo);
  const LeRobotSource source(options(), processor);
  std::int64_t lightest = 1 << 30, heaviest = 0;
  for (std::int64_t i = 0; i < source.size(); ++i) {
    const SampleShape shape = source.shape_of(i);
    EXPECT_EQ(shape, source.load(i).shape()) << i;
    EXPECT_EQ(source.shape_at(i, 56), source.load_at(i, 56).shape()) << i;
    lightest = std::min(lightest, shape.tokens + shape.patches);
    heaviest = std::max(heaviest, shape.tokens + shape.patches);
  }
  EXPECT_GE(heaviest, 2 * lightest) << "heavy scenes weigh at least twice as much";
}

TEST_F(LeRobotSourceTest, KeepsTheLastEpisodesOut) {
  write_counting_dataset(folder.file("set"), {2, 3, 1, 2});
  auto chosen = options();
  EXPECT_TRUE(LeRobotSource(chosen, processor).held_out().empty());
  chosen.eval_fraction = 0.3;  // of four episodes: two
  const LeRobotSource source(chosen, processor);
  EXPECT_THAT(source.training(), ElementsAre(0, 1, 2, 3, 4));
  EXPECT_THAT(source.held_out(), ElementsAre(5, 6, 7));
}

TEST_F(LeRobotSourceTest, PutsDatasetsOneAfterAnother) {
  write_counting_dataset(folder.file("set"), {2, 3});
  write_counting_dataset(folder.file("more"), {4, 2});
  auto chosen = options();
  chosen.paths.push_back(folder.file("more"));
  chosen.eval_fraction = 0.5;
  const LeRobotSource source(chosen, processor);
  EXPECT_EQ(source.size(), 11);
  EXPECT_THAT(source.held_out(), ElementsAre(2, 3, 4, 9, 10));
  EXPECT_THAT(source.tasks(), ElementsAre("task 0", "task 1")) << "tasks of one text are one";
  const Sample sample = source.load(10);
  EXPECT_EQ(sample.task_index, 1);
  EXPECT_EQ(sample.instruction, "task 1");
  EXPECT_EQ(source.load(5).task_index, 0);
  EXPECT_THAT(source.datasets(), ElementsAre("set", "more"));
  EXPECT_EQ(source.dataset_of(4), 0);
  EXPECT_EQ(source.dataset_of(5), 1);
}

TEST_F(LeRobotSourceTest, NamesWhatDoesNotFit) {
  write_counting_dataset(folder.file("set"), {2, 2});
  EXPECT_THAT(refusal([](auto& o) { o.paths.clear(); }), HasSubstr("data.path"));
  EXPECT_THAT(refusal([](auto& o) { o.chunk = 0; }), HasSubstr("expert.chunk"));
  EXPECT_THAT(refusal([](auto& o) { o.action = ""; }), HasSubstr("data.action"));
  EXPECT_THAT(refusal([](auto& o) { o.state = "observation.pose"; }),
              AllOf(HasSubstr("observation.pose"), HasSubstr("observation.state")));
  EXPECT_THAT(refusal([](auto& o) { o.cameras = {"observation.state"}; }), HasSubstr("observation.state"));
  EXPECT_THAT(refusal([](auto& o) { o.eval_fraction = 1; }), HasSubstr("eval_fraction"));
  EXPECT_THAT(refusal([](auto& o) { o.paths = {"/nowhere"}; }), HasSubstr("/nowhere/meta/info.json"));
  std::filesystem::remove(folder.file("set/meta/stats.json"));
  EXPECT_THAT(refusal([](auto&) {}), AllOf(HasSubstr("stats.json"), HasSubstr("action")));
}

/// Takes what is logged, as long as it lives.
class LogText {
 public:
  LogText() {
    spdlog::set_default_logger(
        std::make_shared<spdlog::logger>("log-text", std::make_shared<spdlog::sinks::ostream_sink_mt>(text_)));
  }
  ~LogText() { spdlog::set_default_logger(before_); }
  LogText(const LogText&) = delete;
  LogText& operator=(const LogText&) = delete;
  std::string str() const { return text_.str(); }

 private:
  std::ostringstream text_;
  std::shared_ptr<spdlog::logger> before_ = spdlog::default_logger();
};

TEST_F(LeRobotSourceTest, LeavesDepthOutAndSaysSoOnce) {
  write_counting_dataset(folder.file("set"), {2, 2});
  const std::string file = folder.file("set/meta/info.json");
  auto info = nlohmann::json::parse(read_file(file));
  info["features"]["observation.images.top"]["info"]["video.is_depth_map"] = true;
  std::ofstream(file) << info;
  const LogText logged;
  const LeRobotSource source(options(), processor);
  EXPECT_EQ(source.pictures_of(0), 1) << "with data.cameras empty";
  const std::string note = file + ": feature \"observation.images.top\" is depth";
  EXPECT_NE(logged.str().find(note), std::string::npos) << logged.str();
  EXPECT_EQ(logged.str().find(note), logged.str().rfind(note)) << logged.str();
  EXPECT_THAT(
      refusal([](auto& o) { o.cameras = {"observation.images.top"}; }),
      AllOf(HasSubstr(file), HasSubstr("observation.images.top"), HasSubstr("depth"), HasSubstr("data.cameras")));
}

TEST_F(LeRobotSourceTest, WarnsOfWhatIsSeldomMeant) {
  write_counting_dataset(folder.file("set"), {2, 2});
  auto statistics = folder.read_json("set/meta/stats.json");
  statistics["observation.state"]["std"][1] = 0;
  statistics["action"]["min"][0] = statistics["action"]["max"][0];
  folder.write("set/meta/stats.json", statistics.dump());
  auto info = folder.read_json("set/meta/info.json");
  info["features"]["action"]["dtype"] = "float64";
  folder.write("set/meta/info.json", info.dump());
  const auto logged_with = [&](const auto& change) {
    auto chosen = options();
    change(chosen);
    const LogText logged;
    const LeRobotSource source(chosen, processor);
    return logged.str();
  };
  const std::string usual = logged_with([](auto&) {}), of_state = "\"observation.state\": zero range (std is 0)";
  EXPECT_THAT(usual, HasSubstr("file-000.parquet: column action: holds values of type float32"));
  EXPECT_THAT(usual, AllOf(HasSubstr("meta/stats.json"), HasSubstr(of_state + " in dimensions 1, which"),
                           HasSubstr("state_dimensions")));
  EXPECT_THAT(usual, Not(HasSubstr("\"action\": zero range"))) << "mean_std does not go by the ends";
  EXPECT_THAT(logged_with([](auto& o) { o.normalisation = Normalisation::kMinMax; }),
              AllOf(HasSubstr("\"action\": zero range (min is max) in dimensions 0, which normalisation makes -1"),
                    Not(HasSubstr("std is 0"))));
  EXPECT_THAT(logged_with([&](auto& o) {
                o.mix.resize(1);
                o.mix[0].path = folder.file("set");
                o.mix[0].state_dimensions = {0};
                o.paths.clear();
              }),
              Not(HasSubstr(of_state)))
      << "of a dimension that is not used";
}

TEST_F(LeRobotSourceTest, RefusesPromptsLongerThanTheModelsPositions) {
  write_counting_dataset(folder.file("set"), {2, 2});
  model.write("config.json", R"({"text_config": {"max_position_embeddings": 10}})");
  processor = std::make_shared<VlmProcessor>(model.path());
  EXPECT_THAT(refusal([](auto&) {}),
              AllOf(HasSubstr("meta/tasks.parquet: task 0 (its task_index)"), HasSubstr("has 10 positions"),
                    HasSubstr("config.json"), HasSubstr("shorten the text")));
  model.write("config.json", R"({"max_position_embeddings": 4000})");
  processor = std::make_shared<VlmProcessor>(model.path());
  EXPECT_EQ(processor->most_tokens(), 4000);
  EXPECT_EQ(refusal([](auto&) {}), "no error");
}

TEST_F(LeRobotSourceTest, HashesSettingsToo) {
  write_counting_dataset(folder.file("set"), {2, 2});
  auto chosen = options();
  const auto hash = LeRobotSource(chosen, processor).hash();
  EXPECT_EQ(LeRobotSource(chosen, processor).hash(), hash);
  chosen.chunk = 4;
  EXPECT_NE(LeRobotSource(chosen, processor).hash(), hash);
}

TEST_F(LeRobotSourceTest, LoadsAlikeInManyThreads) {
  write_counting_dataset(folder.file("set"), {6, 5, 7});
  const LeRobotSource source(options(), processor);
  LoaderOptions loading;
  loading.workers = 4;
  loading.effective_batch = 6;
  Loader loader(source, loading);
  SampleStream stream(source.training(), loading.seed);
  for (std::uint64_t position = 0; position < 36; ++position) {
    const auto sample = loader.get(position);
    const Sample alone = source.load(stream.at(position));
    EXPECT_EQ(sample->vlm.pixel_values, alone.vlm.pixel_values);
    EXPECT_EQ(sample->actions, alone.actions);
  }
}

// Normaliser
// ------------------------------------------------------------------------------------------------------------------

TEST(Normaliser, FollowsItsFormulasAndBack) {
  const FeatureStatistics statistics{{10}, {2}, {4}, {20}, {5}, {15}};
  const auto normalised = [&](Normalisation kind, float value) {
    const Normaliser scale(kind, statistics, "x");
    std::vector<float> values{value};
    scale.normalise(values);
    const float result = values[0];
    scale.denormalise(values);
    EXPECT_FLOAT_EQ(values[0], value);
    return result;
  };
  EXPECT_FLOAT_EQ(normalised(Normalisation::kMeanStd, 13), 1.5f);
  EXPECT_FLOAT_EQ(normalised(Normalisation::kMinMax, 4), -1);
  EXPECT_FLOAT_EQ(normalised(Normalisation::kMinMax, 16), 0.5f);
  EXPECT_FLOAT_EQ(normalised(Normalisation::kQuantiles, 15), 1);
  EXPECT_FLOAT_EQ(normalised(Normalisation::kQuantiles, 20), 2);
}

TEST(Normaliser, LeavesConstantElementsFinite) {
  const FeatureStatistics statistics{{3}, {0}, {3}, {3}, {3}, {3}};
  for (const auto& [kind, expected] : {std::pair{Normalisation::kMeanStd, 0.0f},
                                       {Normalisation::kMinMax, -1.0f},
                                       {Normalisation::kQuantiles, -1.0f}}) {
    std::vector<float> values{3};
    Normaliser(kind, statistics, "x").normalise(values);
    EXPECT_EQ(values[0], expected);
  }
}

TEST(Normaliser, NamesMissingStatistics) {
  const FeatureStatistics statistics{{3}, {1}, {}, {}, {}, {}};
  EXPECT_NO_THROW(Normaliser(Normalisation::kMeanStd, statistics, "x"));
  try {
    Normaliser(Normalisation::kQuantiles, statistics, "force");
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), AllOf(HasSubstr("force"), HasSubstr("q01")));
  }
  EXPECT_THROW(Normaliser(Normalisation::kMeanStd, {{NAN}, {1}, {}, {}, {}, {}}, "x"), Error);
  EXPECT_THROW(parse_normalisation("none"), Error);
}

}  // namespace
}  // namespace plimsoll::data
