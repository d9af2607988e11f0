// Budgets on reserved bytes: what a GPU's caching allocator does to predictions, plans and steps, on a made-up one.
#include <gmock/gmock.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "core/bytes.h"
#include "ddp/communicator.h"
#include "memory/cpu_allocator.h"
#include "tests/error_of.h"
#include "tests/train/caching_device.h"
#include "tests/train/tiny_run.h"
#include "train/loop.h"
#include "train/options.h"
#include "train/run_log.h"
#include "train/source.h"

namespace plimsoll::train {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kCard = 1_GiB;

// Samples of many shapes: pictures of 56 to 112 px, texts of 8 to 40 tokens.
Config reserved_config() {
  memory::CpuAllocator::install();
  static const std::string dir = [] {
    const std::string path = testing::TempDir() + "plimsoll-reserved-budget-test";
    write_tiny_model(path);
    return path;
  }();
  Config config = tiny_config(dir);
  config.memory.budget = "512MiB";
  config.memory.workspace = "1MiB";
  config.train.eval_samples = 0;
  return config;
}

Config predictive(Config config) {
  config.memory.policy = "predictive";
  config.memory.recompute = config.memory.offload = config.batch.micro = "auto";
  config.memory.calibration = config.memory.table = "off";
  config.memory.adjustment_frequency = 4;
  config.train.max_steps = 16;
  return config;
}

/// A session on a made-up card, and its samples.
struct OnCard {
  explicit OnCard(const Config& wanted, std::int64_t outside = 0, std::int64_t after_backward = 0)
      : config(wanted), source(make_source(config)), communicator(ddp::make_solo()), card(kCard) {
    card.hold_outside(outside, after_backward);
    session = std::make_unique<Session>(config, *communicator, *source, card.device());
  }

  std::vector<model::StreamSample> share() { return session->load_share(1, hold); }
  StepResult step(std::span<const model::StreamSample> samples, const memory::Plan& plan) {
    StepInput input;
    input.step = ++steps;
    input.updates = steps - 1;
    input.samples = samples;
    input.plan = plan;
    return session->step->run(input);
  }
  /// Leaves so many pieces of 16 MiB reserved that nobody uses.
  static void leave_unused(int pieces) {
    std::vector<at::Tensor> all;
    for (int i = 0; i < pieces; ++i) all.push_back(at::empty({static_cast<std::int64_t>(16_MiB)}, at::kByte));
  }

  Config config;
  std::unique_ptr<data::SampleSource> source;
  std::unique_ptr<ddp::Communicator> communicator;
  CachingDevice card;
  std::unique_ptr<Session> session;
  std::vector<std::shared_ptr<const Sample>> hold;
  std::int64_t steps = 0;
};

std::vector<memory::Plan> ways(const model::VlaModel& model) {
  const memory::Plan plain{0, 6};
  memory::Plan recomputed = plain;
  recomputed.recompute_blocks = model.language_blocks();
  recomputed.recompute_expert = model.expert_blocks();
  memory::Plan offloaded = recomputed;
  offloaded.offload = true;
  return {plain, recomputed, offloaded};
}

// The micro-batches of a run in steady state, from an allocator that holds nothing unused.
TEST(ReservedBudget, PredictionsAreWhatTheAllocatorReserves) {
  OnCard on(reserved_config());
  Session& s = *on.session;
  const auto share = on.share();
  const auto rules = s.model->packing_rules(3, false);
  std::int64_t most_unused = 0;
  for (const memory::Plan& plan : ways(*s.model)) {
    for (const std::size_t count : {std::size_t{1}, std::size_t{3}, share.size()}) {
      const auto samples = std::span(share).first(count);
      on.card.release_cached();
      on.card.reset_peak();
      const std::int64_t predicted = on.card.live() + s.predictor->bytes(shape_of(samples), plan);
      const std::int64_t live = on.card.live() + s.dry->activation_bytes(shape_of(samples), plan);
      for (int i = 0; i < 3; ++i) {
        forward_backward(*s.model, model::pack(samples, rules, at::kCPU), recompute_of(plan), 6);
        s.buffers->discard_staging();
      }
      const memory::AllocatorStats stats = on.card.stats();
      EXPECT_GE(predicted, stats.peak_reserved) << count << " samples, " << to_string(plan);
      EXPECT_LE(predicted, stats.peak_reserved + 4_MiB) << count << " samples, " << to_string(plan);
      EXPECT_GE(on.card.peak(), on.card.peak_live());
      most_unused = std::max(most_unused, predicted - live);
    }
  }
  EXPECT_GT(most_unused, 1_MiB) << "or live bytes would have served";
}

TEST(ReservedBudget, ADeviceThatReservesNothingPredictsLiveBytes) {
  const Config config = reserved_config();
  const auto source = make_source(config);
  const auto communicator = ddp::make_solo();
  Session session(config, *communicator, *source);
  std::vector<std::shared_ptr<const Sample>> hold;
  const auto samples = session.load_share(1, hold);
  EXPECT_FALSE(session.meter.reserves());
  EXPECT_EQ(session.predictor->bytes(shape_of(samples), {}), session.dry->activation_bytes(shape_of(samples), {}));
}

std::vector<nlohmann::json> lines_of(const fs::path& path) {
  std::vector<nlohmann::json> all;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) all.push_back(nlohmann::json::parse(line));
  return all;
}

void run_to_the_end(Session& session) {
  fs::remove_all(session.config.run.dir);
  session.resume(false);
  RunLog log(session, 0);
  EXPECT_EQ(Loop(session, log).run().code, ExitCode::kDone);
}

// A budget in which a half of the share fits as it is, and samples of other shapes in every step.
TEST(ReservedBudget, APlanSettlesWhileShapesChange) {
  Config config = predictive(reserved_config());
  std::int64_t half = 0;
  {
    OnCard probe(config);
    half = probe.session->predicted_peak({0, 3});
  }
  const std::int64_t budget = half * 100 / 85 + 4096;
  config.memory.budget = std::to_string(budget);
  OnCard on(config);
  run_to_the_end(*on.session);
  EXPECT_LE(on.card.most_reserved(), budget);
  const auto metrics = lines_of(fs::path(config.run.dir) / "metrics.jsonl");
  ASSERT_EQ(metrics.size(), 16U);
  for (const auto& line : metrics) {
    const auto& rank = line["memory"].at(0);
    EXPECT_EQ(rank["retries"], 0) << line["step"];
    EXPECT_GT(rank["predicted"], 0) << line["step"];
    EXPECT_LE(rank["peak"].get<std::int64_t>(), budget) << line["step"];
  }
  const auto decisions = lines_of(fs::path(config.run.dir) / "decisions.jsonl");
  ASSERT_FALSE(decisions.empty());
  for (const auto& line : decisions) {
    const bool late = line["step"].get<int>() > 8;
    EXPECT_FALSE(late && line["changed"].get<bool>()) << "after two windows: " << line["reason"];
  }
  EXPECT_EQ(decisions.back()["settled"], true) << decisions.back()["reason"];
}

// The card is full of what nobody uses, which the allocator gives back and goes on.
TEST(ReservedBudget, ARetryInsideTheAllocatorAloneShrinksNoPlan) {
  Config config = reserved_config();
  config.memory.adjustment_frequency = 1;
  OnCard on(config);
  const auto samples = on.share();
  ASSERT_EQ(on.session->plan.micro_batch, 6) << "or the policy would let it grow";
  OnCard::leave_unused(3);
  on.card.set_budget(on.card.reserved());
  const StepResult result = on.step(samples, on.session->plan);
  EXPECT_GE(result.reports.at(0).allocator_retries, 1);
  EXPECT_EQ(result.guardian.retries, 0);
  const auto decision = on.session->controller->observe(1, result.reports, result.verdict, on.session->plan);
  ASSERT_TRUE(decision);
  EXPECT_GE(decision->allocator_retries, 1) << "it is shown";
  EXPECT_FALSE(decision->changed) << decision->reason;
  EXPECT_NE(decision->cause, memory::Cause::kRetry) << decision->reason;
}

TEST(ReservedBudget, AWindowsEndGivesBackWhatThePlanDoesNotNeed) {
  Config config = predictive(reserved_config());
  config.train.max_steps = 4;
  OnCard on(config);
  OnCard::leave_unused(20);
  const std::int64_t needed = on.session->predicted_peak(on.session->plan);
  ASSERT_GT(on.card.reserved(), needed);
  run_to_the_end(*on.session);
  EXPECT_LE(on.card.reserved(), needed);
}

/// The loss of the second of two steps under the plan, before which `disturb` is called.
StepResult second_step(const Config& config, const memory::Plan& plan,
                       const std::function<void(OnCard&, std::span<const model::StreamSample>)>& disturb,
                       std::int64_t* reserved = nullptr) {
  OnCard on(config);
  const auto share = on.share();
  on.step(share, plan);
  disturb(on, share);
  StepResult result = on.step(share, plan);
  if (reserved != nullptr) *reserved = on.card.reserved();
  return result;
}

void nothing(OnCard&, std::span<const model::StreamSample>) {}

// A request that is served from what is held already fails under no budget: what a neighbour wants is given back at the
// next micro-batch.
TEST(ReservedBudget, ABudgetThatFallsInTheMiddleOfAStepGivesUnusedBytesBack) {
  const Config config = reserved_config();
  const memory::Plan plan{0, 2};
  const double loss = second_step(config, plan, nothing).loss;
  std::int64_t lower = 0, reserved = 0;
  const auto disturb = [&](OnCard& on, auto) {
    lower = on.card.reserved() + 8_MiB;  // all that the plan needs
    OnCard::leave_unused(4);
    ASSERT_GT(on.card.reserved(), lower);
    on.card.change_budget_after(20, lower);
  };
  const StepResult result = second_step(config, plan, disturb, &reserved);
  EXPECT_LE(reserved, lower);
  EXPECT_EQ(result.guardian.retries, 0);
  EXPECT_EQ(result.reports.at(0).budget_bytes, lower);
  EXPECT_NEAR(result.loss, loss, 1e-5 * loss);
}

TEST(ReservedBudget, WhatDoesNotFitTheNewBudgetIsReplayedAndNothingIsLost) {
  const Config config = reserved_config();
  const memory::Plan plan{0, 6};
  const double loss = second_step(config, plan, nothing).loss;
  std::int64_t lower = 0, reserved = 0;
  const auto disturb = [&](OnCard& on, std::span<const model::StreamSample> share) {
    const Session& s = *on.session;
    lower = s.predicted_peak({0, 1}) + 2_MiB;
    ASSERT_GT(on.card.live() + s.predictor->bytes(shape_of(share), plan), lower) << "or nothing would fail";
    on.card.change_budget_after(5, lower);
  };
  const StepResult result = second_step(config, plan, disturb, &reserved);
  EXPECT_LE(reserved, lower);
  EXPECT_GE(result.guardian.retries, 1);
  EXPECT_EQ(result.failed.forward + result.failed.backward, result.guardian.retries);
  EXPECT_FALSE(result.guardian.failed);
  EXPECT_NEAR(result.loss, loss, 1e-5 * loss);
}

TEST(FailedAttempts, AreSaidToBeOfForwardOrBackward) {
  auto& meter = memory::CpuAllocator::install();
  const Config config = reserved_config();
  const auto source = make_source(config);
  const auto communicator = ddp::make_solo();
  Session session(config, *communicator, *source);
  std::vector<std::shared_ptr<const Sample>> hold;
  const auto samples = session.load_share(1, hold);
  StepInput input;
  input.samples = samples;
  input.plan = {0, static_cast<int>(samples.size())};
  session.step->run(input);  // the first may allocate more
  const std::int64_t before = meter.allocations();
  ++input.step;
  ++input.updates;
  EXPECT_EQ(session.step->run(input).failed.forward, 0);
  const std::int64_t all = meter.allocations() - before;
  for (const bool forward : {true, false}) {
    ++input.step;
    ++input.updates;
    meter.fail_at(forward ? 2 : all - 2);
    const StepResult result = session.step->run(input);
    EXPECT_EQ(result.guardian.retries, 1);
    EXPECT_EQ(result.failed.forward, forward ? 1 : 0);
    EXPECT_EQ(result.failed.backward, forward ? 0 : 1);
  }
}

constexpr std::int64_t kOutside = 3_MiB, kKernels = 2_MiB;

std::int64_t budget_on_a_card(const Setting& card, const Setting& budget) {
  Config config = reserved_config();
  config.memory.card = card;
  config.memory.budget = budget;
  OnCard on(config, kOutside, kKernels);
  EXPECT_EQ(on.card.budget(), on.session->budget);
  EXPECT_THAT(on.session->budgets, testing::ElementsAre(on.session->budget));
  return on.session->budget;
}

TEST(MemoryCard, LeavesWhatIsNotHeldOutsideOfTheAllocatorAfterAWarmUp) {
  EXPECT_EQ(budget_on_a_card("256MiB", "auto"), 256_MiB - kOutside - kKernels);
  EXPECT_EQ(budget_on_a_card("256MiB", 0.5), (256_MiB - kOutside) / 2 - kKernels);
  EXPECT_EQ(budget_on_a_card("256MiB", "200MiB"), 200_MiB) << "a size is taken as it is";
  EXPECT_EQ(budget_on_a_card("auto", "auto"), kCard - kOutside - kKernels);
}

TEST(MemoryCard, ThatIsTooSmallOrLargerThanThisOneIsRefused) {
  for (const char* card : {"2MiB", "2GiB"}) {
    const std::string text = error_of(ExitCode::kUsage, [&] { budget_on_a_card(card, "auto"); });
    EXPECT_THAT(text, testing::HasSubstr("memory.card")) << card;
    EXPECT_THAT(text, testing::HasSubstr(card));
  }
}

TEST(MemoryCard, IsSharedByItsRanks) {
  memory::MemoryConfig config;
  config.card = "24GiB";
  EXPECT_EQ(left_by_card(config, 1_GiB, 3, 40_GiB, 80_GiB), 7_GiB);
  EXPECT_EQ(left_by_card(config, 1_GiB, 3, 6_GiB, 80_GiB), 6_GiB) << "no more than is free";
}

}  // namespace
}  // namespace plimsoll::train
