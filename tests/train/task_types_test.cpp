// [tasks]: types of samples, their parts and weights, and GradNorm.
#include "train/task_types.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <stdexcept>
#include <tuple>

#include "core/error.h"
#include "memory/cpu_allocator.h"
#include "tests/train/tiny_run.h"
#include "train/forecast.h"
#include "train/source.h"
#include "train/task_balance.h"

namespace plimsoll::train {
namespace {

using ::testing::AllOf;
using ::testing::DoubleNear;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

/// Samples of three tasks, in turn; 36 are trained on.
std::unique_ptr<data::SampleSource> three_tasks(std::int64_t tasks = 3) {
  data::SyntheticOptions options;
  options.samples = 40;
  options.tasks = tasks;
  return data::make_synthetic_source(options);
}

/// Ten samples, the last of them held out: the first four are of one dataset and have two images, the others one. Even
/// ones reach, odd ones grasp. Episodes have two and three samples.
class TwoDatasets final : public data::SampleSource {
 public:
  std::int64_t size() const override { return 10; }
  data::SampleDims dims() const override { return {}; }
  SampleShape shape_of(std::int64_t) const override { return {}; }
  Sample load(std::int64_t) const override { return {}; }
  std::vector<std::string> tasks() const override { return {"reach it", "grasp it"}; }
  std::int64_t task_of(std::int64_t index) const override { return index % 2; }
  std::int64_t pictures_of(std::int64_t index) const override { return index < 4 ? 2 : 1; }
  std::vector<std::string> datasets() const override { return {"lab", "kitchen"}; }
  std::int64_t dataset_of(std::int64_t index) const override { return index < 4 ? 0 : 1; }
  std::vector<double> dataset_weights() const override { return weights; }
  std::int64_t episode_index_of(std::int64_t index) const override { return index < 4 ? index / 2 : (index - 4) / 3; }
  data::SampleColumn column(const std::string& name) const override {
    if (name != "light") return {};
    return {{"day", "night"}, {0, 1, 0, 0, 1, 0, 0, 0, 1, 0}};
  }
  const std::vector<std::int64_t>& training() const override { return training_; }
  const std::vector<std::int64_t>& held_out() const override { return held_out_; }
  std::uint64_t hash() const override { return 0; }

  std::vector<double> weights{};

 private:
  std::vector<std::int64_t> training_ = {0, 1, 2, 3, 4, 5, 6, 7, 8}, held_out_ = {9};
};

std::string refusal(const TaskConfig& config, const data::SampleSource& source) {
  try {
    task_types(config, source);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kUsage);
    return error.what();
  }
  return "";
}

TEST(TaskTypes, AreTheDatasetsTasks) {
  const auto source = three_tasks();
  TaskConfig config;
  EXPECT_FALSE(task_types(config, *source).any());
  config.by = "task";
  const TaskTypes types = task_types(config, *source);
  EXPECT_THAT(types.names, ElementsAre("made-up task 0", "made-up task 1", "made-up task 2"));
  EXPECT_THAT(types.target, ElementsAre(4000, 3000, 3000)) << "the default of three";
  EXPECT_THAT(types.samples, ElementsAre(12, 12, 12));
  EXPECT_THAT(types.weights, ElementsAre(1, 1, 1));
  for (const std::int64_t index : source->training())
    EXPECT_EQ(types.type_of(index), static_cast<std::size_t>(index % 3));
  const auto two = three_tasks(2);
  EXPECT_THAT(task_types(config, *two).target, ElementsAre(5000, 5000));
  config.target = "natural";
  EXPECT_TRUE(task_types(config, *source).target.empty());
  EXPECT_DOUBLE_EQ(task_types(config, *source).part_of(1), 1.0 / 3);
  config.target = Setting::List{0.2, 0.3, 0.5};
  EXPECT_THAT(task_types(config, *source).target, ElementsAre(2000, 3000, 5000));
  config.target = Setting::List{1.0 / 3, 1.0 / 3, 1.0 / 3};
  const auto thirds = task_types(config, *source).target;
  EXPECT_EQ(std::accumulate(thirds.begin(), thirds.end(), std::int64_t{0}), data::kWholeTarget);
  config.target = Setting::List{1e-9, 0.0, 1.0};
  EXPECT_THAT(task_types(config, *source).target, ElementsAre(1, 0, 9999)) << "what has a fraction has a part";
}

TEST(TaskTypes, FollowRulesAndImages) {
  const auto source = three_tasks();
  TaskConfig config;
  config.by = "rules";
  config.rules = {{"second", "task 1$"}, {"rest", "."}};
  const TaskTypes types = task_types(config, *source);
  EXPECT_THAT(types.names, ElementsAre("second", "rest"));
  EXPECT_THAT(types.samples, ElementsAre(12, 24));
  config.by = "images";
  EXPECT_THAT(task_types(config, *source).names, ElementsAre("1 image"));
}

TEST(TaskTypes, AreDatasetsInTheirOrderOrNumbersOfImagesAscending) {
  const TwoDatasets source;
  TaskConfig config;
  config.target = Setting::List{0.7, 0.3};
  config.by = "dataset";
  const TaskTypes datasets = task_types(config, source);
  EXPECT_THAT(datasets.names, ElementsAre("lab", "kitchen"));
  EXPECT_THAT(datasets.samples, ElementsAre(4, 5));
  EXPECT_THAT(datasets.target, ElementsAre(7000, 3000));
  config.by = "images";
  const TaskTypes images = task_types(config, source);
  EXPECT_THAT(images.names, ElementsAre("1 image", "2 images"));
  EXPECT_THAT(images.samples, ElementsAre(5, 4));
  for (const std::int64_t index : source.training()) {
    EXPECT_EQ(datasets.type_of(index), index < 4 ? 0U : 1U);
    EXPECT_EQ(images.type_of(index), index < 4 ? 1U : 0U);
  }
}

TEST(TaskTypes, FollowRulesOnTheFieldThatTheyName) {
  const TwoDatasets source;
  TaskConfig config;
  config.by = "rules";
  config.rules = {{"pairs", "^2$", "images"}, {"grasps", "grasp", "task"}, {"rest", "^kitchen$", "dataset"}};
  const TaskTypes types = task_types(config, source);
  EXPECT_THAT(types.names, ElementsAre("pairs", "grasps", "rest"));
  EXPECT_THAT(types.samples, ElementsAre(4, 2, 3)) << "the first that matches counts";
  EXPECT_EQ(types.type_of(1), 0U);
  EXPECT_EQ(types.type_of(5), 1U);
  EXPECT_EQ(types.type_of(6), 2U);
  config.rules = {{"a", "lab", "dataset"}, {"b", "reach"}};
  EXPECT_THAT(refusal(config, source), HasSubstr("none matches the dataset \"kitchen\" and the task \"grasp it\""));
  config.rules = {{"a", "lab", "colour"}};
  EXPECT_THAT(refusal(config, source),
              HasSubstr("field = \"colour\" is unknown; give \"task\", \"dataset\", \"images\", \"episode\" or "
                        "\"column:NAME\""));
  config.rules = {{"a", ".", "dataset"}};
  EXPECT_THAT(refusal(config, *three_tasks()), HasSubstr("\"a\" has field = \"dataset\""));
}

TEST(TaskTypes, FollowRulesOnEpisodesAndColumns) {
  const TwoDatasets source;
  TaskConfig config;
  config.by = "rules";
  config.rules = {{"dark", "^night$", "column:light"}, {"first", "^0$", "episode"}, {"rest", "."}};
  const TaskTypes types = task_types(config, source);
  EXPECT_THAT(types.samples, ElementsAre(3, 3, 3));
  const std::vector<std::size_t> due = {1, 0, 2, 2, 0, 1, 1, 2, 0};
  for (const std::int64_t index : source.training())
    EXPECT_EQ(types.type_of(index), due[static_cast<std::size_t>(index)]) << index;
  config.rules.pop_back();
  EXPECT_THAT(refusal(config, source), HasSubstr("none matches the column:light \"day\" and the episode \"1\""));
  config.rules = {{"a", ".", "column:weather"}};
  EXPECT_THAT(refusal(config, source), HasSubstr("\"column:weather\": 0 of 10 samples"));
  for (const char* field : {"episode", "column:light"}) {
    config.rules = {{"a", ".", field}};
    EXPECT_THAT(refusal(config, *three_tasks()), HasSubstr("of no dataset")) << field;
  }
}

// Of the draws of either type one of four is of the lab.
TEST(TaskTypes, KeepTheirPartsWhereDatasetsHaveWeights) {
  TwoDatasets source;
  source.weights = {1, 3};
  TaskConfig config;
  config.by = "task";
  config.target = Setting::List{0.7, 0.3};
  const TaskTypes types = task_types(config, source);
  EXPECT_DOUBLE_EQ(types.part_of(0), 0.7);
  data::SampleStream stream(stream_order(types, source, 1));
  std::vector<std::vector<int>> drawn(2, std::vector<int>(2));  // by type and dataset
  for (std::uint64_t position = 0; position < 40; ++position) {
    const std::int64_t index = stream.at(position);
    ++drawn[types.type_of(index)][static_cast<std::size_t>(source.dataset_of(index))];
  }
  EXPECT_THAT(drawn[0], ElementsAre(7, 21));
  EXPECT_THAT(drawn[1], ElementsAre(3, 9));
  source.weights = {2};
  EXPECT_TRUE(stream_order(types, source, 1)->weights.empty()) << "one dataset has all draws anyhow";
}

// Half of the lab's samples reach, and three of the kitchen's five.
TEST(TaskTypes, ComeAsWeightedDatasetsHaveThem) {
  TwoDatasets source;
  source.weights = {1, 3};
  TaskConfig config;
  config.target = "natural";
  EXPECT_THAT(stream_order(task_types(config, source), source, 1)->weights, ElementsAre(1, 3)) << "without types too";
  config.by = "task";
  config.normalise = true;
  const TaskTypes types = task_types(config, source);
  const double reaching = 0.25 / 2 + 0.75 * 3 / 5;
  EXPECT_NEAR(types.part_of(0), reaching, 1e-12);
  EXPECT_NEAR(types.part_of(1), 1 - reaching, 1e-12);
  const std::vector<std::int64_t> counts = {5, 5};
  EXPECT_NEAR(type_weights(types, counts, {})[0], 2 * reaching, 1e-12);
  const auto order = stream_order(types, source, 1);
  EXPECT_TRUE(order->target.empty());
  data::SampleStream stream(order);
  std::vector<int> drawn(2);
  for (std::uint64_t position = 0; position < 400; ++position) ++drawn[types.type_of(stream.at(position))];
  EXPECT_NEAR(drawn[0], 400 * reaching, 4) << "whole passes of both, and the rest of one";
}

TEST(TaskTypes, SayWhereWeightsOfDatasetsDecideNothing) {
  TwoDatasets source;
  source.weights = {1, 3};
  TaskConfig config;
  config.by = "dataset";
  EXPECT_THAT(refusal(config, source), AllOf(HasSubstr("decide nothing"), HasSubstr("data.weights")));
  config.target = "natural";
  EXPECT_NEAR(task_types(config, source).part_of(1), 0.75, 1e-12);
  config.by = "images";
  config.target = Setting::List{0.5, 0.5};
  EXPECT_THAT(refusal(config, source), HasSubstr("tasks.target")) << "one picture means the kitchen";
}

TEST(LearnedSettings, KnowWeightsAndFieldsOfRules) {
  Config config;
  config.tasks.by = "rules";
  config.tasks.rules = {{"a", "x"}, {"b", "."}};
  config.data.mix.resize(2);
  const auto differs = [&](const auto& change) {
    Config other = config;
    change(other);
    return learned_settings_hash(other) != learned_settings_hash(config);
  };
  EXPECT_TRUE(differs([](Config& c) { c.tasks.rules[1].field = "images"; }));
  EXPECT_TRUE(differs([](Config& c) { c.tasks.rules[0].match = "y"; }));
  EXPECT_TRUE(differs([](Config& c) { c.data.weights = {1, 2}; }));
  EXPECT_TRUE(differs([](Config& c) { c.data.mix[0].weight = 2, c.data.mix[1].weight = 1; }));
  EXPECT_FALSE(differs([](Config& c) { c.data.mix[0].path = "elsewhere"; }));
}

TEST(TaskTypes, SayWhatDoesNotFit) {
  const auto source = three_tasks(), many = three_tasks(9), none = three_tasks(0);
  TaskConfig config;
  config.gradnorm = true;
  EXPECT_THAT(refusal(config, *source), HasSubstr("tasks.gradnorm needs types"));
  config.by = "task";
  EXPECT_THAT(refusal(config, *many), HasSubstr("9 tasks, and there may be 8"));
  EXPECT_THAT(refusal(config, *none), HasSubstr("of no task"));
  config.target = Setting::List{0.5, 0.5};
  EXPECT_THAT(refusal(config, *source), HasSubstr("or 3 fractions, in the order of \"made-up task 0\""));
  config.target = Setting::List{0.5, 0.4, 0.4};
  EXPECT_THAT(refusal(config, *source), HasSubstr("these make 1.3"));
  config.target = "auto";
  config.weights = {1, 2};
  EXPECT_THAT(refusal(config, *source), HasSubstr("tasks.weights has 2 numbers for 3 types"));
  config.weights = {};
  config.by = "rules";
  EXPECT_THAT(refusal(config, *source), HasSubstr("with 0 tasks.rules"));
  config.rules = {{"a", "("}};
  EXPECT_THAT(refusal(config, *source), HasSubstr("is no regular expression"));
  config.rules = {{"a", "task 0"}};
  EXPECT_THAT(refusal(config, *source), HasSubstr("none matches the task \"made-up task 1\""));
  config.rules = {{"a", "task 0"}, {"a", "."}};
  EXPECT_THAT(refusal(config, *source), HasSubstr("two rules have name = \"a\""));
  config.rules = {{"a", "."}, {"b", "nothing"}};
  EXPECT_THAT(refusal(config, *source), HasSubstr("\"b\" is to have 50.0 % of the draws"));
}

TEST(TypeWeights, NormaliseByTheSamplesOfTheStep) {
  TaskTypes types;
  types.names = {"a", "b", "c"};
  types.target = {4000, 3000, 3000};
  types.samples = {10, 10, 10};
  types.weights = {1, 1, 2};
  const std::vector<std::int64_t> counts = {5, 3, 2};
  EXPECT_THAT(type_weights(types, counts, {}), ElementsAre(1, 1, 2));
  EXPECT_THAT(type_weights(types, counts, std::vector<double>{0.5, 1, 1.5}), ElementsAre(0.5, 1, 3));
  types.normalise = true;
  EXPECT_THAT(type_weights(types, counts, {}),
              ElementsAre(DoubleNear(0.8, 1e-12), DoubleNear(1, 1e-12), DoubleNear(3, 1e-12)));
  // What a type adds to the loss is its part of it, however many samples it had.
  const auto weights = type_weights(types, counts, {});
  EXPECT_NEAR(weights[0] * 5 / 10, 0.4, 1e-12);
  EXPECT_NEAR(weights[2] * 2 / 10, 2 * 0.3, 1e-12);
}

/// One step of descent on what the paper minimises, by autograd.
std::vector<double> by_autograd(const BalanceState& before, const BalanceInput& step, const BalanceOptions& options) {
  const auto of = [](std::span<const double> values) {
    return torch::tensor(std::vector<double>(values.begin(), values.end()), at::kDouble);
  };
  at::Tensor weights = of(before.weights).requires_grad_(true);
  const at::Tensor norms = weights * (of(step.norms) / of(before.weights));
  const at::Tensor progress = of(step.losses) / of(before.first_losses);
  const at::Tensor wanted = (norms.mean() * at::pow(progress / progress.mean(), options.alpha)).detach();
  (norms - wanted).abs().sum().backward();
  at::Tensor next = weights.detach() - options.learning_rate * weights.grad();
  next = next * (static_cast<double>(before.weights.size()) / next.sum());
  const double* values = next.const_data_ptr<double>();
  return {values, values + before.weights.size()};
}

TEST(GradNorm, IsTheDescentOfThePaper) {
  const BalanceState before{{0.7, 1.1, 1.2}, {2.0, 0.5, 3.0}};
  const std::vector<std::int64_t> counts = {4, 3, 3};
  const std::vector<double> losses = {1.0, coarse(0.45), coarse(0.6)};
  const std::vector<double> norms = {coarse(0.3), coarse(0.9), coarse(0.2)};
  for (const double alpha : {0.0, 0.5, 1.5}) {
    const BalanceInput step{counts, losses, norms};
    const BalanceState after = balanced(before, step, {alpha, 0.025});
    const auto expected = by_autograd(before, step, {alpha, 0.025});
    for (std::size_t type = 0; type < 3; ++type) EXPECT_NEAR(after.weights[type], expected[type], 1e-12) << type;
    EXPECT_EQ(after.first_losses, before.first_losses);
  }
}

// Two tasks whose gradients of the shared layer are as 1 to 100 and which learn equally fast: with alpha = 0 the
// balance is that both norms are equal, which weights of 200/101 and 2/101 give.
TEST(GradNorm, ConvergesToTheStatedBalance) {
  BalanceState state;
  const std::vector<std::int64_t> counts = {8, 8};
  const std::vector<double> losses = {1.0, 1.0};
  for (int step = 0; step < 20000; ++step) {
    const std::vector<double> weights = state.weights.empty() ? std::vector<double>{1, 1} : state.weights;
    const std::vector<double> norms = {weights[0] * 0.01, weights[1] * 1.0};
    state = balanced(state, {counts, losses, norms}, {0.0, 0.001});
  }
  EXPECT_NEAR(state.weights[0], 200.0 / 101, 5e-3);
  EXPECT_NEAR(state.weights[1], 2.0 / 101, 5e-3);
  EXPECT_NEAR(state.weights[0] + state.weights[1], 2.0, 1e-9);
}

/// Norms by their mean, where the descent came to: of types whose losses stay at `losses` of their first ones and whose
/// norms are `slopes` at a weight of 1. With alpha = 1.5.
std::vector<double> balance_of(const std::vector<double>& slopes, const std::vector<double>& losses) {
  const std::vector<std::int64_t> counts(slopes.size(), 8);
  BalanceState state{std::vector<double>(slopes.size(), 1.0), std::vector<double>(slopes.size(), 1.0)};
  std::vector<double> norms(slopes.size());
  const auto measure = [&] {
    for (std::size_t type = 0; type < slopes.size(); ++type) norms[type] = state.weights[type] * slopes[type];
  };
  for (int step = 0; step < 9000; ++step) {
    measure();
    state = balanced(state, {counts, losses, norms}, {1.5, step < 6000 ? 1e-3 : 1e-4});
  }
  measure();
  const double mean = std::accumulate(norms.begin(), norms.end(), 0.0) / static_cast<double>(norms.size());
  for (double& norm : norms) norm /= mean;
  return norms;
}

/// r^1.5 of each type.
std::vector<double> wanted_norms(const std::vector<double>& losses) {
  const double mean = std::accumulate(losses.begin(), losses.end(), 0.0) / static_cast<double>(losses.size());
  std::vector<double> wanted;
  for (const double loss : losses) wanted.push_back(std::pow(loss / mean, 1.5));
  return wanted;
}

// The paper's equations 1 and 2: each norm is drawn to mean norm x r^alpha. These make more than the norms have as soon
// as types differ (mean r^1.5 > 1), so that one of them stays behind by what is missing: little where r is near 1.
TEST(GradNorm, ConvergesToTheNormsThatProgressAsksFor) {
  for (const std::vector<double>& slopes : {std::vector<double>{0.1, 1}, std::vector<double>{1, 0.1}}) {
    const std::vector<double> losses = {0.99, 0.81};
    const auto norms = balance_of(slopes, losses), wanted = wanted_norms(losses);
    EXPECT_NEAR(wanted[0], 1.1537, 1e-4);
    for (std::size_t type = 0; type < 2; ++type) EXPECT_NEAR(norms[type], wanted[type], 0.012) << slopes[0];
  }
  const std::vector<double> losses = {0.55, 0.5, 0.45};
  const auto norms = balance_of({0.2, 1, 0.5}, losses), wanted = wanted_norms(losses);
  for (std::size_t type = 0; type < 3; ++type) EXPECT_NEAR(norms[type], wanted[type], 0.012) << type;
}

// r of 1.5 and 0.5: they ask for 1.837 and 0.354 of the mean norm, and the norms have 2. Both types are pulled up where
// both are short, the one of the steeper loss more; it gets all that it asks for, and the other what is left.
TEST(GradNorm, LeavesWhatIsMissingToTheFlatterLoss) {
  const std::vector<double> losses = {0.6, 0.2};
  const double first = std::pow(1.5, 1.5), second = std::pow(0.5, 1.5);
  const auto flat_first = balance_of({0.1, 1}, losses), steep_first = balance_of({1, 0.1}, losses);
  EXPECT_NEAR(flat_first[0], 2 - second, 5e-3);
  EXPECT_NEAR(flat_first[1], second, 5e-3);
  EXPECT_NEAR(steep_first[0], first, 5e-3);
  EXPECT_NEAR(steep_first[1], 2 - first, 5e-3);
}

// What the header says of values that another plan rounds to the other neighbour: the sign of a type at its balance
// turns, the weights part by two steps, and go back to the same balance.
TEST(GradNorm, ASignThatTurnsMovesWeightsByTwoStepsAndNoFurther) {
  constexpr double kRate = 0.01;
  const std::vector<std::int64_t> counts = {4, 4};
  const std::vector<double> ones = {1, 1}, more = {1 + 1.0 / 2048, 1}, less = {1, 1 + 1.0 / 2048};
  const BalanceState before{{1, 1}, {1, 1}};
  BalanceState a = balanced(before, {counts, ones, more}, {0.0, kRate});
  BalanceState b = balanced(before, {counts, ones, less}, {0.0, kRate});
  EXPECT_NEAR(b.weights[0] - a.weights[0], 2 * kRate, 1e-2 * kRate);
  for (int step = 0; step < 200; ++step) {
    const std::vector<double> of_a = a.weights, of_b = b.weights;  // a norm of 1 at a weight of 1
    a = balanced(a, {counts, ones, of_a}, {0.0, kRate});
    b = balanced(b, {counts, ones, of_b}, {0.0, kRate});
    for (std::size_t type = 0; type < 2; ++type) EXPECT_LT(std::abs(a.weights[type] - b.weights[type]), 2.01 * kRate);
  }
}

TEST(GradNorm, LeavesEveryWeightAThousandth) {
  // The others rise so far that scaling them back would take the first one below what it had been left.
  const std::vector<std::int64_t> all = {1, 1, 1};
  const std::vector<double> ones = {1, 1, 1}, norms = {5, 1, 1};
  const BalanceState after = balanced({{0.001, 1.4995, 1.4995}, {1, 1, 1}}, {all, ones, norms}, {0.0, 1.0});
  EXPECT_EQ(after.weights[0], 0.001);
  EXPECT_NEAR(after.weights[1], 1.4995, 1e-12);
  EXPECT_NEAR(after.weights[2], 1.4995, 1e-12);

  std::mt19937 generator(3);
  const auto draw = [&] { return static_cast<double>(generator() % 1000 + 1) / 1000; };
  BalanceState state{{1, 1, 1, 1}, {1, 1, 1, 1}};
  std::size_t at_the_least = 0;
  for (int step = 0; step < 2000; ++step) {
    std::vector<std::int64_t> counts;
    std::vector<double> losses, gradients;
    for (int type = 0; type < 4; ++type) {
      counts.push_back(static_cast<std::int64_t>(generator() % 3));
      losses.push_back(draw());
      gradients.push_back(10 * draw());
    }
    state = balanced(state, {counts, losses, gradients}, {1.5, 0.5});
    const double least = *std::ranges::min_element(state.weights);
    ASSERT_GE(least, 0.001) << step;
    if (least == 0.001) ++at_the_least;
    ASSERT_NEAR(std::accumulate(state.weights.begin(), state.weights.end(), 0.0), 4, 1e-9) << step;
  }
  EXPECT_GT(at_the_least, 100U) << "it came to that";
}

TEST(GradNorm, DoesNotHangOnTheLastBits) {
  const BalanceState before{{0.7, 1.1, 1.2}, {2.0, 0.5, 3.0}};
  const std::vector<std::int64_t> counts = {4, 3, 3};
  const std::vector<double> losses = {1.0, 0.45, 0.6}, norms = {0.3, 0.9, 0.2};
  std::vector<double> other = norms;
  for (double& norm : other) norm *= 1 + 1e-6;
  EXPECT_EQ(balanced(before, {counts, losses, norms}, {}), balanced(before, {counts, losses, other}, {}));
  EXPECT_NEAR(coarse(0.123456789), 0.123456789, 2e-5);
  EXPECT_EQ(coarse(0), 0);
  EXPECT_EQ(coarse(0.75), 0.75);
}

TEST(GradNorm, WhoHasLearnedLessIsPulledAhead) {
  BalanceState state{{1, 1}, {1, 1}};
  const std::vector<std::int64_t> counts = {8, 8};
  const std::vector<double> losses = {0.9, 0.1}, norms = {1, 1};
  state = balanced(state, {counts, losses, norms}, {1.5, 0.01});
  EXPECT_GT(state.weights[0], 1);
  EXPECT_LT(state.weights[1], 1);
}

TEST(GradNorm, WhoIsAbsentKeepsItsWeight) {
  const BalanceState before{{0.5, 1.0, 1.5}, {1, 0, 1}};
  const std::vector<std::int64_t> counts = {4, 0, 4};
  const std::vector<double> losses = {0.5, 0, 0.9}, norms = {1, 0, 1};
  const BalanceState after = balanced(before, {counts, losses, norms}, {});
  EXPECT_EQ(after.weights[1], 1.0);
  EXPECT_EQ(after.first_losses[1], 0) << "it has had no step yet";
  EXPECT_NEAR(after.weights[0] + after.weights[1] + after.weights[2], 3, 1e-12);
  EXPECT_NE(after.weights[0], 0.5);
  const std::vector<double> broken = {std::nan(""), 0, 0.9};
  EXPECT_EQ(balanced(before, {counts, broken, norms}, {}), before);
  EXPECT_EQ(balance_from_json(to_json(after)), after);
  EXPECT_EQ(balance_from_json(""), BalanceState());
  EXPECT_THROW(balance_from_json("{}"), Error);
}

class TypedRun : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { write_tiny_model(model_dir()); }
  static std::string model_dir() { return testing::TempDir() + "plimsoll-task-types-test"; }
  TypedRun() {
    config_ = tiny_config(model_dir());
    config_.data.synthetic_tasks = 3;
    config_.data.synthetic_samples = 30;
    config_.tasks.by = "task";
  }
  Config config_;
};

struct Ran {
  StepResult result;
  std::vector<float> gradients;
};

Ran run_step(Session& session, std::int64_t number, const memory::Plan& plan) {
  std::vector<std::shared_ptr<const Sample>> hold;
  const auto samples = session.load_share(number, hold);
  StepInput input;
  input.step = number;
  input.samples = samples;
  input.plan = plan;
  Ran ran{session.step->run(input), {}};
  const auto gradients = session.buffers->gradients();
  ran.gradients.assign(gradients.begin(), gradients.end());
  return ran;
}

/// Of the gradient of the layer that types share, in what the step has committed.
double shared_norm(Session& session, const std::vector<float>& gradients) {
  const auto& slots = session.buffers->slots();
  const auto slot = std::ranges::find_if(slots, [](const FlatSlot& s) { return s.name == "expert.action_out.weight"; });
  if (slot == slots.end()) throw std::logic_error("no layer of that name");
  double squares = 0;
  for (const float value : part(std::span<const float>(gradients), slot->range)) squares += double{value} * value;
  return std::sqrt(squares);
}

// The rows that a gradient is made of are the same however a step is cut, but that in bf16 a value between two numbers
// of 8 bits is rounded to the other one where the order of a sum turns its last bit. Gradients are summed in fp32.
TEST_F(TypedRun, NormsAreThoseOfEachTypesOwnGradient) {
  config_.tasks.gradnorm = true;
  config_.train.clip_norm = 0;
  config_.tasks.weights = {1, 0.5, 2};
  for (const auto& [dtype, of_plans, of_alone] : {std::tuple{"fp32", 1e-5, 1e-4}, std::tuple{"bf16", 2e-3, 2e-3}}) {
    config_.model.dtype = dtype;
    const auto source = make_source(config_);
    const auto communicator = ddp::make_solo();
    std::vector<double> whole;
    for (const int micro : {6, 2, 1}) {
      Session session(config_, *communicator, *source);
      const std::vector<double> norms = run_step(session, 1, {.micro_batch = micro}).result.type_norms;
      ASSERT_EQ(norms.size(), 3U);
      if (whole.empty()) whole = norms;
      for (std::size_t type = 0; type < 3; ++type) {
        EXPECT_GT(norms[type], 0);
        EXPECT_NEAR(norms[type], whole[type], of_plans * whole[type]) << dtype << ", whatever the plan";
      }
    }
    for (std::size_t type = 0; type < 3; ++type) {
      Config alone = config_;
      alone.tasks.weights = {0, 0, 0};
      alone.tasks.weights[type] = config_.tasks.weights[type];
      Session session(alone, *communicator, *source);
      const double norm = shared_norm(session, run_step(session, 1, {.micro_batch = 3}).gradients);
      EXPECT_NEAR(whole[type], norm, of_alone * norm) << dtype << ", type " << type;
    }
  }
}

TEST_F(TypedRun, AFailureLeavesNothingInTheSums) {
  config_.tasks.gradnorm = true;
  const auto source = make_source(config_);
  const auto communicator = ddp::make_solo();
  Session calm(config_, *communicator, *source);
  const Ran expected = run_step(calm, 1, {.micro_batch = 6});
  Session session(config_, *communicator, *source);
  memory::CpuAllocator::install().fail_at(400);
  const Ran ran = run_step(session, 1, {.micro_batch = 6});
  EXPECT_EQ(ran.result.guardian.retries, 1);
  for (std::size_t type = 0; type < 3; ++type) {
    EXPECT_NEAR(ran.result.type_norms[type], expected.result.type_norms[type], 1e-5 * expected.result.type_norms[type]);
    EXPECT_NEAR(ran.result.type_losses[type], expected.result.type_losses[type], 1e-5);
  }
}

TEST_F(TypedRun, IsPredictedToTheByte) {
  config_.tasks.gradnorm = true;
  for (const char* dtype : {"fp32", "bf16"}) {
    config_.model.dtype = dtype;
    const auto source = make_source(config_);
    const auto communicator = ddp::make_solo();
    memory::CpuAllocator::install().set_workspace(0);
    const std::int64_t before = memory::CpuAllocator::install().live();
    Session session(config_, *communicator, *source);
    EXPECT_EQ(session.meter.live() - before, session.dry->static_bytes() + session.meter.workspace());
    const Forecast forecast(config_, {source->dims(), session.heaviest, session.tasks.names.size()}, 1);
    EXPECT_EQ(forecast.dry().static_bytes(), session.dry->static_bytes()) << "what `plimsoll plan` says";
    std::vector<std::shared_ptr<const Sample>> hold;
    const auto samples = session.load_share(1, hold);
    const std::int64_t live = session.meter.live();
    StepInput input;
    input.samples = samples;
    input.plan = {.micro_batch = 6};
    session.step->run(input);
    EXPECT_EQ(session.meter.peak() - live, session.dry->activation_bytes(shape_of(samples), input.plan)) << dtype;
  }
}

TEST_F(TypedRun, BytesOfAMixedMicroBatchAreSharedByWhatItsSamplesNeedAlone) {
  const auto source = make_source(config_);
  const auto communicator = ddp::make_solo();
  Session session(config_, *communicator, *source);
  std::vector<std::shared_ptr<const Sample>> hold;
  const auto samples = session.load_share(1, hold);
  StepInput input;
  input.samples = samples;
  input.plan = {.micro_batch = 6};
  const StepResult result = session.step->run(input);
  std::vector<double> alone(3);
  std::vector<std::int64_t> counts(3);
  for (const model::StreamSample& item : samples) {
    const auto shape = shape_of(std::span<const model::StreamSample>(&item, 1));
    alone[item.type] += static_cast<double>(session.dry->activation_bytes(shape, input.plan));
    ++counts[item.type];
  }
  const auto whole = static_cast<double>(session.dry->activation_bytes(shape_of(samples), input.plan));
  const double all = std::accumulate(alone.begin(), alone.end(), 0.0);
  ASSERT_EQ(result.type_memory.size(), 3U);
  for (std::size_t type = 0; type < 3; ++type) {
    const TypeMemory& memory = result.type_memory[type];
    const double expected = whole * alone[type] / all;
    EXPECT_EQ(memory.micro_batches, 1);
    EXPECT_EQ(memory.samples, counts[type]);
    EXPECT_NEAR(static_cast<double>(memory.measured), expected, 0.01 * expected);
    EXPECT_NEAR(static_cast<double>(memory.predicted), expected, 0.01 * expected);
  }
}

TEST_F(TypedRun, WeightsScaleGradientsAndLossesStayWhatTheyAre) {
  config_.train.clip_norm = 0;
  const auto source = make_source(config_);
  const auto communicator = ddp::make_solo();
  Session plain(config_, *communicator, *source);
  const Ran one = run_step(plain, 1, {.micro_batch = 3});
  config_.tasks.weights = {2, 2, 2};
  Session twice(config_, *communicator, *source);
  const Ran two = run_step(twice, 1, {.micro_batch = 2});
  EXPECT_NEAR(one.result.loss, two.result.loss, 1e-6 * one.result.loss);
  std::vector<float> doubled = one.gradients;
  for (float& value : doubled) value *= 2;
  EXPECT_LT(relative_l2(two.gradients, doubled), 1e-5);
  const auto counts = plain.counts_of(1);
  EXPECT_EQ(std::accumulate(counts.begin(), counts.end(), std::int64_t{0}), 6);
  double sum = 0;
  for (const double loss : one.result.type_losses) sum += loss;
  EXPECT_NEAR(sum / 6, one.result.loss, 1e-6);
}

}  // namespace
}  // namespace plimsoll::train
