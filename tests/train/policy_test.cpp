// A policy outside of any run: what it answers depends on what it sees, the seed, the episode and the step.
#include "train/policy.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "core/error.h"
#include "data/hub_files.h"
#include "memory/cpu_allocator.h"
#include "tests/train/tiny_run.h"
#include "train/evaluate.h"
#include "train/source.h"

namespace plimsoll::train {
namespace {

constexpr std::int64_t kChunk = 4;

struct DemoRun {
  std::string model, data;
};

const DemoRun& demo_run() {
  static const DemoRun made = [] {
    memory::CpuAllocator::install();
    DemoRun run{testing::TempDir() + "plimsoll-policy-test", testing::TempDir() + "plimsoll-policy-test-data"};
    write_tiny_model(run.model);
    data::write_tokenizer(run.model, model::init_config("tiny").text.vocabulary);
    data::write_image_processor(run.model, {});
    std::filesystem::remove_all(run.data);
    data::DemoDataOptions options;
    options.episodes = 4;
    options.frames_per_episode = 6;
    data::write_demo_dataset(run.data, options);
    return run;
  }();
  return made;
}

Config demo_config() {
  Config config = tiny_config(demo_run().model);
  config.data.synthetic_samples = 0;
  config.data.path = {demo_run().data};
  config.sensor.feature = "observation.force";
  config.expert.chunk = kChunk;
  return config;
}

/// Some episodes at their beginning, and what is asked in them.
struct Asked {
  explicit Asked(std::int64_t episodes) {
    for (std::int64_t e = 0; e < episodes; ++e) {
      tables.emplace_back(data::TabletopOptions{});
      tables.back().reset(data::kFirstUnseenScene + e);
      frames.push_back({data::demo_frame(tables.back().observe())});
    }
    for (std::int64_t e = 0; e < episodes; ++e) {
      const auto i = static_cast<std::size_t>(e);
      queries.push_back({e, 0, frames[i], &tables[i]});
    }
  }
  std::vector<data::Tabletop> tables;
  std::vector<std::vector<data::Frame>> frames;
  std::vector<data::PolicyQuery> queries;
};

TEST(Policy, AnswersDoNotDependOnWhatElseIsAsked) {
  const Policy policy(demo_config(), {});
  const Asked asked(3);
  const auto together = policy.chunks(asked.queries);
  ASSERT_EQ(together.size(), 3U);
  for (std::size_t i = 0; i < 3; ++i) {
    const auto alone = policy.chunks(std::span(asked.queries).subspan(i, 1));
    ASSERT_EQ(alone.at(0).size(), static_cast<std::size_t>(kChunk) * 3);
    EXPECT_LT(relative_l2(alone[0], together[i]), 1e-5);
  }
}

TEST(Policy, NoiseIsKeyedBySeedEpisodeAndStep) {
  const Policy policy(demo_config(), {});
  const Policy other(demo_config(), {1, 0});
  const Asked asked(1);
  const auto ask = [&](const Policy& whom, std::int64_t episode, std::int64_t step) {
    data::PolicyQuery query = asked.queries[0];
    query.episode = episode;
    query.step = step;
    return whom.chunks(std::span(&query, 1)).at(0);
  };
  const auto first = ask(policy, 0, 0);
  EXPECT_EQ(ask(policy, 0, 0), first);
  EXPECT_GT(relative_l2(ask(policy, 1, 0), first), 1e-2);
  EXPECT_GT(relative_l2(ask(policy, 0, 1), first), 1e-2);
  EXPECT_GT(relative_l2(ask(other, 0, 0), first), 1e-2);
}

TEST(Policy, ItsActionErrorIsTheOneThatTrainingMeasures) {
  Config config = demo_config();
  config.data.eval_fraction = 0.5;  // two episodes of six samples
  config.train.eval_samples = 8;
  ActionError measured;
  {
    const auto source = make_source(config);
    const auto communicator = ddp::make_solo();
    Session session(config, *communicator, *source);
    measured = measure_action_error(session, 8);
  }
  const ActionError error = Policy(config, {}).action_error(8);
  EXPECT_EQ(error.samples, 8);
  EXPECT_EQ(error.episodes, 2);
  EXPECT_NEAR(error.sampled, measured.sampled, 1e-4 * measured.sampled);
  EXPECT_NEAR(error.sampled_margin, measured.sampled_margin, 1e-3 * measured.sampled);
  EXPECT_DOUBLE_EQ(error.best_constant, measured.best_constant);
  EXPECT_DOUBLE_EQ(error.constant_margin, measured.constant_margin);
  EXPECT_GT(error.constant_margin, 0);
  EXPECT_DOUBLE_EQ(Policy(config, {1, 0}).action_error(8).sampled, error.sampled)
      << "by the run's seed, not the scenes'";
  EXPECT_EQ(Policy(config, {}).action_error(99).samples, 12);
  config.data.eval_fraction = 0;
  EXPECT_EQ(Policy(config, {}).action_error(8).samples, 0);
}

TEST(Policy, TakesTheWeightsOfACheckpoint) {
  Config config = demo_config();
  config.run.dir = demo_run().model + "-policy-run";
  std::filesystem::remove_all(config.run.dir);
  EXPECT_THROW(newest_checkpoint_of(config), Error);
  {
    const auto source = make_source(config);
    const auto communicator = ddp::make_solo();
    Session session(config, *communicator, *source);
    session.resume(false);
    train_steps(session, 2);
    session.state.step = 2;
    session.write_checkpoint();
  }
  const Asked asked(2);
  Policy policy(config, {});
  const auto before = policy.chunks(asked.queries);
  EXPECT_EQ(policy.read(newest_checkpoint_of(config)), 2);
  const auto after = policy.chunks(asked.queries);
  EXPECT_GT(relative_l2(after[0], before[0]), 1e-6);
  Policy again(config, {});
  again.read(newest_checkpoint_of(config));
  EXPECT_EQ(again.chunks(asked.queries), after);

  Config changed = config;
  changed.train.lr = 0.5;
  Policy of_others(changed, {});
  try {
    of_others.read(newest_checkpoint_of(config));
    ADD_FAILURE() << "weights of another configuration were taken";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kUsage);
  }
}

}  // namespace
}  // namespace plimsoll::train
