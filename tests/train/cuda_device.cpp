// What a plan means on a GPU: offloaded or not it trains the same, and its bytes are those that dry runs and the model
// of the caching allocator say.
#include <dlfcn.h>
#include <gmock/gmock.h>

#include <filesystem>

#include "core/error.h"
#include "core/file.h"
#include "memory/planning/caching_allocator.h"
#include "tests/memory/planning/allocator_cases.h"
#include "tests/train/tiny_run.h"
#include "train/forecast.h"
#include "train/source.h"

namespace plimsoll::train {
namespace {

constexpr double kMebibyte = 1 << 20;

std::filesystem::path device_library() {
  return std::filesystem::read_symlink("/proc/self/exe").parent_path() / kDeviceLibraryFile;
}

// What the library has for these checks alone (train/cuda/library.cpp).
template <class Function>
Function in_library(const char* name) {
  void* handle = dlopen(device_library().c_str(), RTLD_NOW | RTLD_GLOBAL);
  return handle == nullptr ? nullptr : reinterpret_cast<Function>(dlsym(handle, name));
}

class OnAGpu : public testing::Test {
 protected:
  void SetUp() override {
    const auto library = device_library();
    if (!std::filesystem::exists(library)) GTEST_SKIP() << library << " was not built: no nvcc was found";
    if (count_gpus() == 0) GTEST_SKIP() << "no GPU: nothing ran on one";
    static const Device opened = [] {
      in_library<void (*)(int)>("plimsoll_record_allocations")(0);  // from the first one of the process on
      return open_device("cuda", 0);
    }();
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
    const auto measured = static_cast<double>(s.meter.peak_live() - before);
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
    EXPECT_EQ(result.failed.forward + result.failed.backward, result.guardian.retries);
    EXPECT_EQ(left.empty(), after < 0) << "after " << after << " allocations";
    EXPECT_THAT(left, testing::Each(0)) << "after " << after << " allocations";
    EXPECT_NEAR(result.loss, undisturbed, 1e-3 * undisturbed) << "after " << after << " allocations";
  }
}

// Allocations of forward are counted first, so that the budget falls behind them.
TEST_F(OnAGpu, AFailureInBackwardIsSaidToBeOne) {
  OnDevice on(wide_config(), device_);
  Session& s = on.session;
  const memory::Plan plan{0, static_cast<int>(on.samples.size())};
  const std::int64_t start = s.meter.allocations();
  {
    const auto rules = s.model->packing_rules(3, false);
    s.model->sample_losses(model::pack(on.samples, rules, device_.place), recompute_of(plan));
  }
  const std::int64_t forward = s.meter.allocations() - start;
  StepInput input;
  input.samples = on.samples;
  input.plan = plan;
  s.meter.release_cached();
  const std::int64_t half = s.dry->activation_bytes(shape_of(on.samples), plan) / 2;
  s.meter.change_budget_after(forward + 5, s.meter.reserved() + half);
  const StepResult result = s.step->run(input);
  s.meter.set_budget(device_.total);
  EXPECT_GE(result.failed.backward, 1);
}

// What nobody uses goes back to the card, where a neighbour may want it.
TEST_F(OnAGpu, ALowerBudgetGivesUnusedBlocksBack) {
  OnDevice on(wide_config(), device_);
  Session& s = on.session;
  StepInput input;
  input.samples = on.samples;
  input.plan = {0, static_cast<int>(on.samples.size())};
  s.step->run(input);
  s.meter.synchronize();
  const std::int64_t held = s.meter.reserved(), available = device_.available();
  const std::int64_t lower = s.meter.live() + (held - s.meter.live()) / 2;
  s.meter.set_budget(lower);
  EXPECT_LE(s.meter.reserved(), lower);
  EXPECT_GE(device_.available(), available + held - lower);
  s.meter.set_budget(device_.total);
}

// The budget is fixed after kernels and communicators have taken what they keep.
TEST_F(OnAGpu, WhatIsHeldOutsideOfTheAllocatorIsTakenOffACardsSize) {
  Config config = wide_config();
  const std::int64_t card = device_.total / 2;
  config.memory.card = std::to_string(card);
  config.memory.budget = "auto";
  OnDevice on(config, device_);
  EXPECT_GT(device_.overhead(), 0);
  EXPECT_NEAR(static_cast<double>(on.session.budget), static_cast<double>(card - device_.overhead()), kMebibyte);
  StepInput input;
  input.samples = on.samples;
  input.plan = on.session.plan;
  on.session.step->run(input);
  EXPECT_LE(on.session.meter.reserved() + device_.overhead(), card);
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

// Plans are judged by what a run reserves and not only by what is live.
TEST_F(OnAGpu, APredictedPeakIsWhatIsReserved) {
  OnDevice on(wide_config(), device_);
  Session& s = on.session;
  const auto rules = s.model->packing_rules(3, false);
  for (const memory::Plan& plan : ways(*s.model)) {
    s.meter.release_cached();
    s.meter.reset_peak();
    const auto predicted = static_cast<double>(s.meter.live() + s.predictor->bytes(shape_of(on.samples), plan));
    for (int i = 0; i < 3; ++i) {
      forward_backward(*s.model, model::pack(on.samples, rules, device_.place), recompute_of(plan), 16);
      s.buffers->discard_staging();
    }
    s.meter.synchronize();
    EXPECT_GE(predicted, static_cast<double>(s.meter.peak())) << to_string(plan);
    EXPECT_GE(s.meter.peak(), s.meter.peak_live());
    EXPECT_GE(s.meter.reserved(), s.meter.peak());
    EXPECT_NEAR(predicted / static_cast<double>(s.meter.reserved()), 1.0, 0.05) << to_string(plan);
  }
}

class RealAllocator : public OnAGpu, public testing::WithParamInterface<memory::AllocatorCase> {};

// The same lists that the model is held against.
TEST_P(RealAllocator, DoesWhatItsModelDoes) {
  const memory::AllocatorCase& one = GetParam();
  using Replay = void (*)(const memory::AllocatorEvent*, std::size_t, std::int64_t, memory::AllocatorStats*);
  const auto replay = in_library<Replay>("plimsoll_replay_allocations");
  ASSERT_NE(replay, nullptr);
  memory::AllocatorStats stats;
  replay(one.events.data(), one.events.size(), one.limit.value_or(-1), &stats);
  device_.memory->take_failed_request();
  memory::expect_as_by_hand(stats, one);
}

INSTANTIATE_TEST_SUITE_P(Rules, RealAllocator, testing::ValuesIn(memory::allocator_cases()),
                         [](const auto& one) { return one.param.name; });

// All that the process has allocated so far, steps of three ways last, through the model. Which of two blocks of one
// size serves a request is the driver's addresses' to say, so that it may drift a little.
TEST_F(OnAGpu, ARecordedRunThroughTheModelReservesWhatTheAllocatorDoes) {
  OnDevice on(wide_config(), device_);
  for (const memory::Plan& plan : ways(*on.session.model)) {
    StepInput input;
    input.samples = on.samples;
    input.plan = plan;
    on.session.step->run(input);
  }
  on.session.meter.synchronize();
  using Recorded = std::size_t (*)(memory::AllocatorEvent*, std::size_t);
  const auto recorded = in_library<Recorded>("plimsoll_recorded_allocations");
  ASSERT_NE(recorded, nullptr);
  std::vector<memory::AllocatorEvent> events(recorded(nullptr, 0));
  ASSERT_EQ(recorded(events.data(), events.size()), events.size());
  ASSERT_GT(events.size(), 1000U);
  memory::CachingAllocatorModel model;
  EXPECT_TRUE(model.replay(events));
  const auto live = static_cast<double>(on.session.meter.live());
  const auto reserved = static_cast<double>(on.session.meter.reserved());
  EXPECT_NEAR(static_cast<double>(model.stats().allocated), live, 0.001 * live + kMebibyte);
  EXPECT_NEAR(static_cast<double>(model.stats().reserved), reserved, 0.01 * reserved + 2 * kMebibyte);
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
