// cache.mode = "hybrid": exact in stage 1; in stage 2 what the settings say, the same after a resumption, and never
// older than the rules allow.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "cache/survey.h"
#include "memory/cpu_allocator.h"
#include "tests/error_of.h"
#include "tests/train/tiny_run.h"
#include "train/encode.h"
#include "train/feature_cache.h"
#include "train/loop.h"
#include "train/source.h"

namespace plimsoll::train {
namespace {

namespace fs = std::filesystem;

class HybridRun : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    memory::CpuAllocator::install();
    write_tiny_model(model_dir());
  }
  static std::string model_dir() { return testing::TempDir() + "plimsoll-hybrid-cache-test"; }

  HybridRun() {
    config_ = tiny_config(model_dir());
    config_.cache.mode = "hybrid";
    config_.cache.dir = model_dir() + "-cache";
    config_.cache.drift_every = 0;
    config_.data.synthetic_samples = 13;  // twelve are trained on: an epoch is two steps
    config_.train.max_steps = 8;
    config_.train.eval_samples = 0;
    clear();
  }
  ~HybridRun() override { clear(); }
  void clear() const {
    fs::remove_all(config_.cache.dir);
    fs::remove_all(config_.run.dir);
  }

  /// A run as the program makes it; `resume` goes on from its newest checkpoint.
  std::vector<float> run(const Config& config, bool resume = false) const {
    fs::create_directories(config.run.dir);
    const auto source = make_source(config);
    const auto communicator = ddp::make_solo();
    Session session(config, *communicator, *source);
    session.resume(resume);
    RunLog log(session, session.state.step);
    Loop(session, log).run();
    const auto values = session.buffers->parameters();
    return {values.begin(), values.end()};
  }
  std::vector<float> run_off(Config config) const {
    config.cache.mode = "off";
    config.run.dir += "-off";
    const auto values = run(config);
    fs::remove_all(config.run.dir);
    return values;
  }

  /// Lines of a stream of the run.
  std::vector<nlohmann::json> lines(const char* name) const {
    std::vector<nlohmann::json> all;
    std::ifstream file(fs::path(config_.run.dir) / name);
    for (std::string line; std::getline(file, line);) all.push_back(nlohmann::json::parse(line));
    return all;
  }
  std::vector<std::pair<std::int64_t, std::string>> cache_decisions() const {
    std::vector<std::pair<std::int64_t, std::string>> found;
    for (const auto& line : lines("decisions.jsonl"))
      if (line.contains("cache")) found.emplace_back(line.at("step"), line.at("cache"));
    return found;
  }

  /// Samples that ran the whole model, in all steps of the last run.
  std::int64_t live_samples() const {
    std::int64_t sum = 0;
    for (const auto& step : lines("metrics.jsonl")) sum += step.at("live").get<std::int64_t>();
    return sum;
  }

  Config config_;
};

TEST_F(HybridRun, InStage1EqualsTheOneWithout) {
  config_.train.stage = 1;
  for (const char* dtype : {"fp32", "bf16"}) {
    config_.model.dtype = dtype;
    EXPECT_LT(relative_l2(run(config_), run_off(config_)), 1e-6) << dtype;
    fs::remove_all(config_.run.dir);
    const auto source = make_source(config_);
    const auto communicator = ddp::make_solo();
    const Session session(config_, *communicator, *source);
    EXPECT_EQ(session.cache->store().size(), 12);
    EXPECT_FALSE(session.cache->ages());
    for (const std::int64_t index : source->training()) {
      const Sample sample = session.cache->load(index);
      EXPECT_TRUE(sample.vlm.pixel_values.empty());
      EXPECT_EQ(sample.shape(), (SampleShape{0, 0, 0, std::ssize(sample.vlm.input_ids)}));
    }
  }
}

// Instructions alone: tests/faults/test_hybrid_cache.py, with a dataset that has some.
TEST_F(HybridRun, InStage1WhatWasMadeOtherwiseIsMadeAnew) {
  config_.train.stage = 1;
  config_.train.max_steps = 4;  // two epochs of twelve samples
  config_.data.prefetch = 0;    // what is loaded ahead would be loaded before it is known
  const auto live_with = [&](const auto& change) {
    Config config = config_;
    change(config);
    fs::remove_all(config.run.dir);
    const auto values = run(config);
    const std::int64_t live = live_samples();
    EXPECT_LT(relative_l2(values, run_off(config)), 1e-6) << "nothing stale was read";
    return live;
  };
  const auto nothing = [](Config&) {};
  EXPECT_EQ(live_with(nothing), 12);
  EXPECT_EQ(live_with(nothing), 0);
  EXPECT_EQ(live_with([](Config& config) { config.train.lr = 5e-4; }), 0) << "the VLM knows nothing of it";
  EXPECT_EQ(live_with([](Config& config) { config.run.seed = 77; }), 12) << "other made-up samples";
  EXPECT_EQ(live_with([](Config& config) { config.data.resolution = 56; }), 12);
  EXPECT_EQ(live_with([](Config& config) { config.model.dtype = "bf16"; }), 12);
  const std::string other = model_dir() + "-other", shorter = model_dir() + "-shorter";
  fs::remove_all(other);
  fs::remove_all(shorter);
  const auto use_other = [&](Config& config) { config.model.path = other; };
  model::write_random_checkpoint(model::init_config("tiny"), {other, 99, false});
  EXPECT_EQ(live_with(use_other), 12) << "another model";
  std::ofstream(other + "/preprocessor_config.json") << R"({"min_pixels": 3136})";
  EXPECT_EQ(live_with(use_other), 12) << "another processor";
  std::ofstream(other + "/chat_template.json") << R"({"chat_template": "{{ messages }}"})";
  EXPECT_EQ(live_with(use_other), 12) << "another template";
  EXPECT_EQ(live_with(use_other), 0);
  model::write_random_checkpoint(model::init_config("tiny", 3), {shorter, 7, false});
  EXPECT_EQ(live_with([&](Config& config) { config.model.path = shorter; }), 12) << "the same weights, another layer";
  EXPECT_EQ(live_with(nothing), 0) << "what was there first is there still";
  const auto reports = cache::survey(config_.cache.dir, true);
  EXPECT_EQ(reports.size(), 8U) << "one of each";
  for (const auto& report : reports) {
    EXPECT_EQ(report.samples, 12) << report.folder;
    EXPECT_TRUE(report.damaged.empty()) << report.folder;
  }
}

TEST_F(HybridRun, FeaturesOnTheDeviceAreThoseOfTheDisk) {
  config_.train.max_steps = 14;
  config_.cache.rebuild_epochs = 3;
  for (const std::int64_t stage : {1, 2}) {
    config_.train.stage = stage;
    clear();
    const auto from_disk = run(config_);
    clear();
    Config config = config_;
    config.cache.device_bytes = "128KiB";
    EXPECT_LT(relative_l2(run(config), from_disk), 1e-6) << "stage " << stage;
    std::int64_t on_device = 0;
    for (const auto& line : lines("cache.jsonl"))
      if (line.at("what") == "use") on_device += line.at("from_device").get<std::int64_t>();
    EXPECT_GT(on_device, 10);
  }
}

TEST_F(HybridRun, WithEverythingLiveEqualsTheOneWithout) {
  config_.cache.live_fraction = 1;
  EXPECT_LT(relative_l2(run(config_), run_off(config_)), 1e-6);
}

TEST_F(HybridRun, APartOfEachStepIsLiveOnceAllIsKnown) {
  config_.cache.live_fraction = 0.4;
  run(config_);
  const auto steps = lines("metrics.jsonl");
  ASSERT_EQ(steps.size(), 8U);
  std::int64_t sum = 0;
  for (std::size_t i = 0; i < steps.size(); ++i) {
    const std::int64_t live = steps[i].at("live");
    if (i < 2) {
      EXPECT_EQ(live, 6) << "the first epoch";
    } else {
      EXPECT_TRUE(live == 2 || live == 3) << live;
      sum += live;
    }
  }
  EXPECT_NEAR(static_cast<double>(sum), 6 * 0.4 * 6, 1.0);
  for (const auto& step : steps) EXPECT_TRUE(std::isfinite(step.at("loss").get<double>()));
}

/// All samples of a step, those in `live` with pictures and words, the others with their hidden states.
class OneStep {
 public:
  OneStep(const Config& config, const data::SampleSource& source, ddp::Communicator& communicator)
      : session_(config, communicator, source) {
    session_.resume(false);
    for (std::size_t i = 0; i < 6; ++i) {
      live_.push_back(source.load(source.training()[i]));
      cached_.push_back(live_.back());
    }
    const std::vector<std::int64_t> indices(source.training().begin(), source.training().begin() + 6);
    std::size_t next = 0;
    encode(session_, model::Features::kStates, indices,
           [&](std::span<const model::StreamSample> samples, const at::Tensor& states) {
             const auto* from = static_cast<const std::byte*>(states.const_data_ptr());
             const auto row = static_cast<std::size_t>(states.size(1)) * states.element_size();
             for (const auto& item : samples) {
               const std::size_t bytes = item.sample->vlm.input_ids.size() * row;
               cached_[next++].vlm.hidden_states = std::vector<std::byte>(from, from + bytes);
               from += bytes;
             }
           });
  }

  StepResult run(const std::vector<std::size_t>& live) {
    std::vector<model::StreamSample> samples;
    for (std::size_t i = 0; i < 6; ++i)
      samples.push_back({std::ranges::find(live, i) != live.end() ? &live_[i] : &cached_[i], i});
    StepInput input;
    input.samples = samples;
    input.plan = memory::Plan{0, 4};
    input.learning_rate_factor = 0;  // weights stay
    return session_.step->run(input);
  }
  std::vector<float> gradients(model::ParameterGroup group) {
    const auto values = part(session_.buffers->gradients(), session_.buffers->group(group));
    return {values.begin(), values.end()};
  }
  Session& session() { return session_; }

 private:
  Session session_;
  std::vector<Sample> live_, cached_;
};

TEST_F(HybridRun, AdaptersGetTheGradientOfTheLiveSamplesAndTheExpertThatOfAll) {
  config_.lora.dropout = 0;
  config_.train.weight_decay = 0;
  const auto source = make_source(config_);
  const auto communicator = ddp::make_solo();
  OneStep step(config_, *source, *communicator);
  const StepResult whole = step.run({0, 1, 2, 3, 4, 5});
  EXPECT_EQ(whole.live, 6);
  const auto adapters = step.gradients(model::ParameterGroup::kVlm);
  const auto expert = step.gradients(model::ParameterGroup::kExpert);
  std::vector<float> sum(adapters.size(), 0.0F);
  for (const std::vector<std::size_t>& live : {std::vector<std::size_t>{0, 3}, {1, 4}, {2, 5}}) {
    const StepResult part = step.run(live);
    EXPECT_EQ(part.live, 2);
    EXPECT_NEAR(part.loss, whole.loss, 1e-5 * whole.loss);
    EXPECT_LT(relative_l2(step.gradients(model::ParameterGroup::kExpert), expert), 1e-4);
    const auto own = step.gradients(model::ParameterGroup::kVlm);
    EXPECT_GT(relative_l2(own, adapters), 0.1);
    std::ranges::transform(sum, own, sum.begin(), std::plus<>());
  }
  EXPECT_LT(relative_l2(sum, adapters), 1e-4)
      << "each sample once: the means over the live ones average to the whole's";
  EXPECT_EQ(step.run({}).live, 0);
  for (const float value : step.gradients(model::ParameterGroup::kVlm)) EXPECT_EQ(value, 0.0F);
}

TEST_F(HybridRun, AnUpdateTakesTheMeanOverTheLiveSamples) {
  config_.lora.dropout = 0;
  config_.train.clip_norm = 0;
  const auto source = make_source(config_);
  const auto communicator = ddp::make_solo();
  OneStep step(config_, *source, *communicator);
  auto& buffers = *step.session().buffers;
  const auto adapters = buffers.group(model::ParameterGroup::kVlm),
             expert = buffers.group(model::ParameterGroup::kExpert);
  step.run({0, 1});
  const auto first = part(buffers.first_moment(), adapters), gradient = part(buffers.gradients(), adapters);
  double apart = 0, size = 0;
  for (std::size_t i = 0; i < first.size(); ++i) {
    const double wanted = 0.1 * 6.0 / 2.0 * gradient[i];
    apart += (first[i] - wanted) * (first[i] - wanted);
    size += wanted * wanted;
  }
  ASSERT_GT(size, 0);
  EXPECT_LT(std::sqrt(apart / size), 1e-5);
  const std::vector<float> before(first.begin(), first.end());
  const auto of_expert = part(buffers.first_moment(), expert);
  const std::vector<float> expert_before(of_expert.begin(), of_expert.end());
  step.run({});
  EXPECT_TRUE(std::ranges::equal(before, part(buffers.first_moment(), adapters))) << "no live sample, no step";
  EXPECT_FALSE(std::ranges::equal(expert_before, part(buffers.first_moment(), expert)));
}

TEST_F(HybridRun, AdaptersAndTheRestAreClippedApart) {
  config_.lora.dropout = 0;
  config_.train.clip_norm = 1e-3;
  const auto source = make_source(config_);
  const auto communicator = ddp::make_solo();
  OneStep step(config_, *source, *communicator);
  auto& buffers = *step.session().buffers;
  step.run({0, 1});
  for (const auto group : {model::ParameterGroup::kVlm, model::ParameterGroup::kExpert}) {
    double norm = 0;
    const auto moments = part(buffers.first_moment(), buffers.group(group));
    for (const float value : moments) norm += std::pow(10.0 * value, 2);
    EXPECT_NEAR(std::sqrt(norm), 1e-3, 1e-6) << "each by its own norm";
  }
}

TEST_F(HybridRun, MemoryIsPredictedToTheByteForCachedMicroBatchesAndForMakingStates) {
  for (const char* dtype : {"fp32", "bf16"}) {
    config_.model.dtype = dtype;
    const auto source = make_source(config_);
    const auto communicator = ddp::make_solo();
    OneStep step(config_, *source, *communicator);
    Session& session = step.session();
    const auto rules = session.model->packing_rules(3, false);
    const auto evaluation = session.model->packing_rules(3, true);
    std::vector<Sample> cached;
    for (std::size_t i = 0; i < 4; ++i) {
      cached.push_back(source->load(source->training()[i]));
      auto& vlm = cached.back().vlm;
      vlm.hidden_states = std::vector<std::byte>(vlm.input_ids.size() * static_cast<std::size_t>(rules.hidden) *
                                                 c10::elementSize(rules.compute));
    }
    std::vector<model::StreamSample> samples;
    for (const Sample& sample : cached) samples.push_back({&sample, 0});
    for (const memory::Plan& plan : {memory::Plan{0, 4}, memory::Plan{0, 4, 1, 0, 1}}) {
      const std::int64_t live = session.meter.live();
      session.meter.reset_peak();
      forward_backward(*session.model, model::pack(samples, rules, at::kCPU), recompute_of(plan), 6);
      EXPECT_EQ(session.dry->activation_bytes(shape_of(samples), plan), session.meter.peak() - live) << dtype;
      session.buffers->discard_staging();
    }
    for (Sample& sample : cached) sample.vlm.hidden_states = {};
    const std::int64_t live = session.meter.live();
    session.meter.reset_peak();
    session.model->encode(model::pack(samples, evaluation, at::kCPU), model::Features::kStates);
    EXPECT_EQ(session.dry->encode_bytes(shape_of(samples), model::Features::kStates), session.meter.peak() - live)
        << dtype;
  }
}

TEST_F(HybridRun, ResumedAnywhereEqualsTheUninterrupted) {
  config_.data.synthetic_samples = 14;  // thirteen are trained on: epochs end within steps, rebuilds begin at 5 and 9
  config_.train.max_steps = 11;
  config_.cache.rebuild_epochs = 2;
  for (const std::int64_t over : {0, 3}) {
    for (const std::int64_t at : {6, 7, 8, 9}) {
      clear();
      config_.cache.device_bytes = at % 2 == 0 ? "none" : "20KiB";
      config_.cache.rebuild_over = over;
      config_.train.checkpoint_every = at;
      const auto whole = run(config_);
      const auto decided = cache_decisions();
      EXPECT_FALSE(decided.empty());
      // As if the machine had gone down after step 11: features of the steps after the checkpoint are on the disk.
      const auto checkpoints = fs::path(config_.run.dir) / "checkpoints";
      for (std::int64_t later = at + 1; later <= 11; ++later)
        fs::remove_all(checkpoints / fmt::format("step-{}", later));
      ASSERT_TRUE(fs::exists(checkpoints / fmt::format("step-{}", at)));
      config_.cache.device_bytes = at % 2 == 0 ? "30KiB" : "10KiB";  // where features lie, a resumption may change
      EXPECT_LT(relative_l2(run(config_, true), whole), 1e-6) << "from step " << at << ", rebuilt over " << over;
      EXPECT_EQ(cache_decisions(), decided) << "from step " << at << ", rebuilt over " << over;
    }
  }
}

TEST_F(HybridRun, ClearsWhatIsReadNoMore) {
  config_.train.max_steps = 24;
  config_.train.checkpoint_every = 2;
  config_.cache.rebuild_epochs = 2;
  run(config_);
  const auto reports = cache::survey(config_.cache.dir, true);
  ASSERT_EQ(reports.size(), 1U);
  EXPECT_EQ(reports[0].samples, 12);
  EXPECT_LT(reports[0].records, 3 * 12) << "of six rebuilds and what came between";
  EXPECT_TRUE(reports[0].damaged.empty());
}

TEST_F(HybridRun, RebuildsForAgeAtOnceOrOverSomeSteps) {
  config_.train.max_steps = 12;
  config_.cache.rebuild_epochs = 2;
  config_.data.prefetch = 0;  // or features are counted that a later step uses
  // How many steps old the features were that the epoch's steps read which ends in this one, on average.
  const auto age = [this](std::int64_t step) {
    double sum = 0, read = 0;
    for (const auto& line : lines("cache.jsonl")) {
      if (line.at("what") != "use" || line.at("age").is_null()) continue;
      if (line.at("step") <= step - 2 || line.at("step") > step) continue;
      const double count = line.at("from_memory").get<double>() + line.at("from_disk").get<double>();
      sum += count * line.at("age").get<double>();
      read += count;
    }
    return sum / read;
  };
  run(config_);
  const double at_once_then = age(6), at_once_later = age(8);
  const std::vector<std::pair<std::int64_t, std::string>> at_once = {
      {4, "rebuild"}, {4, "rebuilt"}, {8, "rebuild"}, {8, "rebuilt"}};
  EXPECT_EQ(cache_decisions(), at_once);
  clear();
  config_.cache.rebuild_over = 3;
  run(config_);
  const auto spread = cache_decisions();
  ASSERT_GE(spread.size(), 2U);
  EXPECT_EQ(spread[0], (std::pair<std::int64_t, std::string>{4, "rebuild"}));
  EXPECT_EQ(spread[1], (std::pair<std::int64_t, std::string>{6, "rebuilt"}));
  EXPECT_LT(at_once_then, 1) << "steps 5 and 6 read what was made after step 4";
  EXPECT_GT(age(6), 1.5) << "they go on from the old features until the new ones are complete";
  EXPECT_LT(age(8), 2) << "then those are read";
  EXPECT_GT(at_once_later, 2);
}

TEST_F(HybridRun, RebuildsEarlierWhenFeaturesMoved) {
  config_.train.max_steps = 12;
  config_.cache.rebuild_epochs = 5;
  config_.cache.drift_every = 2;
  config_.cache.drift_bound = 1e-6;
  config_.cache.probe_samples = 4;
  run(config_);
  const auto decided = cache_decisions();
  ASSERT_FALSE(decided.empty());
  EXPECT_LT(decided.front().first, 10);
  for (const auto& line : lines("decisions.jsonl"))
    if (line.contains("cache") && line.at("cache") == "rebuild") {
      EXPECT_GT(line.at("drift").get<double>(), 1e-6);
      EXPECT_NE(line.at("reason").get<std::string>().find("cache.drift_bound"), std::string::npos);
    }
}

TEST_F(HybridRun, AFullDiskIsASlowerRun) {
  config_.cache.disk_bytes = std::int64_t{1};
  config_.cache.live_fraction = 0.5;
  config_.cache.rebuild_epochs = 1;
  run(config_);
  EXPECT_FALSE(cache_decisions().empty());
  for (const auto& step : lines("metrics.jsonl")) EXPECT_EQ(step.at("live"), 6);
}

TEST_F(HybridRun, AsBytesIsNearlyTheSame) {
  const auto exact = run(config_);
  clear();
  config_.cache.keep = "int8";
  const auto bytes = run(config_);
  EXPECT_LT(relative_l2(bytes, exact), 0.02);
  EXPECT_GT(relative_l2(bytes, exact), 1e-7) << "it is not exact";
  int told = 0;
  for (const auto& line : lines("cache.jsonl")) {
    if (line.at("what") != "use" || line.at("kept") == 0) continue;
    EXPECT_GT(line.at("int8_error").get<double>(), 1e-4);  // of 127 steps either way, relative L2
    EXPECT_LT(line.at("int8_error").get<double>(), 0.02);
    ++told;
  }
  EXPECT_GE(told, 1);
}

TEST_F(HybridRun, RefusesWhatWouldTeachNothing) {
  const auto refusal = [&](const Config& config) { return error_of(ExitCode::kUsage, [&] { run(config); }); };
  config_.cache.live_fraction = 0;
  EXPECT_NE(refusal(config_).find("cache.live_fraction = 0 in stage 2"), std::string::npos);
  config_.train.stage = 1;
  EXPECT_EQ(refusal(config_), "no error");
  clear();
  config_.cache.keep = "int8";
  EXPECT_NE(refusal(config_).find("in stage 1: there features stay exact"), std::string::npos);
  config_.cache.keep = "exact";
  clear();
  config_.train.stage = 2;
  config_.cache.frozen_adapters = true;
  EXPECT_EQ(refusal(config_), "no error");
  config_.cache.mode = "off";
  const std::string resumed = error_of([&] { run(config_, true); });
  EXPECT_NE(resumed.find("learn something else"), std::string::npos) << resumed;
}

}  // namespace
}  // namespace plimsoll::train
