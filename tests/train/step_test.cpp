#include "train/step.h"

#include <gtest/gtest.h>

#include <limits>
#include <optional>
#include <random>
#include <set>

#include "memory/cpu_allocator.h"
#include "memory/dry_run.h"
#include "memory/planning/packing.h"
#include "model/qwen_config.h"
#include "tests/model/late_copies.h"
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

// One micro-batch, really run and dry run: the same allocations in the same order.
void expect_the_same_events(Solo& solo, std::span<const model::StreamSample> samples, const memory::Plan& plan) {
  const auto rules = solo.session.model->packing_rules(3, false);
  const auto real = memory::measured_run(
      [&] { forward_backward(*solo.session.model, model::pack(samples, rules, at::kCPU), recompute_of(plan), 6); },
      true);
  solo.session.buffers->discard_staging();
  const auto dry = solo.session.dry->micro_batch(shape_of(samples), plan);
  const std::size_t common = std::min(real.events().size(), dry.events().size());
  for (std::size_t i = 0; i < common; ++i) {
    ASSERT_EQ(real.events()[i].bytes, dry.events()[i].bytes)
        << "event " << i << ", " << to_string(plan) << "\nreal" << shown(real.events(), i) << "\ndry "
        << shown(dry.events(), i);
  }
  ASSERT_EQ(real.events().size(), dry.events().size());
  EXPECT_EQ(real.peak(), dry.peak());
  EXPECT_EQ(memory::CpuAllocator::install().workspace_overflow(), 0);
}

class DryEqualsReal : public testing::TestWithParam<const char*> {};

// What a step takes from the allocator depends on no number of threads.
constexpr std::array kThreads{1, 2, 3, 5};

TEST_P(DryEqualsReal, TheSameEventsForAWholeMicroBatchOfAnyShape) {
  auto config = tiny_config(model_dir());
  config.model.dtype = GetParam();
  Solo solo(config);
  std::mt19937 random(5);
  std::set<std::vector<std::int64_t>> shapes;
  for (int trial = 0; trial < 24; ++trial) {
    const std::size_t count = 1 + random() % 4;
    memory::Plan plan;
    plan.recompute_blocks = static_cast<int>(random() % 5);
    plan.recompute_expert = static_cast<int>(random() % 3);
    plan.offload = random() % 2 == 0;
    at::set_num_threads(kThreads[static_cast<std::size_t>(trial) % kThreads.size()]);
    std::vector<Sample> loaded;
    for (std::size_t i = 0; i < count; ++i)
      loaded.push_back(solo.source->load(static_cast<std::int64_t>(random() % 36)));
    std::vector<model::StreamSample> samples;
    for (const auto& sample : loaded) samples.push_back({&sample, 100 + samples.size()});
    const auto total = shape_of(samples);
    shapes.insert(
        {total.samples, total.tokens, total.patches, plan.recompute_blocks, plan.recompute_expert, plan.offload});
    expect_the_same_events(solo, samples, plan);
    ASSERT_FALSE(HasFatalFailure()) << "trial " << trial;
  }
  EXPECT_GE(shapes.size(), 20U) << "different shapes";
  at::set_num_threads(1);
}

// Samples of no picture, one, two and three, side by side.
TEST_P(DryEqualsReal, TheSameEventsForAnyMixtureOfPictures) {
  auto config = tiny_config(model_dir());
  config.model.dtype = GetParam();
  Solo solo(config);
  const auto vlm = model::read_qwen_config(config.model.path);
  std::vector<Sample> loaded;
  for (int pictures = 0; pictures <= 3; ++pictures) {
    data::SyntheticOptions options;
    options.samples = 4;
    options.images = pictures;
    options.smallest_side = 28;
    options.largest_side = 56;
    options.chunk = config.expert.chunk;
    options.sensor_window = config.sensor.window;
    options.image_token = vlm.image_token_id;
    options.vision_start_token = vlm.image_token_id - 3;
    options.vision_end_token = vlm.image_token_id - 2;
    options.vocabulary = vlm.image_token_id - 12;
    const auto source = data::make_synthetic_source(options);
    for (std::int64_t i = 0; i < options.samples; ++i) loaded.push_back(source->load(i));
  }
  std::mt19937 random(7);
  std::set<std::int64_t> patches;
  for (int trial = 0; trial < 24; ++trial) {
    std::vector<model::StreamSample> samples;
    // The first four take samples of one kind only.
    const std::size_t count = 1 + random() % 4;
    for (std::size_t i = 0; i < count; ++i)
      samples.push_back({&loaded[trial < 4 ? static_cast<std::size_t>(4 * trial) + i : random() % loaded.size()], i});
    memory::Plan plan;
    plan.recompute_blocks = static_cast<int>(random() % 5);
    plan.recompute_expert = static_cast<int>(random() % 3);
    patches.insert(shape_of(samples).patches);
    expect_the_same_events(solo, samples, plan);
    ASSERT_FALSE(HasFatalFailure()) << "trial " << trial;
  }
  EXPECT_TRUE(patches.contains(0)) << "text alone";
  EXPECT_GE(patches.size(), 8U);
}
INSTANTIATE_TEST_SUITE_P(Dtypes, DryEqualsReal, testing::Values("fp32", "bf16"),
                         [](const auto& cell) { return cell.param; });

// Sampling actions, as evaluation does, is dry-run by the model's own code too.
TEST_P(DryEqualsReal, TheSameEventsForAnEvaluation) {
  auto config = tiny_config(model_dir());
  config.model.dtype = GetParam();
  Solo solo(config);
  const auto rules = solo.session.model->packing_rules(3, true);
  std::mt19937 random(7);
  for (int trial = 0; trial < 6; ++trial) {
    std::vector<Sample> loaded;
    for (std::size_t i = 0, count = 1 + random() % 4; i < count; ++i)
      loaded.push_back(solo.source->load(static_cast<std::int64_t>(random() % 36)));
    std::vector<model::StreamSample> samples;
    for (const auto& sample : loaded) samples.push_back({&sample, 100 + samples.size()});
    const auto real =
        memory::measured_run([&] { solo.session.model->sample_actions(model::pack(samples, rules, at::kCPU)); }, true);
    const auto dry = solo.session.dry->evaluation(shape_of(samples));
    const std::size_t common = std::min(real.events().size(), dry.events().size());
    for (std::size_t i = 0; i < common; ++i) {
      ASSERT_EQ(real.events()[i].bytes, dry.events()[i].bytes)
          << "trial " << trial << ", event " << i << "\nreal" << shown(real.events(), i) << "\ndry "
          << shown(dry.events(), i);
    }
    ASSERT_EQ(real.events().size(), dry.events().size());
    EXPECT_EQ(real.peak(), dry.peak());
  }
}

TEST(DryStep, StaticBytesEqualTheRealModels) {
  const auto config = tiny_config(model_dir());
  auto& meter = memory::CpuAllocator::install();
  meter.set_workspace(0);  // of the sessions before this one
  const auto before = meter.live();
  Solo solo(config);
  EXPECT_EQ(solo.session.meter.live() - before, solo.session.dry->static_bytes() + solo.session.meter.workspace());
}

// Every allocation of a step fails in turn: nothing is held after the drain, every sample is trained once, the result
// is equal to the bit.
void fail_everywhere(Config config, const memory::Plan& plan, int threads) {
  config.batch.effective = 2;
  Solo solo(config);
  at::set_num_threads(threads);
  Session& s = solo.session;
  const auto samples = s.load_share(1, solo.hold);
  StepInput input;
  input.samples = samples;
  input.plan = plan;
  input.plan.micro_batch = 1;  // a failed piece of one fails the step, and the step is replayed whole: bit-equal
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
  const bool every = std::getenv("PLIMSOLL_PROOFS") != nullptr;
  int points = 0;
  for (std::int64_t n = every ? 1 : 1 + threads; n <= allocations; n += every ? 1 : 7) {
    restart();
    ++points;
    s.loader->seek(1 + points);  // its threads fill two steps' samples while this one fails
    memory::CpuAllocator::install().fail_at(n);
    auto result = s.step->run(input);
    ASSERT_EQ(result.verdict.action, ddp::Action::kReplay) << "allocation " << n;
    result = s.step->run(input);
    ASSERT_EQ(result.verdict.action, ddp::Action::kApply);
    ASSERT_TRUE(std::ranges::equal(expected, s.buffers->parameters())) << "allocation " << n;
  }
  memory::CpuAllocator::install().fail_at(0);
  EXPECT_EQ(failures, points);
  EXPECT_EQ(held, 0);
  at::set_num_threads(1);
}

class FailEverywhere : public testing::TestWithParam<std::tuple<int, int>> {};

TEST_P(FailEverywhere, NothingIsLostAndNothingIsHeld) {
  memory::Plan plan;
  plan.recompute_blocks = std::get<0>(GetParam());
  fail_everywhere(tiny_config(model_dir()), plan, std::get<1>(GetParam()));
}
INSTANTIATE_TEST_SUITE_P(Points, FailEverywhere, testing::Combine(testing::Values(0, 2, 4), testing::Values(1, 2, 3)),
                         [](const auto& cell) {
                           return fmt::format("Recompute{}Threads{}", std::get<0>(cell.param), std::get<1>(cell.param));
                         });

// A vision tower with adapters is recomputed like the others.
Config adapted_config() {
  Config config = tiny_config(model_dir());
  config.lora.targets = R"(.*(blocks|layers).*(qkv|q_proj|v_proj|down_proj))";
  return config;
}

memory::Plan every_tower_recomputed(const model::VlaModel& model, bool offload) {
  memory::Plan plan;
  plan.recompute_blocks = model.language_blocks();
  plan.recompute_vision = model.vision_blocks();
  plan.recompute_expert = model.expert_blocks();
  plan.offload = offload;
  return plan;
}

TEST(EveryTower, RecomputedOrOffloadedTrainsTheSame) {
  const auto trained = [](int way) {
    Solo solo(adapted_config());
    solo.session.plan.micro_batch = 2;
    std::optional<model::CopyLate> beside;
    if (way == 3) beside.emplace();
    if (way > 0) {
      EXPECT_GT(solo.session.model->vision_blocks(), 0);
      EXPECT_GT(solo.session.model->expert_blocks(), 0);
      solo.session.plan = every_tower_recomputed(*solo.session.model, way >= 2);
      solo.session.plan.micro_batch = 2;
    }
    return train_steps(solo.session, 4);
  };
  const Trained plain = trained(0);
  for (const int way : {1, 2, 3}) {
    const Trained again = trained(way);
    for (std::size_t i = 0; i < plain.losses.size(); ++i)
      EXPECT_NEAR(again.losses[i] / plain.losses[i], 1.0, 1e-5) << "step " << i + 1;
    EXPECT_LT(relative_l2(again.values, plain.values), 1e-5);
  }
}

// As on a GPU: one block's input more is held, and dry runs know when.
TEST(EveryTower, OffloadedBesideTheComputingTakesTheSameEventsAsADryRun) {
  Solo solo(tiny_config(model_dir()));
  const auto samples = solo.session.load_share(1, solo.hold);
  std::int64_t held = 0;
  for (int blocks = 0; blocks <= solo.session.model->language_blocks(); ++blocks) {
    memory::Plan plan{0, 2, blocks};
    plan.offload = true;
    const std::int64_t before = solo.session.dry->activation_bytes(shape_of(samples), plan);
    const model::CopyLate beside;
    expect_the_same_events(solo, samples, plan);
    ASSERT_FALSE(HasFatalFailure()) << blocks << " blocks";
    held = std::max(held, solo.session.dry->activation_bytes(shape_of(samples), plan) - before);
  }
  EXPECT_GT(held, 0);
}

TEST(EveryTower, OffloadedBesideTheComputingLosesAndHoldsNothingAtAFailureAnywhere) {
  const Config config = adapted_config();
  memory::Plan plan;
  {
    Solo solo(config);
    plan = every_tower_recomputed(*solo.session.model, true);
  }
  const model::CopyLate beside;
  fail_everywhere(config, plan, 1);
}

TEST(EveryTower, RecomputedLosesAndHoldsNothingAtAFailureAnywhere) {
  const Config config = adapted_config();
  memory::Plan plan;
  {
    Solo solo(config);
    plan = every_tower_recomputed(*solo.session.model, true);
  }
  fail_everywhere(config, plan, 1);
}

// A plan holds for the heaviest samples; a step of lighter ones is run in a faster way, within the bytes.
TEST(Step, IsRunInTheFastestWayThatFitsAndTrainsTheSame) {
  std::vector<memory::Candidate> ways;
  for (const int size : {6, 3, 2}) ways.push_back({memory::Plan{0, size}, 1, 1});
  const auto run = [&](std::int64_t bytes, double& loss, const memory::Plan& plan = {0, 1}) {
    Solo solo(tiny_config(model_dir()));
    Session& s = solo.session;
    const auto samples = s.load_share(1, solo.hold);
    StepInput input;
    input.samples = samples;
    input.plan = plan;
    if (bytes > 0) input.fill = {ways, bytes};
    const StepResult result = s.step->run(input);
    loss = result.loss;
    return std::pair(result.guardian, s.meter.live());
  };
  double alone = 0, filled = 0;
  const auto [one_by_one, live] = run(0, alone);
  ASSERT_EQ(one_by_one.micro_batches, 6);
  EXPECT_EQ(run(1, filled).first.micro_batches, 6) << "not even two fit so few bytes";
  const auto largest = run(std::int64_t{1} << 40, filled).first;
  EXPECT_EQ(largest.micro_batches, 1);
  EXPECT_NEAR(filled, alone, 1e-5 * alone);
  const std::int64_t between = (one_by_one.predicted_peak + largest.predicted_peak) / 2 - live;
  const auto some = run(between, filled).first;
  EXPECT_GT(some.micro_batches, 1);
  EXPECT_LT(some.micro_batches, 6);
  EXPECT_LE(some.predicted_peak, live + between);
  EXPECT_EQ(some.splits + some.retries, 0);
  EXPECT_NEAR(filled, alone, 1e-5 * alone);
}

TEST(Step, RecomputesOnlyTheMicroBatchesThatNeedIt) {
  // Predicted peaks of a step of single samples above what is live, and of each sample with nothing recomputed.
  std::vector<std::int64_t> plain;
  const auto run = [&](std::int64_t bytes, double& loss) {
    Solo solo(tiny_config(model_dir()));
    Session& s = solo.session;
    const auto samples = s.load_share(1, solo.hold);
    plain.clear();
    for (const auto& sample : samples) plain.push_back(s.predictor->bytes(shape_of({&sample, 1}), {}));
    const std::vector<memory::Candidate> ways{{memory::Plan{0, 6}, 1, 1}};
    StepInput input;
    input.samples = samples;
    input.plan = {.micro_batch = 1, .recompute_blocks = 2, .recompute_expert = 2};
    if (bytes > 0) input.fill = {ways, bytes};
    const std::int64_t live = s.meter.live();
    const StepResult result = s.step->run(input);
    loss = result.loss;
    EXPECT_EQ(result.guardian.micro_batches, 6);
    std::sort(plain.begin(), plain.end());
    return result.guardian.predicted_peak - live;
  };
  double lean = 0, some = 0;
  const auto lean_peak = run(0, lean);
  ASSERT_LT(lean_peak, plain.back());
  EXPECT_EQ(run(plain.back(), some), plain.back()) << "all fit plain";
  EXPECT_NEAR(some, lean, 1e-5 * lean);
  const auto mixed = run(plain.back() - 1, some);
  EXPECT_LT(mixed, plain.back()) << "the heaviest is recomputed";
  EXPECT_GT(mixed, lean_peak) << "and others are not";
  EXPECT_NEAR(some, lean, 1e-5 * lean);
}

// A share that was to be run in a faster way than the plan's, and did not fit after all, goes on as the plan says.
TEST(Step, KeepsToItsPlanAfterAFasterWayRanOutOfMemory) {
  std::int64_t planned = 0;  // what the plan's heaviest micro-batch needs
  const auto run = [&](int size, bool fail, double& loss) {
    Solo solo(tiny_config(model_dir()));
    Session& s = solo.session;
    const auto samples = s.load_share(1, solo.hold);
    const std::vector<memory::Candidate> ways{{memory::Plan{0, size}, 1, 1}};
    StepInput input;
    input.samples = samples;
    input.plan = {.micro_batch = 1, .recompute_blocks = 2, .recompute_expert = 2};
    input.fill = {ways, std::int64_t{1} << 40};
    planned = 0;
    for (const auto& sample : samples)
      planned = std::max(planned, s.predictor->bytes(shape_of({&sample, 1}), input.plan));
    if (fail) memory::CpuAllocator::install().fail_at(40);
    const std::int64_t live = s.meter.live();
    std::int64_t peak = 0;
    s.step->guardian().after_drain = [&](std::int64_t, std::int64_t) { s.meter.reset_peak(); };
    const StepResult result = s.step->run(input);
    peak = s.meter.peak() - live;
    loss = result.loss;
    EXPECT_TRUE(result.reports.front().other_way);
    EXPECT_TRUE(result.reports.front().other_recompute);
    EXPECT_FALSE(result.guardian.failed);
    return std::pair(result.guardian, peak);
  };
  for (const int size : {6, 1}) {  // a single sample too has the plan left
    double calm = 0, shaken = 0;
    const auto [well, plain_peak] = run(size, false, calm);
    EXPECT_EQ(well.micro_batches, 6 / size);
    EXPECT_GT(plain_peak, planned);
    const auto [guardian, peak] = run(size, true, shaken);
    EXPECT_EQ(guardian.retries, 1);
    EXPECT_EQ(guardian.micro_batches, 6) << "as the plan says";
    EXPECT_LE(peak, planned);
    EXPECT_NEAR(shaken, calm, 1e-5 * calm);
  }
}

// Steps of one run, the weights after them, and what the guardian met on the way.
struct Shaken {
  std::vector<double> losses;
  std::vector<float> values;
  std::int64_t fewest_allocations = std::numeric_limits<std::int64_t>::max();
  int failures = 0, held = 0;
};

// `places`: a failure per step at a random one of that many allocations; 0: none.
Shaken shaken_run(int steps, std::int64_t places, int micro_batch = 3) {
  const auto config = tiny_config(model_dir());
  Solo solo(config);
  Session& s = solo.session;
  std::mt19937 random(11);
  Shaken seen;
  s.step->guardian().after_drain = [&](std::int64_t before, std::int64_t after) {
    ++seen.failures;
    seen.held += before != after;
  };
  StepInput input;
  input.plan = s.plan;
  input.plan.micro_batch = micro_batch;
  for (int step = 1; step <= steps; ++step) {
    const auto samples = s.load_share(step, solo.hold);
    input.step = step;
    input.updates = step - 1;
    input.samples = samples;
    if (places > 0)
      memory::CpuAllocator::install().fail_at(1 +
                                              static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(places)));
    const auto before = s.meter.allocations();
    StepResult result = s.step->run(input);
    while (result.verdict.action == ddp::Action::kReplay) result = s.step->run(input);
    seen.fewest_allocations = std::min(seen.fewest_allocations, s.meter.allocations() - before);
    EXPECT_EQ(s.buffers->extra()[1], 6.0F) << "samples counted in step " << step;
    seen.losses.push_back(result.loss);
  }
  const auto values = s.buffers->parameters();
  seen.values.assign(values.begin(), values.end());
  return seen;
}

// The largest relative difference of a loss among the first steps.
double drift(const Shaken& run, const Shaken& calm, int steps) {
  double most = 0;
  for (std::size_t i = 0; i < static_cast<std::size_t>(steps); ++i)
    most = std::max(most, std::abs(run.losses[i] / calm.losses[i] - 1.0));
  return most;
}

// A replay in halves sums in another order, and training carries every rounding on and enlarges it: within the first
// steps hardly; within a thousand as far as another cut of the same samples, without any failure, drifts too.
TEST(Guardian, AThousandFailuresAtRandomPlacesInOneRun) {
  const int few = 40;
  const int steps = std::getenv("PLIMSOLL_PROOFS") != nullptr ? 1000 : few;
  const Shaken calm = shaken_run(steps, 0);
  ASSERT_EQ(calm.failures, 0);
  // Every step has at least so many allocations, both micro-batches together: no failure misses.
  const Shaken shaken = shaken_run(steps, calm.fewest_allocations);
  EXPECT_EQ(shaken.failures, steps);
  EXPECT_EQ(shaken.held, 0);
  EXPECT_LT(drift(shaken, calm, few), 5e-5);
  if (steps == few) {
    EXPECT_LT(relative_l2(shaken.values, calm.values), 5e-5);
    return;
  }
  const Shaken otherwise_cut = shaken_run(steps, 0, 2);
  EXPECT_LT(drift(shaken, calm, steps), 4 * drift(otherwise_cut, calm, steps));
  EXPECT_LT(relative_l2(shaken.values, calm.values), 4 * relative_l2(otherwise_cut.values, calm.values));
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

// What a plan was judged on holds for every micro-batch that a rank draws, whatever the sizes.
TEST(Step, DrawsNoMicroBatchThatIsHeavierThanThePlanWasJudgedOn) {
  auto config = tiny_config(model_dir());
  config.train.max_steps = 12;
  Solo solo(config);
  Session& s = solo.session;
  bool reordered = false;
  for (int step = 1; step <= 12; ++step) {
    StepInput input;
    input.step = step;
    input.plan = s.plan;
    input.plan.micro_batch = 1 + step % 4;
    const auto samples = s.load_share(step, solo.hold);
    input.samples = samples;
    const auto most = s.draws_at(0).heaviest(input.plan.micro_batch);
    std::vector<std::int64_t> weights, tokens, patches;
    for (const auto& sample : samples) {
      const SampleShape shape = sample.sample->shape();
      weights.push_back(memory::weight_of(shape));
      tokens.push_back(shape.tokens);
      patches.push_back(shape.patches);
    }
    const auto size = static_cast<std::size_t>(input.plan.micro_batch);
    const auto order = memory::balanced_order(weights, size);
    reordered = reordered || !std::is_sorted(order.begin(), order.end());
    EXPECT_LE(memory::heaviest_micro_batch(tokens, order, size), most.tokens);
    EXPECT_LE(memory::heaviest_micro_batch(patches, order, size), most.patches);
    const std::int64_t judged = s.predicted_peak(input.plan);
    EXPECT_LE(s.step->run(input).guardian.predicted_peak, judged) << "step " << step;
  }
  EXPECT_TRUE(reordered) << "the samples are of different sizes";
  // Steps differ in weight, and what holds for the run holds for each of those that are looked at.
  Draws& draws = s.draws_at(0);
  EXPECT_EQ(draws.looked(), 12U);
  std::set<std::int64_t> seen;
  for (std::size_t step = 0; step < draws.looked(); ++step) {
    EXPECT_TRUE(memory::holds(draws.heaviest(2), draws.heaviest(step, 2)));
    seen.insert(draws.heaviest(step, 2).tokens);
  }
  EXPECT_GT(seen.size(), 1U);
  EXPECT_EQ(*seen.rbegin(), draws.heaviest(2).tokens);
}

// Two slots' gradients of one value each, in the whole buffer's first elements.
at::Tensor filled(const Session& session, std::size_t slot, float value) {
  const auto range = session.buffers->slots()[slot].range;
  return at::full({range.end - range.begin}, value);
}

float first_of(const Session& session, std::size_t slot) {
  return session.buffers->gradients()[static_cast<std::size_t>(session.buffers->slots()[slot].range.begin)];
}

TEST(FlatBuffers, CommitsOnTopOfWhatIsCommittedAndKeepsWhatNoGradientReached) {
  Solo solo(tiny_config(model_dir()));
  FlatBuffers& buffers = *solo.session.buffers;
  buffers.start_step();
  buffers.extra()[0] = 7;
  buffers.stage(0, filled(solo.session, 0, 1.5F));
  buffers.commit_staging();
  EXPECT_EQ(first_of(solo.session, 0), 1.5F);
  EXPECT_EQ(first_of(solo.session, 1), 0.0F);
  EXPECT_EQ(buffers.extra()[0], 7.0F);
  buffers.stage(1, filled(solo.session, 1, 2.0F));
  buffers.stage(1, filled(solo.session, 1, 0.5F));  // twice in one micro-batch
  buffers.commit_staging();
  EXPECT_EQ(first_of(solo.session, 0), 1.5F);
  EXPECT_EQ(first_of(solo.session, 1), 2.5F);
  buffers.start_step();
  EXPECT_EQ(first_of(solo.session, 0), 0.0F) << "a step that commits nothing sums zeros";
  EXPECT_EQ(buffers.extra()[0], 0.0F);
}

TEST(FlatBuffers, ForgetsWhatIsDiscarded) {
  Solo solo(tiny_config(model_dir()));
  FlatBuffers& buffers = *solo.session.buffers;
  buffers.start_step();
  buffers.stage(0, filled(solo.session, 0, 1.0F));
  buffers.commit_staging();
  buffers.stage(0, filled(solo.session, 0, std::numeric_limits<float>::infinity()));
  EXPECT_FALSE(buffers.staging_finite());
  buffers.discard_staging();
  EXPECT_TRUE(buffers.staging_finite());
  EXPECT_EQ(first_of(solo.session, 0), 1.0F);
  buffers.stage(0, filled(solo.session, 0, 3.0F));
  buffers.commit_staging();
  EXPECT_EQ(first_of(solo.session, 0), 4.0F);
}

// Sizes that no number of threads cuts evenly: pieces must begin where the vector stores may write.
TEST(FlatBuffers, SumsTheSameOnAnyNumberOfThreads) {
  memory::CpuAllocator::install();
  const int before = at::get_num_threads();
  std::vector<model::Parameter> parameters;
  std::vector<at::Tensor> gradients;
  for (const std::int64_t elements : {1, 17, 8193, 16386, 65536, 70001}) {
    parameters.push_back(
        {fmt::format("p{}", elements), at::zeros({elements}).set_requires_grad(true), model::ParameterGroup::kExpert});
    gradients.push_back(at::randn({elements}));
  }
  FlatBuffers buffers(parameters, 4);
  for (const int threads : {1, 2, 3, 5, 7}) {
    at::set_num_threads(threads);
    buffers.start_step();
    for (int micro_batch = 0; micro_batch < 2; ++micro_batch) {
      for (std::size_t slot = 0; slot < gradients.size(); ++slot) buffers.stage(slot, gradients[slot]);
      EXPECT_TRUE(buffers.staging_finite());
      buffers.commit_staging();
    }
    for (std::size_t slot = 0; slot < gradients.size(); ++slot) {
      const auto sums = part(buffers.gradients(), buffers.slots()[slot].range);
      const at::Tensor doubled = gradients[slot] + gradients[slot];
      EXPECT_TRUE(std::ranges::equal(sums, std::span(doubled.const_data_ptr<float>(), sums.size())))
          << parameters[slot].name << " on " << threads << " threads";
    }
    buffers.stage(5, at::full({70001}, std::numeric_limits<float>::infinity()));
    EXPECT_FALSE(buffers.staging_finite());
  }
  at::set_num_threads(before);
}

TEST(FlatBuffers, TakesAGradientWhoseMemoryIsInAnotherOrder) {
  Solo solo(tiny_config(model_dir()));
  FlatBuffers& buffers = *solo.session.buffers;
  std::size_t slot = 0;
  const auto parameters = solo.session.model->parameters();
  while (parameters[slot].tensor.dim() != 2) ++slot;
  const auto sizes = parameters[slot].tensor.sizes();
  const at::Tensor gradient = at::randn({sizes[1], sizes[0]}).t();
  const at::Tensor doubled = (gradient + gradient).contiguous();
  buffers.start_step();
  for (int micro_batch = 0; micro_batch < 2; ++micro_batch) {
    buffers.stage(slot, gradient);
    buffers.commit_staging();
  }
  const auto range = buffers.slots()[slot].range;
  const auto sums = buffers.gradients().subspan(static_cast<std::size_t>(range.begin));
  EXPECT_TRUE(std::equal(doubled.data_ptr<float>(), doubled.data_ptr<float>() + doubled.numel(), sums.begin()));
  at::Tensor broken = gradient.clone().t().contiguous().t();
  broken.index_put_({0, 1}, std::numeric_limits<float>::quiet_NaN());
  buffers.stage(slot, broken);
  EXPECT_FALSE(buffers.staging_finite());
}

TEST(FlatBuffers, SeesAParameterWhoseGradientGoesElsewhere) {
  auto config = tiny_config(model_dir());
  Solo solo(config);
  const at::Tensor tensor = solo.session.model->parameters().front().tensor;
  torch::autograd::impl::set_grad_accumulator(tensor, {});
  EXPECT_THROW(solo.session.buffers->check_sinks(), Error);
}

}  // namespace
}  // namespace plimsoll::train
