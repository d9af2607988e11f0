// What a plan means on a GPU: offloaded or not it trains the same, and its bytes are those that dry runs and the model
// of the caching allocator say.
#include <dlfcn.h>
#include <gmock/gmock.h>

#include <filesystem>

#include "core/error.h"
#include "core/file.h"
#include "tests/train/tiny_run.h"
#include "train/forecast.h"
#include "train/source.h"

namespace plimsoll::train {
namespace {

constexpr double kMebibyte = 1 << 20;

class OnAGpu : public testing::Test {
 protected:
  void SetUp() override {
    const auto library = std::filesystem::read_symlink("/proc/self/exe").parent_path() / kDeviceLibraryFile;
    if (!std::filesystem::exists(library)) GTEST_SKIP() << library << " was not built: no nvcc was found";
    if (count_gpus() == 0) GTEST_SKIP() << "no GPU: nothing ran on one";
    static const Device opened = open_device("cuda", 0);
    device_ = opened;
    held_ = device_.memory->live();
  }

  static Config config() {
    static const Config made = [] {
      const std::string dir = testing::TempDir() + "plimsoll-cuda-device";
      write_tiny_model(dir);
      return tiny_config(dir);
    }();
    return made;
  }
  /// Large enough to fill segments of the allocator.
  static Config wide_config() {
    static const Config made = [] {
      Config config = tiny_config(testing::TempDir() + "plimsoll-cuda-device-wide");
      std::filesystem::remove_all(config.model.path);
      model::write_random_checkpoint(model::init_config("wide"), {config.model.path, 7, false});
      config.model.dtype = "bf16";
      config.batch.effective = 16;
      return config;
    }();
    return made;
  }

  Device device_;
  std::int64_t held_ = 0;  ///< by the libraries
};

/// A session on the device, and the samples of its first step.
struct OnDevice {
  OnDevice(const Config& wanted, const Device& device)
      : source(make_source(wanted)),
        communicator(ddp::make_solo()),
        session(wanted, *communicator, *source, device),
        samples(session.load_share(1, hold)) {}
  std::unique_ptr<data::SampleSource> source;
  std::unique_ptr<ddp::Communicator> communicator;
  Session session;
  std::vector<std::shared_ptr<const Sample>> hold;
  std::vector<model::StreamSample> samples;
};

std::vector<memory::Plan> ways(const model::VlaModel& model) {
  const memory::Plan plain{0, 2};
  memory::Plan recomputed = plain;
  recomputed.recompute_blocks = model.language_blocks();
  memory::Plan offloaded = recomputed;
  offloaded.offload = true;
  return {plain, recomputed, offloaded};
}

TEST_F(OnAGpu, SaysHowBusyItIs) {
  if (dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL) == nullptr) GTEST_SKIP() << "no libnvidia-ml.so.1";
  ASSERT_TRUE(static_cast<bool>(device_.utilisation)) << "the library is there and does not know the GPU";
  const auto busy = device_.utilisation();
  if (!busy) GTEST_SKIP() << "the GPU does not say how busy it is, as a part of one (MIG) does not";
  EXPECT_GE(*busy, 0);
  EXPECT_LE(*busy, 1);
}

TEST_F(OnAGpu, TheLibrariesHoldAtMostWhatPlansCount) {
  EXPECT_GT(held_, 0);
  EXPECT_LE(held_, kCudaWorkspace + (1 << 20));
}

TEST_F(OnAGpu, EveryWayLosesTheSame) {
  std::vector<double> first;
  for (std::size_t way = 0; way < 3; ++way) {
    OnDevice on(config(), device_);
    StepInput input;
    input.samples = on.samples;
    input.plan = ways(*on.session.model)[way];
    for (std::size_t step = 0; step < 3; ++step) {
      input.step = static_cast<std::int64_t>(step) + 1;
      input.updates = static_cast<std::int64_t>(step);
      const double loss = on.session.step->run(input).loss;
      if (way == 0) first.push_back(loss);
      EXPECT_NEAR(loss, first[step], 1e-5 * first[step]) << "way " << way << ", step " << step + 1;
    }
  }
}

TEST_F(OnAGpu, ADryRunSaysThePeak) {
  OnDevice on(config(), device_);
  Session& s = on.session;
  const auto rules = s.model->packing_rules(3, false);
  for (const memory::Plan& plan : ways(*s.model)) {
    s.meter.synchronize();
    s.meter.reset_peak();
    const std::int64_t before = s.meter.live();
    forward_backward(*s.model, model::pack(on.samples, rules, device_.place), recompute_of(plan), 6);
    s.meter.synchronize();
    const auto measured = static_cast<double>(s.meter.peak() - before);
    s.buffers->discard_staging();
    const auto predicted = static_cast<double>(s.dry->activation_bytes(shape_of(on.samples), plan));
    EXPECT_NEAR(predicted / measured, 1.0, 0.005) << to_string(plan);
  }
}

// The budget falls to what half of the share needs, at an allocation of forward, and at later ones.
TEST_F(OnAGpu, WhatRunsOutOfMemoryIsReplayedAndHoldsNothing) {
  double undisturbed = 0;
  for (const std::int64_t after : {-1, 5, 60, 150}) {
    OnDevice on(wide_config(), device_);
    Session& s = on.session;
    std::vector<std::int64_t> left;
    s.step->guardian().after_drain = [&](std::int64_t before, std::int64_t now) { left.push_back(now - before); };
    StepInput input;
    input.samples = on.samples;
    input.plan = {0, static_cast<int>(on.samples.size())};
    s.meter.release_cached();
    const std::int64_t half = s.dry->activation_bytes(shape_of(on.samples), input.plan) / 2;
    if (after >= 0) s.meter.change_budget_after(after, s.meter.reserved() + half);
    const StepResult result = s.step->run(input);
    s.meter.set_budget(device_.total);
    if (after < 0) undisturbed = result.loss;
    EXPECT_EQ(result.guardian.retries > 0, after >= 0) << "after " << after << " allocations";
    EXPECT_EQ(left.empty(), after < 0) << "after " << after << " allocations";
    EXPECT_THAT(left, testing::Each(0)) << "after " << after << " allocations";
    EXPECT_NEAR(result.loss, undisturbed, 1e-3 * undisturbed) << "after " << after << " allocations";
  }
}

// PyTorch's memory viewer opens a pickle: protocol 2 of a dictionary that has segments and traces.
TEST_F(OnAGpu, AFailureLeavesASnapshot) {
  const std::filesystem::path file = testing::TempDir() + "plimsoll-snapshot.pickle";
  std::filesystem::remove(file);
  device_.memory->snapshot_next_failure(file);
  EXPECT_THROW(torch::empty({device_.total}, at::TensorOptions(device_.place).dtype(at::kFloat)),
               c10::OutOfMemoryError);
  EXPECT_EQ(device_.memory->take_snapshot(), file);
  const std::string text = read_file(file);
  EXPECT_TRUE(text.starts_with("\x80\x02")) << text.substr(0, 8);
  EXPECT_THAT(text, testing::AllOf(testing::HasSubstr("segments"), testing::HasSubstr("device_traces")));
  EXPECT_FALSE(device_.memory->take_snapshot()) << "once";
}

// What each way adds to what the model itself has reserved.
TEST_F(OnAGpu, TheAllocatorModelSaysWhatIsReserved) {
  OnDevice on(wide_config(), device_);
  Session& s = on.session;
  std::vector<SampleShape> shapes;
  for (const auto& sample : on.samples) shapes.push_back(sample.sample->shape());
  Config config = wide_config();
  config.batch.effective = std::ssize(shapes);
  Forecast forecast(config, {on.source->dims(), shapes}, 1);
  const auto rules = s.model->packing_rules(3, false);
  s.meter.release_cached();
  const std::int64_t before = s.meter.reserved();
  for (memory::Plan plan : ways(*s.model)) {
    plan.micro_batch = static_cast<int>(shapes.size());
    s.meter.release_cached();
    for (int i = 0; i < 3; ++i) {
      forward_backward(*s.model, model::pack(on.samples, rules, device_.place), recompute_of(plan), 16);
      s.buffers->discard_staging();
    }
    s.meter.synchronize();
    const std::int64_t held = forecast.dry().static_bytes() + kCudaWorkspace;
    const auto said = static_cast<double>(forecast.bytes(plan, device_.total, false).reserved - held);
    ASSERT_GT(said, 200 * kMebibyte) << "or the tolerance hides everything";
    EXPECT_NEAR(static_cast<double>(s.meter.reserved() - before), said, 0.02 * said + 20 * kMebibyte)
        << to_string(plan);
  }
}

}  // namespace
}  // namespace plimsoll::train
