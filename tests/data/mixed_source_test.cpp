// Datasets of different layouts in one source, and actions relative to the state.

#include <gmock/gmock.h>

#include <cmath>

#include "core/error.h"
#include "core/hash.h"
#include "data/lerobot_dataset.h"
#include "data/lerobot_source.h"
#include "tests/data/lerobot_files.h"
#include "tests/data/model_files.h"
#include "tests/error_of.h"

namespace plimsoll::data {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

/// What write_counting_dataset() writes, under other names: cameras that sort the other way round, and numbers in
/// another order beside one that is of no use.
LeRobotWriterOptions other_layout() {
  LeRobotWriterOptions options;
  options.features = {{"images.a_gripper", "image", {28, 28, 3}, {}},
                      {"images.z_overhead", "video", {32, 48, 3}, {}},
                      {"joints", "float32", {3}, {"spare", "shoulder", "elbow"}},
                      {"touch", "float32", {2}, {}},
                      {"command", "float32", {3}, {"shoulder", "mode", "elbow"}}};
  options.rows_per_group = 4;
  return options;
}

Frame other_frame(std::int64_t index) {
  Frame frame = counting_frame(index), other;
  other.images["images.z_overhead"] = frame.images["observation.images.top"];
  other.images["images.a_gripper"] = frame.images["observation.images.wrist"];
  const auto state = state_of(index);
  other.numbers["joints"] = {5 * std::sin(static_cast<double>(index)), state[1], state[0]};
  other.numbers["touch"] = {-1, static_cast<double>(index)};
  other.numbers["command"] = {-state[1], 1, -state[0]};
  return other;
}

void write_other_dataset(const std::string& root, const std::vector<std::int64_t>& lengths,
                         const std::string& second_task = "another task") {
  LeRobotWriter writer(root, other_layout());
  std::int64_t index = 0;
  for (std::size_t episode = 0; episode < lengths.size(); ++episode) {
    for (std::int64_t i = 0; i < lengths[episode]; ++i)
      writer.add(other_frame(index++), episode % 2 == 0 ? "task 0" : second_task);
    writer.end_episode();
  }
  writer.finish();
}

class MixedSourceTest : public ::testing::Test {
 protected:
  LeRobotSourceOptions plain() const { return force_source_options(folder.file("set")); }
  DatasetMapping set() const {
    DatasetMapping mapping;
    mapping.path = folder.file("set");
    mapping.cameras = {"top=observation.images.top", "hand=observation.images.wrist"};
    return mapping;
  }
  DatasetMapping other() const {
    DatasetMapping mapping;
    mapping.path = folder.file("other");
    mapping.cameras = {"hand=images.a_gripper", "top=images.z_overhead"};
    mapping.state = "joints", mapping.state_dimensions = {2, 1};
    mapping.sensor = "touch", mapping.sensor_dimensions = {1};
    mapping.action = "command", mapping.action_dimensions = {2, 0};
    return mapping;
  }
  LeRobotSourceOptions mixed() const {
    LeRobotSourceOptions result = plain();
    result.paths.clear();
    result.mix = {set(), other()};
    return result;
  }
  std::string error_of(const LeRobotSourceOptions& options, ExitCode code = ExitCode::kUsage) const {
    try {
      LeRobotSource source(options, processor);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), code);
      return error.what();
    }
    return "no error";
  }
  TestFolder folder;
  ModelFolder model;
  std::shared_ptr<const VlmProcessor> processor = std::make_shared<VlmProcessor>(model.path());
};

void expect_alike(const Sample& a, const Sample& b) {
  EXPECT_EQ(a.instruction, b.instruction);
  EXPECT_EQ(a.vlm.input_ids, b.vlm.input_ids);
  EXPECT_EQ(a.vlm.image_grid_thw, b.vlm.image_grid_thw);
  EXPECT_EQ(a.vlm.pixel_values, b.vlm.pixel_values);
  EXPECT_EQ(a.state, b.state);
  EXPECT_EQ(a.sensor, b.sensor);
  EXPECT_EQ(a.actions, b.actions);
  EXPECT_EQ(a.action_is_pad, b.action_is_pad);
}

// Mapping
// ------------------------------------------------------------------------------------------------------------------

TEST_F(MixedSourceTest, MakesDatasetsOfDifferentLayoutsAlike) {
  write_counting_dataset(folder.file("set"), {5, 4});
  write_other_dataset(folder.file("other"), {5, 4}, "task 1");
  const LeRobotSource alone(plain(), processor), both(mixed(), processor);
  ASSERT_EQ(both.size(), 2 * alone.size());
  EXPECT_EQ(both.dims().state, 2);
  EXPECT_EQ(both.dims().action, 2);
  EXPECT_EQ(both.dims().sensor_channels, 1);
  for (std::int64_t i = 0; i < alone.size(); ++i) {
    const Sample due = alone.load(i);
    expect_alike(both.load(i), due);
    const Sample mapped = both.load(alone.size() + i);
    expect_alike(mapped, due);
    EXPECT_EQ(mapped.index, alone.size() + i);
    EXPECT_EQ(mapped.task_index, due.task_index);
    EXPECT_EQ(both.shape_of(alone.size() + i), alone.shape_of(i));
    expect_alike(both.load_without_pixels(alone.size() + i, 28), alone.load_without_pixels(i, 28));
  }
}

TEST_F(MixedSourceTest, NumbersTasksSplitsAndDatasets) {
  write_counting_dataset(folder.file("set"), {2, 3});
  write_other_dataset(folder.file("other"), {1, 2, 2, 1});
  auto options = mixed();
  options.eval_fraction = 0.5;
  options.mix[1].name = "kitchen";
  const LeRobotSource source(options, processor);
  EXPECT_THAT(source.training(), ElementsAre(0, 1, 5, 6, 7));
  EXPECT_THAT(source.held_out(), ElementsAre(2, 3, 4, 8, 9, 10));
  EXPECT_THAT(source.tasks(), ElementsAre("task 0", "task 1", "another task"));
  EXPECT_EQ(source.task_of(5), 0) << "the same text is the same task";
  EXPECT_EQ(source.task_of(6), 2);
  EXPECT_EQ(source.load(6).task_index, 2);
  EXPECT_THAT(source.datasets(), ElementsAre("set", "kitchen"));
  EXPECT_EQ(source.dataset_of(4), 0);
  EXPECT_EQ(source.dataset_of(5), 1);
  EXPECT_EQ(source.dataset_of(10), 1);
}

TEST_F(MixedSourceTest, LeavesOutPicturesThatADatasetDoesNotHave) {
  write_counting_dataset(folder.file("set"), {3});
  write_other_dataset(folder.file("other"), {3});
  auto options = mixed();
  options.mix[1].cameras = {"top=images.z_overhead"};
  EXPECT_THAT(error_of(options), AllOf(HasSubstr("data.mix[1]"), HasSubstr(folder.file("other")), HasSubstr("hand")));
  options.mix[1].missing_cameras = {"hand"};
  const LeRobotSource source(options, processor);
  EXPECT_EQ(source.load(0).vlm.image_grid_thw.size(), 2u);
  const Sample less = source.load(3);
  EXPECT_EQ(less.vlm.image_grid_thw.size(), 1u);
  EXPECT_EQ(less.shape(), source.shape_of(3));
}

TEST_F(MixedSourceTest, NormalisesEachByItsOwnUnlessToldOtherwise) {
  write_counting_dataset(folder.file("set"), {2, 2});
  write_other_dataset(folder.file("other"), {6, 6});
  auto options = mixed();
  const LeRobotSource each(options, processor);
  std::vector<float> first{0, 0}, second{0, 0};
  each.state_normaliser(0)->normalise(first);
  each.state_normaliser(1)->normalise(second);
  EXPECT_NE(first, second);
  options.joint_statistics = true;
  const LeRobotSource joint(options, processor);
  EXPECT_NE(joint.hash(), each.hash());
  // State 0 is 0 .. 3 and 0 .. 11: mean 72 / 16.
  double squares = 0;
  for (const int count : {4, 12}) {
    for (int i = 0; i < count; ++i) squares += (i - 4.5) * (i - 4.5);
  }
  for (const std::int64_t dataset : {0, 1}) {
    std::vector<float> values{10, 0};
    joint.state_normaliser(dataset)->normalise(values);
    EXPECT_NEAR(values[0], 5.5 / std::sqrt(squares / 16), 1e-5);
  }
  options.normalisation = Normalisation::kQuantiles;
  EXPECT_THAT(error_of(options), AllOf(HasSubstr("data.statistics"), HasSubstr("quantiles")));
}

TEST_F(MixedSourceTest, KnowsWeightsEpisodesAndColumns) {
  write_counting_dataset(folder.file("set"), {2, 3});
  write_other_dataset(folder.file("other"), {1, 2});
  auto options = mixed();
  EXPECT_TRUE(LeRobotSource(options, processor).dataset_weights().empty());
  options.mix[0].weight = 1, options.mix[1].weight = 2.5;
  const LeRobotSource source(options, processor);
  EXPECT_THAT(source.dataset_weights(), ElementsAre(1, 2.5));
  EXPECT_EQ(source.hash(), LeRobotSource(mixed(), processor).hash()) << "no sample is another one";
  const std::vector<std::int64_t> episodes = {0, 0, 1, 1, 1, 0, 1, 1};
  const SampleColumn tasks = source.column("task_index");
  ASSERT_EQ(source.size(), std::ssize(episodes));
  ASSERT_EQ(tasks.of_sample.size(), episodes.size());
  for (std::size_t i = 0; i < episodes.size(); ++i) {
    EXPECT_EQ(source.episode_index_of(static_cast<std::int64_t>(i)), episodes[i]);
    EXPECT_EQ(tasks.texts[tasks.of_sample[i]], std::to_string(episodes[i])) << "each has a task of its own";
  }
  EXPECT_THAT(plimsoll::error_of([&] { source.column("joints"); }),
              AllOf(HasSubstr(folder.file("set")), HasSubstr("column joints: is missing")));
}

TEST_F(MixedSourceTest, TakesWeightsOfPaths) {
  write_counting_dataset(folder.file("a"), {2, 2});
  write_counting_dataset(folder.file("b"), {2, 2});
  auto options = plain();
  options.paths = {folder.file("a"), folder.file("b")};
  options.weights = {1, 3};
  EXPECT_THAT(LeRobotSource(options, processor).dataset_weights(), ElementsAre(1, 3));
  options.weights = {1};
  EXPECT_THAT(error_of(options), AllOf(HasSubstr("data.weights has 1 numbers"), HasSubstr(folder.file("b"))));
  options.weights = {1, 0};
  EXPECT_THAT(error_of(options),
              AllOf(HasSubstr("data.weights[1]"), HasSubstr(folder.file("b")), HasSubstr("above 0")));
  write_counting_dataset(folder.file("set"), {2, 2});
  write_other_dataset(folder.file("other"), {2, 2});
  options = mixed();
  options.weights = {1, 3};
  EXPECT_THAT(error_of(options), AllOf(HasSubstr("data.weights is [1, 3]"), HasSubstr("data.mix")));
}

// Hashes
// ------------------------------------------------------------------------------------------------------------------

// Checkpoints and cached features of runs before there were mappings name these.
TEST_F(MixedSourceTest, OneDatasetKeepsTheHashesThatItHad) {
  write_counting_dataset(folder.file("set"), {3, 2});
  auto options = plain();
  options.resolution = 56;
  const LeRobotSource source(options, processor);
  LeRobotOptions wanted;
  wanted.features = {
      {"observation.images.top", "observation.images.wrist", "action", "observation.state", "observation.force"}};
  const LeRobotDataset dataset(folder.file("set"), wanted);
  std::vector<std::uint64_t> words{dataset.hash(), 4, 3, 56, 0, 5};
  for (std::int64_t i = 0; i < source.size(); ++i)
    words.push_back(static_cast<std::uint64_t>(source.shape_of(i).tokens * 1000003 + source.shape_of(i).patches));
  EXPECT_EQ(source.hash(), xxh3_64(std::as_bytes(std::span(words))));
  const std::vector<std::uint64_t> pictures{dataset.pictures_hash(), 0, 1};
  EXPECT_EQ(source.pictures_hash(), xxh3_64(std::as_bytes(std::span(pictures))));
}

TEST_F(MixedSourceTest, HashesWhatAMappingChanges) {
  write_counting_dataset(folder.file("set"), {2, 2});
  write_other_dataset(folder.file("other"), {2, 2});
  const LeRobotSource source(mixed(), processor);
  const auto differs = [&](const auto& change) {
    auto options = mixed();
    change(options);
    return LeRobotSource(options, processor).hash() != source.hash();
  };
  EXPECT_FALSE(differs([](auto&) {}));
  EXPECT_FALSE(differs([](auto& o) { o.mix[1].name = "kitchen"; }));
  EXPECT_TRUE(differs([](auto& o) { o.mix[1].state_dimensions = {1, 2}; }));
  EXPECT_TRUE(differs([](auto& o) { std::swap(o.mix[1].state, o.mix[1].action); }));
  EXPECT_TRUE(differs([](auto& o) { std::swap(o.mix[0], o.mix[1]); }));
  EXPECT_TRUE(differs([](auto& o) { o.cameras = {"hand", "top"}; }));
  EXPECT_TRUE(differs([](auto& o) { o.mix.pop_back(); }));
  EXPECT_TRUE(differs([](auto& o) { o.action_space = ActionKind::kDelta; }));
  auto turned = mixed();
  turned.cameras = {"hand", "top"};
  EXPECT_NE(LeRobotSource(turned, processor).pictures_hash(), source.pictures_hash());
}

// Errors
// ------------------------------------------------------------------------------------------------------------------

TEST_F(MixedSourceTest, NamesTheDatasetThatDoesNotFit) {
  write_counting_dataset(folder.file("set"), {2, 2});
  write_other_dataset(folder.file("other"), {2, 2});
  const auto refused = [&](const auto& change, ExitCode code = ExitCode::kUsage) {
    auto options = mixed();
    change(options);
    return error_of(options, code);
  };
  const auto names_other = AllOf(HasSubstr("data.mix[1]"), HasSubstr(folder.file("other")));
  EXPECT_THAT(refused([](auto& o) {
                o.mix[1].state_dimensions = {2, 3};
              }),
              AllOf(names_other, HasSubstr("state_dimensions has 3"), HasSubstr("joints"), HasSubstr("0 to 2")));
  EXPECT_THAT(refused([](auto& o) { o.mix[1].action_dimensions = {-1}; }),
              AllOf(names_other, HasSubstr("action_dimensions has -1")));
  EXPECT_THAT(refused([](auto& o) { o.mix[1].action_dimensions.clear(); }, ExitCode::kData),
              AllOf(names_other, HasSubstr("action has 3 values, but 2"), HasSubstr(folder.file("set"))));
  EXPECT_THAT(refused([](auto& o) { o.mix[1].state = "joint"; }, ExitCode::kData),
              AllOf(HasSubstr(folder.file("other")), HasSubstr("\"joint\""), HasSubstr("joints")));
  EXPECT_THAT(refused(
                  [](auto& o) {
                    o.mix[1].cameras = {"top=joints", "hand=images.a_gripper"};
                  },
                  ExitCode::kData),
              AllOf(HasSubstr(folder.file("other")), HasSubstr("joints")));
  EXPECT_THAT(refused([&](auto& o) { o.paths = {folder.file("set")}; }),
              AllOf(HasSubstr("data.path"), HasSubstr("data.mix"), HasSubstr(folder.file("set"))));
  write_other_dataset(folder.file("short"), {2});
  EXPECT_THAT(refused(
                  [&](auto& o) {
                    o.mix[1].path = folder.file("short");
                    o.eval_fraction = 0.1;
                  },
                  ExitCode::kData),
              AllOf(HasSubstr("data.mix[1]"), HasSubstr(folder.file("short")), HasSubstr("data.eval_fraction")));
}

// Actions relative to the state
// ------------------------------------------------------------------------------------------------------------------

TEST_F(MixedSourceTest, MakesActionsRelativeToTheState) {
  write_counting_dataset(folder.file("set"), {5, 4});
  auto options = plain();
  options.action_space = ActionKind::kDelta;
  options.delta_dimensions = {1};
  for (const Normalisation kind : {Normalisation::kMeanStd, Normalisation::kMinMax, Normalisation::kQuantiles}) {
    options.normalisation = kind;
    const LeRobotSource source(options, processor);
    const LeRobotDataset dataset(folder.file("set"));
    const auto action = dataset.numbers("action"), state = dataset.numbers("observation.state");
    for (std::int64_t i = 0; i < source.size(); ++i) {
      std::vector<float> actions = source.load(i).actions;
      source.action_normaliser().denormalise(actions);
      for (std::int64_t k = 0; k < 3; ++k) {
        const auto row = dataset.values(action, std::min(dataset.episode_of(i).end - 1, i + k));
        EXPECT_NEAR(actions[static_cast<std::size_t>(2 * k)], row[0], 1e-3) << "absolute";
        EXPECT_NEAR(actions[static_cast<std::size_t>(2 * k + 1)], row[1] - dataset.values(state, i)[1], 1e-3);
      }
    }
  }
}

TEST_F(MixedSourceTest, NormalisesDifferencesByTheirOwnStatistics) {
  write_counting_dataset(folder.file("set"), {5, 4});
  auto options = plain();
  options.action_space = ActionKind::kDelta;
  const LeRobotSource source(options, processor);
  double sum = 0, squares = 0, count = 0;
  for (std::int64_t i = 0; i < source.size(); ++i) {
    const Sample sample = source.load(i);
    for (std::size_t k = 0; k < 3; ++k) {
      if (sample.action_is_pad[k]) continue;
      sum += sample.actions[2 * k], squares += sample.actions[2 * k] * sample.actions[2 * k], count += 1;
    }
  }
  EXPECT_EQ(count, 12 + 9);
  EXPECT_NEAR(sum / count, 0, 1e-5);
  EXPECT_NEAR(squares / count, 1, 1e-5);
}

TEST_F(MixedSourceTest, ExecutesWhatWasRecorded) {
  write_counting_dataset(folder.file("set"), {5, 4});
  write_other_dataset(folder.file("other"), {5, 4});
  auto options = mixed();
  options.action_space = ActionKind::kDelta;
  const LeRobotSource source(options, processor);
  EXPECT_THAT(source.action_space(1).relative_dimensions(), ElementsAre(0, 1));
  for (std::int64_t i = 0; i < source.size(); ++i) {
    const Sample sample = source.load(i);
    const std::int64_t dataset = source.dataset_of(i);
    std::vector<float> state = sample.state;
    source.state_normaliser(dataset)->denormalise(state);
    const auto actions =
        executable_actions(sample.actions, source.action_normaliser(dataset), source.action_space(dataset), state);
    const auto due = state_of(i % 9);
    EXPECT_NEAR(actions[0], -due[0], 1e-3) << i;
    EXPECT_NEAR(actions[1], -due[1], 1e-3) << i;
  }
}

TEST_F(MixedSourceTest, NeedsTheSameRelativeDimensionsEverywhere) {
  write_counting_dataset(folder.file("set"), {2, 2});
  write_other_dataset(folder.file("other"), {2, 2});
  auto options = mixed();
  options.action_space = ActionKind::kDelta;
  options.mix[1].action_dimensions = {2, 1};  // "mode" has no state
  EXPECT_THAT(error_of(options), AllOf(HasSubstr("data.mix[1]"), HasSubstr("data.delta_dimensions")));
  options.delta_dimensions = {0};
  EXPECT_EQ(error_of(options), "no error");
  options = plain();
  options.action_space = ActionKind::kDelta;
  options.state = "";
  EXPECT_THAT(error_of(options), AllOf(HasSubstr("data.action_space"), HasSubstr("data.state")));
}

TEST_F(MixedSourceTest, NeedsNoStoredStatisticsOfDifferences) {
  write_counting_dataset(folder.file("set"), {2, 2});
  auto statistics = folder.read_json("set/meta/stats.json");
  statistics.erase("action");
  folder.write("set/meta/stats.json", statistics.dump());
  auto options = plain();
  EXPECT_THAT(error_of(options, ExitCode::kData), HasSubstr("stats.json"));
  options.action_space = ActionKind::kDelta;
  EXPECT_EQ(error_of(options), "no error");
}

}  // namespace
}  // namespace plimsoll::data
