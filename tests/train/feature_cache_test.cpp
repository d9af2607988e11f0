// The feature cache in a run: a run with it equals the one without, and every fault of it is a slower run.
#include "train/feature_cache.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "cache/survey.h"
#include "memory/cpu_allocator.h"
#include "tests/error_of.h"
#include "tests/train/tiny_run.h"
#include "train/options.h"
#include "train/source.h"

namespace plimsoll::train {
namespace {

namespace fs = std::filesystem;

class PrefixRun : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    memory::CpuAllocator::install();
    write_tiny_model(model_dir());
  }
  static std::string model_dir() { return testing::TempDir() + "plimsoll-feature-cache-test"; }

  PrefixRun() {
    config_ = tiny_config(model_dir());
    config_.cache.dir = model_dir() + "-cache";
    config_.data.synthetic_samples = 13;  // twelve are trained on: an epoch is two steps
    fs::remove_all(config_.cache.dir);
  }
  ~PrefixRun() override { fs::remove_all(config_.cache.dir); }

  struct Seen {
    std::vector<double> losses;
    std::vector<float> values, gradients;  ///< trained parameters, and what the last step had of them
    std::int64_t cached = 0, live = 0;     ///< samples that came with features, and without
    std::int64_t on_device = 0;            ///< of those with, that had them in the device's memory
  };

  /// `steps` steps, as the loop makes them.
  Seen run(const Config& config, int steps) const {
    const auto source = make_source(config);
    const auto communicator = ddp::make_solo();
    Session session(config, *communicator, *source, device_);
    Seen seen;
    std::vector<std::shared_ptr<const Sample>> hold;
    for (int step = 1; step <= steps; ++step) {
      StepInput input;
      const auto samples = session.load_share(step, hold);
      for (const auto& sample : samples) {
        ++(sample.sample->vlm.has_features() ? seen.cached : seen.live);
        seen.on_device += sample.sample->vlm.device_features ? 1 : 0;
      }
      input.step = step;
      input.updates = step - 1;
      input.samples = samples;
      input.plan = session.plan;
      input.fill = session.fill(session.plan, step);
      seen.losses.push_back(session.step->run(input).loss);
      if (session.cache && step % 2 == 0) session.cache->publish();
      if (session.loader) session.loader->seek(step + 1);  // what it had loaded ahead came before publish()
    }
    const auto values = session.buffers->parameters(), gradients = session.buffers->gradients();
    seen.values.assign(values.begin(), values.end());
    seen.gradients.assign(gradients.begin(), gradients.end());
    return seen;
  }

  Seen run_with(const char* mode, int steps = 6) {
    Config config = config_;
    config.cache.mode = mode;
    return run(config, steps);
  }

  std::vector<fs::path> segments() const {
    std::vector<fs::path> files;
    for (const auto& entry : fs::recursive_directory_iterator(config_.cache.dir))
      if (entry.path().extension() == ".segment") files.push_back(entry.path());
    return files;
  }

  Config config_;
  Device device_ = cpu_device();
};

void expect_equal(const auto& a, const auto& b) {
  ASSERT_EQ(a.losses.size(), b.losses.size());
  for (std::size_t i = 0; i < a.losses.size(); ++i) EXPECT_NEAR(a.losses[i], b.losses[i], 1e-6 * b.losses[i]) << i;
  EXPECT_LT(relative_l2(a.values, b.values), 1e-6);
  EXPECT_LT(relative_l2(a.gradients, b.gradients), 1e-6);
}

TEST_F(PrefixRun, EqualsTheOneWithoutAndReadsWhatItWrote) {
  for (const char* dtype : {"fp32", "bf16"}) {
    config_.model.dtype = dtype;
    const Seen off = run_with("off");
    const Seen first = run_with("prefix");
    EXPECT_EQ(first.live, 12) << "the first epoch";
    EXPECT_EQ(first.cached, 24);
    expect_equal(first, off);
    const Seen second = run_with("prefix");
    EXPECT_EQ(second.live, 0) << "another run finds them all";
    EXPECT_EQ(second.cached, 36);
    expect_equal(second, off);
  }
  EXPECT_EQ(cache::survey(config_.cache.dir, true).size(), 2U) << "one of each dtype";
}

TEST_F(PrefixRun, WhatIsReadIsWhatWasWrittenToTheBit) {
  Config config = config_;
  config.cache.mode = "prefix";
  for (const char* dtype : {"fp32", "bf16"}) {
    config.model.dtype = dtype;
    const auto source = make_source(config);
    const auto communicator = ddp::make_solo();
    const Session session(config, *communicator, *source);
    const auto rules = session.model->packing_rules(0, false);
    const Sample a = source->load(3), b = source->load(5);
    const std::int64_t rows = a.vlm.feature_rows() + b.vlm.feature_rows();
    const at::Tensor features = at::randn({rows, rules.hidden}).to(rules.compute);
    const std::vector<model::StreamSample> samples{{&a, 0}, {&b, 1}};
    session.cache->shown(samples).image_features(features);
    session.cache->publish();
    EXPECT_EQ(session.cache->store().size(), 0) << "not committed";
    session.cache->commit();
    session.cache->publish();
    const auto* from = static_cast<const std::byte*>(features.const_data_ptr());
    for (const std::int64_t index : {3, 5}) {
      const Sample cached = session.cache->load(index);
      const auto& bytes = cached.vlm.image_features;
      ASSERT_EQ(bytes.size(),
                static_cast<std::size_t>(cached.vlm.feature_rows() * rules.hidden) * c10::elementSize(rules.compute));
      EXPECT_TRUE(std::equal(bytes.begin(), bytes.end(), from)) << dtype << ", sample " << index;
      from += bytes.size();
    }
  }
}

TEST_F(PrefixRun, FeaturesAreThoseOfAFreshPass) {
  Config config = config_;
  config.cache.mode = "prefix";
  for (const char* dtype : {"fp32", "bf16"}) {
    config.model.dtype = dtype;
    run(config, 2);
    const auto source = make_source(config);
    const auto communicator = ddp::make_solo();
    const Session session(config, *communicator, *source);
    const auto rules = session.model->packing_rules(0, false);
    EXPECT_EQ(session.cache->store().size(), 12);
    int compared = 0;
    for (const std::int64_t index : source->training()) {
      const Sample live = source->load(index), cached = session.cache->load(index);
      EXPECT_TRUE(cached.vlm.pixel_values.empty());
      EXPECT_EQ(cached.shape(), (SampleShape{live.shape().tokens, 0, live.shape().patches / 4}));
      const model::StreamSample one{&live, 0};
      const at::NoGradGuard no_grad;
      const auto compare = [&](const at::Tensor& fresh) {
        at::Tensor kept = at::empty_like(fresh);
        ASSERT_EQ(static_cast<std::size_t>(kept.nbytes()), cached.vlm.image_features.size());
        std::memcpy(kept.data_ptr(), cached.vlm.image_features.data(), kept.nbytes());
        const double distance = (kept.to(at::kDouble) - fresh.to(at::kDouble)).norm().item<double>();
        EXPECT_LE(distance, (rules.compute == at::kFloat ? 1e-6 : 2e-3) * fresh.to(at::kDouble).norm().item<double>());
        ++compared;
      };
      session.model->sample_losses(model::pack({&one, 1}, rules, at::kCPU), {}, {compare, nullptr, nullptr});
    }
    EXPECT_EQ(compared, 12);
  }
}

TEST_F(PrefixRun, TakesWhatIsThereAndMakesTheRest) {
  run_with("prefix", 1);  // half an epoch
  const Seen off = run_with("off"), half = run_with("prefix");
  EXPECT_EQ(half.live + half.cached, 36);
  EXPECT_EQ(half.live, 6) << "the other half, once";
  expect_equal(half, off);
}

TEST_F(PrefixRun, MemoryIsPredictedToTheByteForCachedAndMixedMicroBatches) {
  Config config = config_;
  config.cache.mode = "prefix";
  run(config, 1);
  const auto source = make_source(config);
  const auto communicator = ddp::make_solo();
  Session session(config, *communicator, *source);
  const auto rules = session.model->packing_rules(3, false);
  std::vector<Sample> loaded;
  for (const std::int64_t index : source->training()) loaded.push_back(session.cache->load(index));
  const auto cached = [](const Sample& sample) { return !sample.vlm.image_features.empty(); };
  std::stable_partition(loaded.begin(), loaded.end(), cached);
  ASSERT_EQ(std::count_if(loaded.begin(), loaded.end(), cached), 6);
  for (const std::size_t begin : {0, 4, 8}) {  // cached, mixed, live
    std::vector<model::StreamSample> samples;
    for (std::size_t i = begin; i < begin + 4; ++i) samples.push_back({&loaded[i], i});
    for (const memory::Plan& plan : {memory::Plan{0, 4}, memory::Plan{0, 4, 1, 0, 1}}) {
      const std::int64_t live = session.meter.live();
      session.meter.reset_peak();
      forward_backward(*session.model, model::pack(samples, rules, at::kCPU), recompute_of(plan), 6);
      const std::int64_t measured = session.meter.peak() - live;
      session.buffers->discard_staging();
      EXPECT_EQ(session.dry->activation_bytes(shape_of(samples), plan), measured) << "from " << begin;
    }
  }
}

TEST_F(PrefixRun, AfterAFailureOnlyWhatWasCommittedIsKept) {
  Config config = config_;
  config.cache.mode = "prefix";
  const auto source = make_source(config);
  const auto communicator = ddp::make_solo();
  Session session(config, *communicator, *source);
  std::vector<std::shared_ptr<const Sample>> hold;
  const auto samples = session.load_share(1, hold);
  StepInput input;
  input.samples = samples;
  input.plan = memory::Plan{0, 6};
  memory::CpuAllocator::install().fail_at(300);
  const StepResult result = session.step->run(input);
  EXPECT_EQ(result.guardian.retries, 1);
  session.cache->publish();
  EXPECT_EQ(session.cache->store().size(), 6);
  EXPECT_EQ(cache::survey(config_.cache.dir, true).front().records, 6) << "each sample once";
}

TEST_F(PrefixRun, DamagedRecordsAreMadeAgain) {
  const Seen off = run_with("off");
  run_with("prefix", 2);
  const auto files = segments();
  ASSERT_EQ(files.size(), 1U);
  std::fstream file(files[0], std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(static_cast<std::streamoff>(fs::file_size(files[0]) / 2));
  file.put('x').put('y').put('z');
  file.close();
  const Seen seen = run_with("prefix");
  EXPECT_EQ(seen.live, 1);
  expect_equal(seen, off);
}

TEST_F(PrefixRun, AnotherModelOrDatasetOrResolutionHasFeaturesOfItsOwn) {
  run_with("prefix", 2);
  const auto live_with = [&](const auto& change) {
    Config config = config_;
    config.cache.mode = "prefix";
    change(config);
    return run(config, 2).live;
  };
  EXPECT_EQ(live_with([](Config&) {}), 0);
  EXPECT_EQ(live_with([](Config& config) { config.lora.rank = 2; }), 0) << "the vision tower knows nothing of it";
  EXPECT_EQ(live_with([](Config& config) { config.run.seed = 77; }), 12) << "other made-up samples";
  EXPECT_EQ(live_with([](Config& config) { config.data.resolution = 56; }), 12);
  const std::string other = model_dir() + "-other";
  fs::remove_all(other);
  model::write_random_checkpoint(model::init_config("tiny"), {other, 99, false});
  EXPECT_EQ(live_with([&](Config& config) { config.model.path = other; }), 12);
  std::ofstream(other + "/preprocessor_config.json") << R"({"min_pixels": 3136})";
  EXPECT_EQ(live_with([&](Config& config) { config.model.path = other; }), 12) << "another processor";
  std::ofstream(other + "/chat_template.json") << R"({"chat_template": "{{ messages }}"})";
  EXPECT_EQ(live_with([&](Config& config) { config.model.path = other; }), 12) << "another template";
  EXPECT_EQ(live_with([&](Config& config) { config.model.path = other; }), 0);
}

TEST_F(PrefixRun, ADiskThatTakesNoMoreIsASlowerRun) {
  Config config = config_;
  config.cache.mode = "prefix";
  config.cache.disk_bytes = std::int64_t{40000};
  const Seen off = run_with("off"), seen = run(config, 6);
  EXPECT_GT(seen.cached, 0);
  EXPECT_GT(seen.live, 12) << "some are made in every epoch";
  expect_equal(seen, off);
}

TEST_F(PrefixRun, AFolderThatGoesAwayIsASlowerRun) {
  Config config = config_;
  config.cache.mode = "prefix";
  const auto source = make_source(config);
  const auto communicator = ddp::make_solo();
  Session session(config, *communicator, *source);
  train_steps(session, 1);
  fs::remove_all(config_.cache.dir);
  session.cache->publish();
  const Sample sample = session.cache->load(source->training().front());
  EXPECT_TRUE(sample.vlm.image_features.empty());
  EXPECT_FALSE(sample.vlm.pixel_values.empty());
}

TEST_F(PrefixRun, WhatIsInMemoryIsReadFromTheDiskOnce) {
  const Seen off = run_with("off", 8);
  Config config = config_;
  config.cache.mode = "prefix";
  config.cache.host_bytes = "1MiB";
  const auto source = make_source(config);
  const auto communicator = ddp::make_solo();
  const Seen seen = run(config, 8);
  expect_equal(seen, off);
  EXPECT_EQ(seen.cached, 36);
  Session session(config, *communicator, *source);
  for (std::uint64_t position = 0; position < 36; ++position)
    session.cache->load_drawn(position, session.stream.at(position), 0);
  const auto use = session.cache->use(8, 1.5);
  EXPECT_EQ(use.from_memory, 24);
  EXPECT_EQ(use.from_disk, 12);
  EXPECT_EQ(use.loaded, 36);
  EXPECT_GT(use.memory_bytes, 0);
  EXPECT_FALSE(use.saved_ms) << "no step was run in this session";
}

TEST_F(PrefixRun, WhatIsOnTheDeviceIsNotReadAgain) {
  for (const char* dtype : {"fp32", "bf16"}) {
    config_.model.dtype = dtype;
    const Seen off = run_with("off", 10);
    Config config = config_;
    config.cache.mode = "prefix";
    const auto source = make_source(config);
    const model::VlaModel model(vla_options(config, source->dims()), at::kMeta);
    const auto all = static_cast<std::int64_t>(feature_bytes(config, model, *source, model::Features::kImages).on_disk);
    std::int64_t before = 0;
    for (const std::int64_t part : {4, 2, 1}) {
      config.cache.device_bytes = all / part;
      config.cache.dir = config_.cache.dir + "/" + std::to_string(part);
      const Seen seen = run(config, 10);
      expect_equal(seen, off);
      EXPECT_EQ(seen.cached, 48);
      EXPECT_GT(seen.on_device, before) << "of " << all / part;
      before = seen.on_device;
    }
    EXPECT_EQ(before, 36) << "all of the third epoch and of those behind it";
  }
}

TEST_F(PrefixRun, TheDevicesPartIsInThePlanAndAMixtureIsPredictedToTheByte) {
  Config config = config_;
  config.cache.mode = "prefix";
  run(config, 2);
  config.cache.device_bytes = "32KiB";
  const auto source = make_source(config);
  const auto communicator = ddp::make_solo();
  memory::CpuAllocator::install().set_workspace(0);  // of the session before
  const std::int64_t before = memory::CpuAllocator::install().live();
  Session session(config, *communicator, *source);
  EXPECT_EQ(session.meter.live() - before,
            session.dry->static_bytes() + session.meter.workspace() + session.cache->device_bytes());
  EXPECT_NE(session.plan_text().find("cache "), std::string::npos) << session.plan_text();
  EXPECT_EQ(session.cache->device_bytes(), 32 << 10);
  std::vector<std::shared_ptr<const Sample>> hold;
  auto share = session.load_share(1, hold);
  const std::span<const model::StreamSample> first(share.data(), 2);
  const auto rules = session.model->packing_rules(3, false);
  session.cache->shown(first);
  session.cache->commit();
  std::vector<Sample> mixed;
  for (const auto& item : share) mixed.push_back(session.cache->load_drawn(item.position, item.sample->index, 0));
  std::vector<model::StreamSample> samples;
  for (const Sample& sample : mixed) samples.push_back({&sample, samples.size()});
  EXPECT_EQ(std::ranges::count_if(mixed, [](const Sample& s) { return s.vlm.device_features != nullptr; }), 2);
  const std::int64_t live = session.meter.live();
  session.meter.reset_peak();
  const auto batch = model::pack(samples, rules, at::kCPU);
  const at::Tensor features = batch.cached_features.clone();
  forward_backward(*session.model, batch, {}, 6);
  EXPECT_EQ(session.dry->activation_bytes(shape_of(samples), {}),
            session.meter.peak() - live - static_cast<std::int64_t>(features.nbytes()));
  session.buffers->discard_staging();
  std::vector<model::StreamSample> from_host;
  for (const auto& item : share) from_host.push_back({item.sample, from_host.size()});
  EXPECT_TRUE(at::equal(model::pack(from_host, rules, at::kCPU).cached_features, features)) << "to the bit";
}

TEST_F(PrefixRun, WhatTheHostKeepsIsPinnedWhereTheDeviceGainsByIt) {
  const Seen off = run_with("off", 10);
  Config config = config_;
  config.cache.mode = "prefix";
  config.cache.host_bytes = "1MiB";
  std::int64_t pinned = 0, asked = 0;
  device_.pinned = [&](std::size_t bytes) {
    ++asked;
    pinned += static_cast<std::int64_t>(bytes);
    return std::make_shared<std::byte[]>(bytes);
  };
  expect_equal(run(config, 10), off);
  EXPECT_EQ(asked, 1);
  EXPECT_GE(pinned, 48 << 10) << "all features, in whole pages";
  EXPECT_LE(pinned, 1 << 20);
  device_.pinned = [&](std::size_t) -> std::shared_ptr<std::byte[]> { throw std::runtime_error("none"); };
  expect_equal(run(config, 10), off);
}

// What the guardian has left when one sample does not fit in the leanest way.
TEST_F(PrefixRun, TheDevicesPartIsGivenUpBeforeASampleIsRefused) {
  Config config = config_;
  config.cache.mode = "prefix";
  const Seen off = run_with("off", 5);
  run(config, 2);
  config.cache.device_bytes = "64KiB";
  const auto source = make_source(config);
  const auto communicator = ddp::make_solo();
  Session session(config, *communicator, *source);
  std::vector<std::shared_ptr<const Sample>> hold;
  int on_device = 0;
  const auto step = [&](int number) {
    StepInput input;
    const auto samples = session.load_share(number, hold);
    for (const auto& sample : samples) on_device += sample.sample->vlm.device_features ? 1 : 0;
    input.step = number;
    input.updates = number - 1;
    input.samples = samples;
    input.plan = {.micro_batch = 1, .recompute_blocks = session.model->language_blocks()};
    const StepResult result = session.step->run(input);
    if (session.loader) session.loader->seek(number + 1);  // what it had loaded ahead came before the step
    return result;
  };
  for (int number = 1; number <= 3; ++number) EXPECT_EQ(step(number).guardian.retries, 0);
  EXPECT_GT(on_device, 0);
  ASSERT_GT(session.cache->device_bytes(), 40 << 10) << "all features";
  // A budget that a single sample fits only without the block.
  const std::int64_t before = session.meter.budget();
  session.meter.set_budget(session.meter.peak() - (20 << 10));
  const StepResult squeezed = step(4);
  EXPECT_FALSE(squeezed.guardian.failed) << squeezed.guardian.error;
  EXPECT_EQ(squeezed.guardian.retries, 1);
  EXPECT_EQ(session.cache->device_bytes(), 0);
  EXPECT_NEAR(squeezed.loss, off.losses[3], 1e-6 * off.losses[3]);
  EXPECT_NEAR(step(5).loss, off.losses[4], 1e-6 * off.losses[4]);
  EXPECT_EQ(session.cache->use(5, 1.0).device_bytes, 0);
  session.meter.set_budget(before);
}

TEST_F(PrefixRun, RefusesMemoryThatIsNotThere) {
  const auto refusal = [&](const char* key, const char* size) {
    Config config = config_;
    config.cache.mode = "prefix";
    (key[0] == 'd' ? config.cache.device_bytes : config.cache.host_bytes) = size;
    const auto source = make_source(config);
    const auto communicator = ddp::make_solo();
    return error_of(ExitCode::kUsage, [&] { const Session session(config, *communicator, *source); });
  };
  EXPECT_NE(refusal("device", "many").find("cache.device_bytes"), std::string::npos);
  EXPECT_NE(refusal("host", "-5GiB").find("cache.host_bytes"), std::string::npos);
  EXPECT_NE(refusal("host", "900TiB").find("this one has"), std::string::npos);
  EXPECT_NE(refusal("device", "900TiB").find("is more than its budget"), std::string::npos);
  // No more is set apart than all features take; a budget that the model nearly fills has no room for that.
  Config config = config_;
  config.cache.mode = "prefix";
  config.cache.device_bytes = "1GiB";
  config.data.synthetic_samples = 3000;
  const auto source = make_source(config);
  const auto communicator = ddp::make_solo();
  std::int64_t needed = 0;
  {
    const Session session(config, *communicator, *source);
    EXPECT_LE(
        session.cache->device_bytes(),
        static_cast<std::int64_t>(feature_bytes(config, *session.model, *source, model::Features::kImages).on_disk));
    ASSERT_GT(session.cache->device_bytes(), 8 << 20);
    needed = session.meter.live() - session.meter.workspace() - session.cache->device_bytes();
  }
  config.memory.budget = needed + (4 << 20);
  const std::string without =
      error_of(ExitCode::kUsage, [&] { const Session session(config, *communicator, *source); });
  EXPECT_NE(without.find("rank 0: cache.device_bytes = "), std::string::npos) << without << ": a budget without room";
}

TEST_F(PrefixRun, ChoosesByItselfWhatIsWorthWhile) {
  const auto chosen = [&](const auto& change, std::uint64_t free) {
    Config config = config_;
    change(config);
    const auto source = make_source(config);
    const model::VlaModel model(vla_options(config, source->dims()), at::kMeta);
    const auto steps = total_steps(config, std::ssize(source->training()));
    return choose_cache_mode(config, model, *source, steps, free);
  };
  constexpr std::uint64_t kPlenty = std::uint64_t{1} << 40;
  const auto nothing = [](Config&) {};
  EXPECT_EQ(chosen(nothing, kPlenty).mode, "prefix");
  EXPECT_EQ(chosen(nothing, 1000).mode, "off");
  EXPECT_NE(chosen(nothing, 1000).reason.find("the disk of cache.dir has"), std::string::npos)
      << chosen(nothing, 1000).reason;
  EXPECT_EQ(chosen([](Config& config) { config.train.max_steps = 2; }, kPlenty).mode, "off") << "one epoch";
  EXPECT_EQ(chosen([](Config& config) { config.memory.knobs = {"resolution"}; }, kPlenty).mode, "off");
  EXPECT_EQ(chosen([](Config& config) { config.lora.targets = R"(.*(blocks|layers).*(qkv|q_proj))"; }, kPlenty).mode,
            "off");
  config_.train.max_steps = 6;
  Seen seen = run_with("auto");
  EXPECT_EQ(seen.cached, 24);
  expect_equal(seen, run_with("off"));
}

TEST_F(PrefixRun, RefusesWhatWouldNotBeExact) {
  const auto refusal = [&](const auto& change) {
    Config config = config_;
    config.cache.mode = "prefix";
    change(config);
    return error_of(ExitCode::kUsage, [&] { run(config, 1); });
  };
  const std::string adapted =
      refusal([](Config& config) { config.lora.targets = R"(.*(blocks|layers).*(qkv|q_proj))"; });
  EXPECT_NE(adapted.find("needs a vision tower without adapters"), std::string::npos) << adapted;
  const std::string moving = refusal([](Config& config) {
    config.memory.knobs = {"micro_batch", "resolution"};
    config.data.resolution = 112;
  });
  EXPECT_NE(moving.find("memory.knobs names \"resolution\""), std::string::npos) << moving;
}

}  // namespace
}  // namespace plimsoll::train
