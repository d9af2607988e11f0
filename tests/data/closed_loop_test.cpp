#include "data/closed_loop.h"

#include <gmock/gmock.h>

#include <filesystem>
#include <map>
#include <set>
#include <tuple>

#include "core/error.h"
#include "data/episode_film.h"
#include "data/lerobot_dataset.h"
#include "data/lerobot_source.h"
#include "data/video.h"
#include "data/video_writer.h"
#include "tests/data/lerobot_files.h"
#include "tests/data/model_files.h"

namespace plimsoll::data {
namespace {

ClosedLoopOptions few_episodes(std::int64_t episodes) {
  ClosedLoopOptions options;
  options.table.difficulty = Difficulty::kAnywhere;
  options.table.heavy_fraction = 0.2;
  options.episodes = episodes;
  return options;
}

/// A policy that errs: every third step the expert's way, turned by an angle that depends on episode and step.
std::vector<std::vector<float>> errant_chunks(std::span<const PolicyQuery> queries) {
  std::vector<std::vector<float>> chunks;
  for (const PolicyQuery& query : queries) {
    const auto wanted = query.table->expert_action();
    const auto x = static_cast<float>(wanted[0]), y = static_cast<float>(wanted[1]);
    const auto closing = static_cast<float>(wanted[2]);
    const auto sideways = static_cast<float>(query.episode % 5 + query.step % 2) * 0.25F;
    std::vector<float> chunk{x - sideways * y, y + sideways * x, closing};
    for (int row = 1; row < 4; ++row) chunk.insert(chunk.end(), {0.0F, 0.0F, closing});
    chunks.push_back(std::move(chunk));
  }
  return chunks;
}

auto facts(const std::vector<EpisodeOutcome>& outcomes) {
  std::vector<std::tuple<std::int64_t, std::string, bool, bool, std::int64_t>> all;
  for (const auto& o : outcomes) all.emplace_back(o.scene, o.task, o.success, o.reached, o.steps);
  return all;
}

TEST(ClosedLoop, TheExpertSucceedsAtEveryDifficulty) {
  for (const auto difficulty : {Difficulty::kFixed, Difficulty::kPermuted, Difficulty::kAnywhere}) {
    ClosedLoopOptions options = few_episodes(100);
    options.table.difficulty = difficulty;
    const auto outcomes = run_closed_loop(options, expert_chunks);
    ASSERT_EQ(outcomes.size(), 100U);
    std::set<std::string> tasks;
    for (const auto& outcome : outcomes) {
      EXPECT_TRUE(outcome.success && outcome.reached) << outcome.scene;
      EXPECT_GE(outcome.scene, kFirstUnseenScene);
      EXPECT_GE(outcome.steps, 3);
      tasks.insert(outcome.task);
    }
    EXPECT_EQ(tasks.size(), 4U) << "heavy scenes count under their colour";
  }
}

TEST(ClosedLoop, OutcomesDoNotDependOnHowManyRunAtOnce) {
  ClosedLoopOptions options = few_episodes(23);
  options.replan = 3;
  options.at_once = 1;
  const auto alone = facts(run_closed_loop(options, errant_chunks));
  std::size_t successes = 0;
  for (const auto& fact : alone) successes += std::get<2>(fact) ? 1 : 0;
  EXPECT_GT(successes, 2U);
  EXPECT_LT(successes, 23U);
  for (const std::int64_t at_once : {2, 7, 100}) {
    options.at_once = at_once;
    EXPECT_EQ(facts(run_closed_loop(options, errant_chunks)), alone) << at_once;
  }
}

TEST(ClosedLoop, AsksAtTheRightStepsWithTheHistory) {
  ClosedLoopOptions options = few_episodes(5);
  options.max_steps = 10;
  options.replan = 3;
  options.at_once = 2;
  std::map<std::int64_t, std::vector<std::int64_t>> asked;
  const auto stand_still = [&](std::span<const PolicyQuery> queries) {
    EXPECT_LE(queries.size(), 2U);
    for (const PolicyQuery& query : queries) {
      asked[query.episode].push_back(query.step);
      EXPECT_EQ(std::ssize(query.frames), query.step + 1);
      EXPECT_EQ(query.frames.back().images.size(), 2U);
      EXPECT_TRUE(query.frames.size() == 1 || query.frames.front().images.empty());
      EXPECT_EQ(query.frames.back().numbers.count("action"), 0U);
    }
    return std::vector<std::vector<float>>(queries.size(), std::vector<float>(12, 0.0F));
  };
  for (const auto& outcome : run_closed_loop(options, stand_still)) {
    EXPECT_FALSE(outcome.success);
    EXPECT_EQ(outcome.steps, 10);
  }
  ASSERT_EQ(asked.size(), 5U);
  for (const auto& [episode, steps] : asked) EXPECT_THAT(steps, ::testing::ElementsAre(0, 3, 6, 9)) << episode;
}

TEST(ClosedLoop, TheBlindMeetTheSameAndAreShownNothing) {
  ClosedLoopOptions options = few_episodes(9);
  const auto seeing = facts(run_closed_loop(options, errant_chunks));
  options.blind = true;
  options.filmed = 1;
  std::size_t frames = 0;
  const auto outcomes = run_closed_loop(options, [&](std::span<const PolicyQuery> queries) {
    for (const PolicyQuery& query : queries) frames += query.frames.size();
    return errant_chunks(queries);
  });
  EXPECT_EQ(facts(outcomes), seeing);
  EXPECT_EQ(frames, 0U);
  EXPECT_EQ(std::ssize(outcomes[0].film), outcomes[0].steps + 1) << "it is filmed all the same";
}

TEST(ClosedLoop, FilmsTheFirstEpisodes) {
  ClosedLoopOptions options = few_episodes(3);
  options.filmed = 2;
  const auto outcomes = run_closed_loop(options, expert_chunks);
  EXPECT_EQ(std::ssize(outcomes[0].film), outcomes[0].steps + 1);
  EXPECT_EQ(std::ssize(outcomes[1].film), outcomes[1].steps + 1);
  EXPECT_TRUE(outcomes[2].film.empty());
  const Image strip = film_strip(outcomes);
  EXPECT_EQ(std::ssize(strip.pixels), strip.height * strip.width * 3);
  const Image read_back = decode_image(encode_png(strip), "strip");
  EXPECT_EQ(read_back.pixels, strip.pixels);
  const TestFolder folder;
  write_film(folder.file("film.mp4"), outcomes, 10);
  EXPECT_GT(std::filesystem::file_size(folder.file("film.mp4")), 1000U);
  EXPECT_THROW(write_film(folder.file("none/film.mp4"), outcomes, 10), Error);
}

TEST(ClosedLoop, RefusesBadOptionsAndPolicies) {
  const auto broken = [](auto change) {
    ClosedLoopOptions options = few_episodes(2);
    change(options);
    return options;
  };
  EXPECT_THROW(run_closed_loop(broken([](auto& o) { o.episodes = 0; }), expert_chunks), Error);
  EXPECT_THROW(run_closed_loop(broken([](auto& o) { o.max_steps = 0; }), expert_chunks), Error);
  EXPECT_THROW(run_closed_loop(broken([](auto& o) { o.at_once = 0; }), expert_chunks), Error);
  EXPECT_THROW(run_closed_loop(broken([](auto& o) { o.replan = 0; }), expert_chunks), Error);
  const auto silent = [](std::span<const PolicyQuery>) { return std::vector<std::vector<float>>(); };
  EXPECT_THROW(run_closed_loop(few_episodes(2), silent), Error);
}

class DemoSample : public ::testing::Test {
 protected:
  void SetUp() override {
    demo.episodes = 6;
    demo.frames_per_episode = 5;
    demo.table.heavy_fraction = 0.5;
    demo.table.seed = 11;
    demo.table.difficulty = Difficulty::kPermuted;
    write_demo_dataset(folder.file("set"), demo);
  }
  LeRobotSourceOptions options() const { return force_source_options(folder.file("set")); }
  DemoDataOptions demo;
  TestFolder folder;
  ModelFolder model;
  std::shared_ptr<const VlmProcessor> processor = std::make_shared<VlmProcessor>(model.path());
};

TEST_F(DemoSample, IsTheOneThatIsTrainedOn) {
  const LeRobotSource source(options(), processor);
  const LeRobotDataset recorded(folder.file("set"));
  Tabletop table(demo.table);
  for (std::int64_t scene = 0; scene < demo.episodes; ++scene) {
    table.reset(scene);
    std::vector<Frame> frames;
    for (std::int64_t step = 0; step < demo.frames_per_episode; ++step) {
      const std::int64_t index = scene * demo.frames_per_episode + step;
      frames.push_back(demo_frame(table.observe()));
      // The dataset's own pictures, since a video loses something.
      for (auto& [camera, image] : frames.back().images) image = recorded.image(recorded.camera(camera), index);
      const Sample met = source.sample_of(frames, table.instruction()), trained = source.load(index);
      EXPECT_EQ(met.vlm.input_ids, trained.vlm.input_ids);
      EXPECT_EQ(met.vlm.position_ids, trained.vlm.position_ids);
      EXPECT_EQ(met.vlm.image_grid_thw, trained.vlm.image_grid_thw);
      EXPECT_EQ(met.vlm.pixel_values, trained.vlm.pixel_values);
      EXPECT_EQ(met.state, trained.state);
      EXPECT_EQ(met.sensor, trained.sensor);
      EXPECT_EQ(met.instruction, trained.instruction);
      EXPECT_EQ(met.actions.size(), trained.actions.size());
      EXPECT_THAT(met.action_is_pad, ::testing::Each(1));
      frames.back().images.clear();
      table.step(table.expert_action());
    }
  }
}

TEST_F(DemoSample, RefusesARobotThatLacksSomething) {
  const LeRobotSource source(options(), processor);
  Tabletop table(demo.table);
  table.reset(0);
  const auto error_without = [&](auto change) {
    std::vector<Frame> frames{demo_frame(table.observe())};
    change(frames.front());
    try {
      source.sample_of(frames, "go");
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string("no error");
  };
  using ::testing::HasSubstr;
  EXPECT_EQ(error_without([](Frame&) {}), "no error");
  EXPECT_THAT(error_without([](Frame& f) { f.images.erase("observation.images.top"); }), HasSubstr("images.top"));
  EXPECT_THAT(error_without([](Frame& f) { f.numbers.erase("observation.state"); }), HasSubstr("observation.state"));
  EXPECT_THAT(error_without([](Frame& f) { f.numbers["observation.force"].pop_back(); }), HasSubstr("of which"));
  EXPECT_THROW(source.sample_of({}, "go"), Error);
}

TEST_F(DemoSample, TheTableIsKnownFromTheDataset) {
  const DemoDataset read = read_demo_dataset(folder.file("set"));
  EXPECT_EQ(read.table.seed, 11U);
  EXPECT_EQ(read.table.difficulty, Difficulty::kPermuted);
  EXPECT_EQ(read.table.heavy_fraction, 0.5);
  EXPECT_EQ(read.table.action_noise, demo.table.action_noise);
  EXPECT_EQ(read.fps, 10);
  ASSERT_EQ(read.mean_action.size(), 3U);
  EXPECT_GT(read.mean_action[2], 0) << "some episodes end closed";
  // One of before the record was kept.
  std::filesystem::remove(folder.file("set/meta/tabletop.json"));
  EXPECT_EQ(read_demo_dataset(folder.file("set")).table.difficulty, Difficulty::kFixed);
  EXPECT_EQ(read_demo_dataset(folder.file("set")).table.top_side, 84);
}

TEST_F(DemoSample, ADatasetOfSomethingElseIsNamed) {
  const auto error_of = [&] {
    try {
      read_demo_dataset(folder.file("set"));
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string("no error");
  };
  using ::testing::AllOf;
  using ::testing::HasSubstr;
  folder.write("set/meta/tabletop.json", R"({"seed": 1})");
  EXPECT_THAT(error_of(), AllOf(HasSubstr("tabletop.json"), HasSubstr("top_side")));
  std::filesystem::remove(folder.file("set/meta/tabletop.json"));
  auto info = folder.read_json("set/meta/info.json");
  info["features"]["action"]["shape"] = {7};
  folder.write("set/meta/info.json", info.dump());
  EXPECT_THAT(error_of(), AllOf(HasSubstr("info.json"), HasSubstr("\"action\""), HasSubstr("7")));
}

}  // namespace
}  // namespace plimsoll::data
