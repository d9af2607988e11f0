#include "train/step.h"

#include <gtest/gtest.h>

#include <random>

#include "memory/dry_run.h"
#include "tests/train/tiny_run.h"
#include "train/source.h"

namespace plimsoll::train {
namespace {

const std::string& model_dir() {
  static const std::string dir = [] {
    memory::CpuAllocator::install();
    const std::string path = testing::TempDir() + "plimsoll-step-test";
    write_tiny_model(path);
    return path;
  }();
  return dir;
}

// A session of one process with everything that a test changes.
struct Solo {
  explicit Solo(const Config& wanted)
      : config(wanted),
        source(make_source(config)),
        communicator(ddp::make_solo()),
        session(config, *communicator, *source) {}
  Config config;
  std::unique_ptr<data::SampleSource> source;
  std::unique_ptr<ddp::Communicator> communicator;
  Session session;
  std::vector<std::shared_ptr<const Sample>> hold;
};

std::string shown(const std::vector<memory::Event>& events, std::size_t at) {
  std::string text;
  for (std::size_t i = at < 5 ? 0 : at - 5; i < std::min(events.size(), at + 5); ++i) {
    text += fmt::format("{}{:+d} {}", i == at ? " >> " : "  ", events[i].bytes, events[i].label);
  }
  return text;
}

class DryEqualsReal : public testing::TestWithParam<const char*> {};

TEST_P(DryEqualsReal, TheSameEventsForAWholeMicroBatchOfAnyShape) {
  auto config = tiny_config(model_dir());
  config.model.dtype = GetParam();
  Solo solo(config);
  const auto rules = solo.session.model->packing_rules(3, false);
  std::mt19937 random(5);
  for (int trial = 0; trial < 12; ++trial) {
    const std::size_t count = 1 + random() % 4;
    const int recompute = static_cast<int>(random() % 5);
    at::set_num_threads(1 + trial % 2);
    std::vector<Sample> loaded;
    for (std::size_t i = 0; i < count; ++i)
      loaded.push_back(solo.source->load(static_cast<std::int64_t>(random() % 36)));
    std::vector<model::StreamSample> samples;
    for (const auto& sample : loaded) samples.push_back({&sample, 100 + samples.size()});
    const auto real = memory::measured_run(
        [&] { forward_backward(*solo.session.model, model::pack(samples, rules, at::kCPU), {recompute}, 6); }, true);
    solo.session.buffers->clear_staging();
    const auto dry = solo.session.dry->micro_batch(shape_of(samples), recompute);
    const std::size_t common = std::min(real.events().size(), dry.events().size());
    for (std::size_t i = 0; i < common; ++i) {
      ASSERT_EQ(real.events()[i].bytes, dry.events()[i].bytes)
          << "trial " << trial << ", event " << i << ", recompute " << recompute << "\nreal" << shown(real.events(), i)
          << "\ndry " << shown(dry.events(), i);
    }
    ASSERT_EQ(real.events().size(), dry.events().size());
    EXPECT_EQ(real.peak(), dry.peak());
    EXPECT_EQ(solo.session.meter.workspace_overflow(), 0);
  }
  at::set_num_threads(1);
}
INSTANTIATE_TEST_SUITE_P(Dtypes, DryEqualsReal, testing::Values("fp32", "bf16"),
                         [](const auto& cell) { return cell.param; });

TEST(DryStep, StaticBytesEqualTheRealModels) {
  const auto config = tiny_config(model_dir());
  const auto before = memory::CpuAllocator::install().live();
  Solo solo(config);
  EXPECT_EQ(solo.session.meter.live() - before, solo.session.dry->static_bytes() + solo.session.meter.workspace());
}

// Every allocation of a step fails in turn: nothing is held after the drain, every sample is trained once, the result
// is equal to the bit.
class FailEverywhere : public testing::TestWithParam<std::tuple<int, int>> {};

TEST_P(FailEverywhere, NothingIsLostAndNothingIsHeld) {
  const auto [recompute, threads] = GetParam();
  auto config = tiny_config(model_dir());
  config.batch.effective = 2;
  Solo solo(config);
  at::set_num_threads(threads);
  Session& s = solo.session;
  const auto samples = s.load_share(1, solo.hold);
  StepInput input;
  input.samples = samples;
  input.plan = s.plan;
  input.plan.micro_batch = 1;  // a failed piece of one fails the step, and the step is replayed whole: bit-equal
  input.plan.recompute_blocks = recompute;
  const std::vector<float> weights(s.buffers->parameters().begin(), s.buffers->parameters().end());
  const auto restart = [&] {
    std::ranges::copy(weights, s.buffers->parameters().begin());
    std::ranges::fill(s.buffers->first_moment(), 0.0F);
    std::ranges::fill(s.buffers->second_moment(), 0.0F);
  };
  s.step->run(input);
  const std::vector<float> expected(s.buffers->parameters().begin(), s.buffers->parameters().end());
  restart();
  const auto start = s.meter.allocations();
  s.step->run(input);
  const auto allocations = s.meter.allocations() - start;
  int held = 0, failures = 0;
  s.step->guardian().after_drain = [&](std::int64_t before, std::int64_t after) {
    ++failures;
    held += before != after;
  };
  // A slice of all points unless the proofs ask for every one.
  const std::int64_t stride = std::getenv("PLIMSOLL_PROOFS") != nullptr ? 1 : 7;
  int points = 0;
  for (std::int64_t n = 1 + threads; n <= allocations; n += stride) {
    restart();
    ++points;
    s.meter.fail_at(n);
    auto result = s.step->run(input);
    ASSERT_EQ(result.verdict.action, ddp::Action::kReplay) << "allocation " << n;
    result = s.step->run(input);
    ASSERT_EQ(result.verdict.action, ddp::Action::kApply);
    ASSERT_TRUE(std::ranges::equal(expected, s.buffers->parameters())) << "allocation " << n;
  }
  s.meter.fail_at(0);
  EXPECT_EQ(failures, points);
  EXPECT_EQ(held, 0);
  at::set_num_threads(1);
}
INSTANTIATE_TEST_SUITE_P(Points, FailEverywhere, testing::Combine(testing::Values(0, 2, 4), testing::Values(1, 2)),
                         [](const auto& cell) {
                           return fmt::format("Recompute{}Threads{}", std::get<0>(cell.param), std::get<1>(cell.param));
                         });

TEST(Guardian, AThousandFailuresAtRandomPlacesInOneRun) {
  auto config = tiny_config(model_dir());
  Solo solo(config);
  Session& s = solo.session;
  const int steps = std::getenv("PLIMSOLL_PROOFS") != nullptr ? 1000 : 40;
  std::mt19937 random(11);
  int held = 0, failures = 0;
  s.step->guardian().after_drain = [&](std::int64_t before, std::int64_t after) {
    ++failures;
    held += before != after;
  };
  StepInput input;
  input.plan = s.plan;
  input.plan.micro_batch = 3;
  for (int step = 1; step <= steps; ++step) {
    const auto samples = s.load_share(step, solo.hold);
    input.step = step;
    input.updates = step - 1;
    input.samples = samples;
    s.meter.fail_at(1 + static_cast<std::int64_t>(random() % 300));
    StepResult result = s.step->run(input);
    while (result.verdict.action == ddp::Action::kReplay) result = s.step->run(input);
    ASSERT_EQ(s.buffers->extra()[1], 6.0F) << "samples counted in step " << step;
  }
  EXPECT_EQ(failures, steps);
  EXPECT_EQ(held, 0);
}

TEST(Step, AValueThatIsNotFiniteSkipsTheUpdateAndNamesTheSample) {
  auto config = tiny_config(model_dir());
  Solo solo(config);
  Session& s = solo.session;
  auto samples = s.load_share(1, solo.hold);
  Sample broken = *samples[4].sample;
  broken.actions[0] = std::numeric_limits<float>::quiet_NaN();
  samples[4].sample = &broken;
  StepInput input;
  input.samples = samples;
  input.plan = s.plan;
  const std::vector<float> before(s.buffers->parameters().begin(), s.buffers->parameters().end());
  const StepResult result = s.step->run(input);
  EXPECT_EQ(result.verdict.action, ddp::Action::kSkip);
  EXPECT_EQ(result.reports[0].sample_index, broken.index);
  EXPECT_TRUE(std::ranges::equal(before, s.buffers->parameters()));
  s.step->run(input);
  const StepResult third = s.step->run(input);  // the third in a row ends the job
  ASSERT_TRUE(third.fatal);
  EXPECT_EQ(third.fatal->code(), ExitCode::kData);
}

TEST(FlatBuffers, SeesAGradientThatIsNoLongerAView) {
  auto config = tiny_config(model_dir());
  Solo solo(config);
  at::Tensor tensor = solo.session.model->parameters().front().tensor;
  tensor.mutable_grad() = at::Tensor();
  EXPECT_THROW(solo.session.buffers->check_views(), Error);
}

}  // namespace
}  // namespace plimsoll::train
