// Features that are made outside of any step, by rebuilds, builds and looks at probe samples: where memory refuses,
// each sample is kept once all the same, and drift is what a plain loop over the features finds.
#include "train/feature_upkeep.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "cache/survey.h"
#include "memory/cpu_allocator.h"
#include "tests/error_of.h"
#include "tests/train/tiny_run.h"
#include "train/build_cache.h"
#include "train/encode.h"
#include "train/feature_cache.h"
#include "train/source.h"

namespace plimsoll::train {
namespace {

namespace fs = std::filesystem;

/// The values of each sample's hidden states.
using StatesBySample = std::map<std::int64_t, std::vector<double>>;

// Twelve samples, all of them one rank's, six in a step: so many are encoded at once where memory allows.
class UpkeepRun : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    memory::CpuAllocator::install();
    write_tiny_model(model_dir());
  }
  static std::string model_dir() { return testing::TempDir() + "plimsoll-feature-upkeep-test"; }

  UpkeepRun() {
    config_ = tiny_config(model_dir());
    config_.cache.mode = "hybrid";
    config_.cache.dir = model_dir() + "-cache";
    config_.cache.drift_every = 2;
    config_.cache.drift_bound = 0;
    config_.cache.probe_samples = 4;
    config_.data.synthetic_samples = 13;  // twelve are trained on
    config_.train.max_steps = 8;
    clear();
  }
  ~UpkeepRun() override {
    memory::CpuAllocator::install().fail_at(0);
    clear();
  }
  void clear() {
    session_.reset();
    fs::remove_all(config_.cache.dir);
    fs::remove_all(config_.run.dir);
  }

  /// A new run, in place of the one before, that has no features yet.
  Session& begin() {
    clear();
    communicator_ = ddp::make_solo();
    source_ = make_source(config_);
    session_.emplace(config_, *communicator_, *source_);
    session_->resume(false);
    return *session_;
  }

  /// Keeps the states of all samples as made after `step`. Returns how many came at once.
  std::vector<std::size_t> keep_all(std::int64_t step) {
    std::vector<std::size_t> sizes;
    encode(*session_, model::Features::kStates, session_->source.training(),
           [&](std::span<const model::StreamSample> samples, const at::Tensor& states) {
             session_->cache->keep_after(step, samples, states);
             sizes.push_back(samples.size());
           });
    return sizes;
  }

  /// From now on the states that were made after `step` are read.
  void publish(std::int64_t step) {
    session_->state.features.published = cache::stamp_after_step(step);
    session_->cache->publish(session_->state.features);
  }

  /// Every sample's newest record is of that step; records of `times` such passes are there, and no more.
  void expect_each_kept_once(std::int64_t step, std::int64_t times) {
    for (const std::int64_t index : session_->source.training()) {
      const auto key = session_->cache->store().find(index);
      ASSERT_TRUE(key) << "sample " << index;
      EXPECT_EQ(key->stamp, cache::stamp_after_step(step)) << "sample " << index;
    }
    const auto reports = cache::survey(config_.cache.dir, true);
    ASSERT_EQ(reports.size(), 1U);
    EXPECT_EQ(reports[0].records, 12 * times) << "after step " << step;
    EXPECT_TRUE(reports[0].damaged.empty());
  }

  /// Of the heaviest sample alone.
  std::int64_t bytes_of_one() const {
    std::int64_t most = 0;
    for (const std::int64_t index : session_->source.training()) {
      memory::MicroBatchShape shape{1};
      shape += session_->source.shape_at(index, session_->plan.resolution);
      most = std::max(most, session_->dry->encode_bytes(shape, model::Features::kStates));
    }
    return most;
  }

  StatesBySample states_of(std::span<const std::int64_t> indices, std::int64_t keep_after = 0) {
    StatesBySample all;
    encode(*session_, model::Features::kStates, indices,
           [&](std::span<const model::StreamSample> samples, const at::Tensor& states) {
             if (keep_after > 0) session_->cache->keep_after(keep_after, samples, states);
             const at::Tensor wide = states.to(at::kDouble).contiguous();
             const double* from = wide.data_ptr<double>();
             for (const auto& item : samples) {
               const double* end = from + std::ssize(item.sample->vlm.input_ids) * wide.size(1);
               all[item.sample->index].assign(from, end);
               from = end;
             }
           });
    return all;
  }

  nlohmann::json last_look() const {
    nlohmann::json last;
    std::ifstream file(fs::path(config_.run.dir) / "cache.jsonl");
    for (std::string line; std::getline(file, line);) {
      auto json = nlohmann::json::parse(line);
      if (json.at("what") == "drift") last = std::move(json);
    }
    return last;
  }

  Config config_;
  std::unique_ptr<ddp::Communicator> communicator_;
  std::unique_ptr<data::SampleSource> source_;
  std::optional<Session> session_;
};

TEST_F(UpkeepRun, WhatFailsWhileEncodingIsKeptOnce) {
  using Sizes = std::vector<std::size_t>;
  const Session& session = begin();
  ASSERT_EQ(keep_all(1), (Sizes{6, 6}));
  const std::int64_t live = session.meter.live(), start = session.meter.allocations();
  keep_all(2);
  const std::int64_t allocations = session.meter.allocations() - start;
  ASSERT_GT(allocations, 100);
  const std::int64_t apart = std::getenv("PLIMSOLL_PROOFS") != nullptr ? 7 : allocations / 9;
  std::int64_t step = 2;
  for (std::int64_t n = 1; n <= allocations; n += apart) {
    memory::CpuAllocator::install().fail_at(n);
    const Sizes sizes = keep_all(++step);
    EXPECT_TRUE((sizes == Sizes{3, 3, 3, 3}) || (sizes == Sizes{6, 3, 3})) << "allocation " << n;
    EXPECT_EQ(session.meter.live(), live) << "allocation " << n;
    publish(step);
    expect_each_kept_once(step, step);
  }
}

TEST_F(UpkeepRun, ABudgetForFewEncodesFewAtOnce) {
  Session& session = begin();
  ASSERT_EQ(keep_all(1).size(), 2U);
  const std::int64_t whole = session.meter.budget();
  session.meter.set_budget(session.meter.live() + bytes_of_one());
  session.meter.take_failed_request();
  const auto sizes = keep_all(2);
  EXPECT_EQ(session.meter.take_failed_request(), 0) << "split before anything failed";
  session.meter.set_budget(whole);
  EXPECT_GE(sizes.size(), 4U);
  EXPECT_LT(std::ranges::max(sizes), 6U);
  publish(2);
  expect_each_kept_once(2, 2);
}

TEST_F(UpkeepRun, ABudgetForNotEvenOneEndsWithWhatToDo) {
  Session& session = begin();
  const std::int64_t whole = session.meter.budget();
  session.meter.set_budget(session.meter.live() + bytes_of_one() / 8);
  const std::string said = error_of(ExitCode::kMemory, [&] { keep_all(1); });
  session.meter.set_budget(whole);
  EXPECT_NE(said.find("sample 0 does not fit alone"), std::string::npos) << said;
  EXPECT_NE(said.find("memory.budget"), std::string::npos) << said << ": which setting would help";
  EXPECT_EQ(keep_all(2).size(), 2U) << "nothing is broken";
  publish(2);
  expect_each_kept_once(2, 1);
}

TEST_F(UpkeepRun, WhatFailsInARebuildIsKeptOnce) {
  Session& session = begin();
  RunLog log(session, 0);
  FeatureUpkeep upkeep(session, log);
  std::int64_t rebuilds = 0;
  const auto allocations_of_rebuild = [&](std::int64_t step, std::int64_t fail_at) {
    session.state.features.begun = step;
    session.state.features.parts = 0;
    const std::int64_t start = session.meter.allocations();
    memory::CpuAllocator::install().fail_at(fail_at);
    upkeep.work(step);
    EXPECT_EQ(session.state.features.begun, -1) << "it is complete";
    EXPECT_EQ(session.state.features.oldest, cache::stamp_after_step(step));
    expect_each_kept_once(step, ++rebuilds);
    return session.meter.allocations() - start;
  };
  // After odd steps: cache.drift_every would have it look at the probe samples too.
  allocations_of_rebuild(1, 0);
  const std::int64_t calm = allocations_of_rebuild(3, 0);
  std::int64_t step = 3;
  for (const std::int64_t n : {std::int64_t{1}, calm / 4, calm / 2, calm - 10})
    EXPECT_GT(allocations_of_rebuild(step += 2, n), calm) << "allocation " << n << " failed, and was made again";
}

TEST_F(UpkeepRun, WhatFailsInABuildIsKeptOnce) {
  config_.train.stage = 1;
  const auto allocations_of_build = [&](std::int64_t fail_at) {
    Session& session = begin();
    const std::int64_t start = session.meter.allocations();
    memory::CpuAllocator::install().fail_at(fail_at);
    const BuiltCache built = build_cache(session, [](const std::string&) {});
    EXPECT_EQ(built.samples, 12);
    EXPECT_EQ(built.known, 12);
    EXPECT_EQ(built.made, 12);
    const auto reports = cache::survey(config_.cache.dir, true);
    EXPECT_EQ(reports.size(), 1U);
    for (const auto& report : reports) {
      EXPECT_EQ(report.samples, 12);
      EXPECT_EQ(report.records, 12) << "each once";
      EXPECT_TRUE(report.damaged.empty());
    }
    return session.meter.allocations() - start;
  };
  for (const char* mode : {"prefix", "hybrid"}) {
    config_.cache.mode = mode;
    const std::int64_t calm = allocations_of_build(0);
    for (const std::int64_t n : {std::int64_t{1}, calm / 3, calm - 10})
      EXPECT_GT(allocations_of_build(n), calm) << mode << ": allocation " << n << " failed, and was made again";
  }
}

// As updates would, each value by something of its own.
void move_adapters(FlatBuffers& buffers) {
  for (const FlatSlot& slot : buffers.slots()) {
    if (slot.group != model::ParameterGroup::kVlm) continue;
    const auto values = part(buffers.parameters(), slot.range);
    for (std::size_t i = 0; i < values.size(); ++i) values[i] += 0.02F * std::sin(static_cast<float>(i + 1));
  }
}

/// Means over the samples of `now`, as the definitions have them.
struct MeanDrift {
  double relative_l2 = 0, cosine = 0;
};
MeanDrift mean_drift(const StatesBySample& kept, const StatesBySample& now) {
  MeanDrift mean;
  for (const auto& [index, fresh] : now) {
    const std::vector<double>& old = kept.at(index);
    double apart = 0, both = 0, of_old = 0, of_fresh = 0;
    for (std::size_t i = 0; i < fresh.size(); ++i) {
      apart += (fresh[i] - old[i]) * (fresh[i] - old[i]);
      both += fresh[i] * old[i];
      of_old += old[i] * old[i];
      of_fresh += fresh[i] * fresh[i];
    }
    EXPECT_EQ(fresh.size(), old.size());
    EXPECT_LT(apart, of_old) << "sample " << index << ": a distance of 1 and more counts as 1";
    mean.relative_l2 += std::sqrt(apart) / std::sqrt(of_old) / static_cast<double>(now.size());
    mean.cosine += both / (std::sqrt(of_old) * std::sqrt(of_fresh)) / static_cast<double>(now.size());
  }
  return mean;
}

TEST_F(UpkeepRun, DriftIsWhatAPlainLoopFinds) {
  for (const char* dtype : {"fp32", "bf16"}) {
    config_.model.dtype = dtype;
    Session& session = begin();
    const auto& training = session.source.training();
    const StatesBySample kept = states_of(training, 1);
    publish(1);
    const std::vector<std::int64_t> probes = {training[0], training[3], training[6], training[9]};
    RunLog log(session, 0);
    FeatureUpkeep upkeep(session, log);
    move_adapters(*session.buffers);
    upkeep.work(2);
    const FeatureDrift found = upkeep.drift();
    const MeanDrift expected = mean_drift(kept, states_of(probes));
    EXPECT_GT(expected.relative_l2, 0.01) << dtype;
    ASSERT_EQ(found.samples, 4) << dtype;
    EXPECT_NEAR(static_cast<double>(found.distances) / 4e6, expected.relative_l2, 1e-6) << dtype;
    EXPECT_NEAR(static_cast<double>(found.angles) / 4e6, 1 - expected.cosine, 1e-6) << dtype;
    // With what another rank says of two samples: the mean over all six.
    std::vector<ddp::Report> reports(2);
    reports[0].probed = found.samples;
    reports[0].drift_sum = found.distances;
    reports[0].angle_sum = found.angles;
    reports[1].probed = 2;
    reports[1].drift_sum = 600'000;
    reports[1].angle_sum = 20'000;
    upkeep.conclude(3, reports);
    log.sync();
    const auto line = last_look();
    EXPECT_EQ(line.at("step"), 3);
    EXPECT_EQ(line.at("probed"), 6);
    EXPECT_NEAR(line.at("drift").get<double>(), (4 * expected.relative_l2 + 0.6) / 6, 3e-6) << dtype;
    EXPECT_NEAR(line.at("cosine").get<double>(), (4 * expected.cosine + 2 - 0.02) / 6, 3e-6) << dtype;
    EXPECT_EQ(upkeep.drift().samples, 0) << "it is told once";
  }
}

}  // namespace
}  // namespace plimsoll::train
