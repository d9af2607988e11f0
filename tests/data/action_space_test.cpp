#include "data/action_space.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/error.h"

namespace plimsoll::data {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

using StateOf = std::vector<std::optional<std::size_t>>;

DimensionNames unnamed(std::size_t width) { return {width, {}}; }
DimensionNames named(std::vector<std::string> names) { return {names.size(), names}; }

std::string space_error(const DimensionNames& action, const DimensionNames& state,
                        const std::vector<std::int64_t>& chosen) {
  try {
    delta_space(action, state, chosen, "data.mix[1] (/data/b)");
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kUsage);
    return error.what();
  }
  return "no error";
}

TEST(ActionSpace, IsAbsoluteUnlessSaidOtherwise) {
  const ActionSpace space;
  EXPECT_FALSE(space.is_relative());
  std::vector<float> actions{1, 2, 3};
  space.make_relative(actions, {});
  EXPECT_THAT(actions, ElementsAre(1, 2, 3));
  EXPECT_EQ(parse_action_space("absolute"), ActionKind::kAbsolute);
  EXPECT_EQ(parse_action_space("delta"), ActionKind::kDelta);
  EXPECT_THROW(parse_action_space("relative"), Error);
}

TEST(ActionSpace, BelongsToTheStateByNameOrIndex) {
  EXPECT_THAT(delta_space(unnamed(4), unnamed(3), {}, "").relative_dimensions(), ElementsAre(0, 1, 2));
  const auto by_name = delta_space(named({"x", "y", "gripper"}), named({"y", "x"}), {}, "");
  EXPECT_THAT(by_name.relative_dimensions(), ElementsAre(0, 1));
  EXPECT_EQ(by_name.state_dimension_of(0), 1u);
  EXPECT_EQ(by_name.state_dimension_of(2), std::nullopt);
  const auto half_named = delta_space(named({"x", "y"}), unnamed(2), {}, "");
  EXPECT_EQ(half_named.state_dimension_of(1), 1u);
}

TEST(ActionSpace, LeavesOutWhatWasNotChosen) {
  const std::vector<std::int64_t> chosen{2, 0};
  const auto space = delta_space(named({"x", "y", "roll"}), named({"y", "x", "rx"}), chosen, "");
  EXPECT_THAT(space.relative_dimensions(), ElementsAre(0, 2));
  EXPECT_EQ(space.state_dimension_of(0), 1u) << "by its name";
  EXPECT_EQ(space.state_dimension_of(2), 2u) << "by its index, since it was asked for";
}

TEST(ActionSpace, NamesWhatHasNoState) {
  EXPECT_THAT(space_error(unnamed(3), unnamed(2), {0, 2}),
              AllOf(HasSubstr("data.mix[1] (/data/b)"), HasSubstr("has 2")));
  EXPECT_THAT(space_error(unnamed(3), unnamed(2), {3}), AllOf(HasSubstr("has 3"), HasSubstr("0 to 2")));
  EXPECT_THAT(space_error(unnamed(3), unnamed(2), {-1}), HasSubstr("-1"));
  EXPECT_THAT(space_error(named({"x"}), named({"joint"}), {}),
              AllOf(HasSubstr("x"), HasSubstr("joint"), HasSubstr("data.delta_dimensions")));
}

TEST(ActionSpace, GoesThereAndBack) {
  const ActionSpace space(StateOf{1, std::nullopt, 0});
  const std::vector<float> state{10, 200}, before{1, 2, 3, 4, 5, 6};
  std::vector<float> actions = before;
  space.make_relative(actions, state);
  EXPECT_THAT(actions, ElementsAre(-199, 2, -7, -196, 5, -4)) << "every row from the same state";
  space.make_absolute(actions, state);
  EXPECT_EQ(actions, before);
}

TEST(ActionSpace, ExecutesWhatSamplesHold) {
  const ActionSpace space(StateOf{0, std::nullopt});
  const Normaliser scale(Normalisation::kMeanStd, {{1, 5}, {2, 4}, {}, {}, {}, {}}, "x");
  const std::vector<float> state{0.75f}, actions{3.25f, 7.5f, -2.125f, 6};
  std::vector<float> sample = actions;
  space.make_relative(sample, state);
  scale.normalise(sample);
  const auto executed = executable_actions(sample, scale, space, state);
  ASSERT_EQ(executed.size(), actions.size());
  for (std::size_t i = 0; i < actions.size(); ++i) EXPECT_NEAR(executed[i], actions[i], 1e-5);
}

// Statistics
// ------------------------------------------------------------------------------------------------------------------

/// 3 episodes of 17 rows; an action of 2 dimensions, of which the second is taken off the state's first.
struct Drive {
  std::vector<LeRobotEpisode> episodes;
  std::vector<float> actions, states;
  ActionSpace space{StateOf{std::nullopt, 0}};

  Drive() {
    for (const auto& [begin, end] : {std::pair{0, 4}, {4, 5}, {5, 17}}) {
      episodes.emplace_back();
      episodes.back().begin = begin, episodes.back().end = end;
    }
    for (int i = 0; i < 17; ++i) {
      actions.insert(actions.end(), {static_cast<float>(i), static_cast<float>(std::sin(i) * 3)});
      states.push_back(static_cast<float>(std::cos(2 * i)));
    }
  }
  std::vector<double> differences(std::int64_t chunk) const {
    std::vector<double> all;
    for (const LeRobotEpisode& episode : episodes) {
      for (std::int64_t t = episode.begin; t < episode.end; ++t) {
        for (std::int64_t k = 0; k < chunk && t + k < episode.end; ++k)
          all.push_back(actions[static_cast<std::size_t>(2 * (t + k) + 1)] - states[static_cast<std::size_t>(t)]);
      }
    }
    return all;
  }
};

TEST(DeltaStatistics, AreThoseOfAllDifferences) {
  const Drive drive;
  const auto found = delta_statistics(drive.space, {drive.actions, 2}, {drive.states, 1}, drive.episodes, 3, true);
  auto all = drive.differences(3);
  const auto count = static_cast<double>(all.size());
  EXPECT_EQ(found.count, 9 + 1 + 33);
  ASSERT_EQ(found.count, count);
  const double mean = std::accumulate(all.begin(), all.end(), 0.0) / count;
  double squares = 0;
  for (const double value : all) squares += (value - mean) * (value - mean);
  std::sort(all.begin(), all.end());
  const auto quantile = [&](double q) {
    const double place = q * (count - 1);
    const auto low = static_cast<std::size_t>(place);
    return all[low] + (place - static_cast<double>(low)) * (all[low + 1] - all[low]);
  };
  EXPECT_NEAR(found.values.mean[1], mean, 1e-6);
  EXPECT_NEAR(found.values.std[1], std::sqrt(squares / count), 1e-6);
  EXPECT_NEAR(found.values.min[1], all.front(), 1e-6);
  EXPECT_NEAR(found.values.max[1], all.back(), 1e-6);
  EXPECT_NEAR(found.values.q01[1], quantile(0.01), 1e-6);
  EXPECT_NEAR(found.values.q99[1], quantile(0.99), 1e-6);
  EXPECT_EQ(found.values.mean[0], 0) << "absolute";
}

TEST(DeltaStatistics, HaveQuantilesOnlyIfAskedFor) {
  const Drive drive;
  const auto found = delta_statistics(drive.space, {drive.actions, 2}, {drive.states, 1}, drive.episodes, 1, false);
  EXPECT_THAT(found.values.q01, IsEmpty());
  EXPECT_EQ(found.count, 17);
}

TEST(DeltaStatistics, OfNoNumbersAreNone) {
  Drive drive;
  drive.actions[1] = NAN;
  const auto found = delta_statistics(drive.space, {drive.actions, 2}, {drive.states, 1}, drive.episodes, 2, true);
  EXPECT_TRUE(std::isnan(found.values.mean[1]));
  EXPECT_TRUE(std::isnan(found.values.q99[1]));
}

TEST(FeatureStatistics, ArePooledByCount) {
  // {1, 3} and {6, 6, 6, 10}: mean 32 / 6.
  const std::vector<CountedStatistics> parts = {{2, {{2}, {1}, {1}, {3}, {1}, {3}}},
                                                {4, {{7}, {std::sqrt(3.0)}, {6}, {10}, {6}, {10}}}};
  const auto all = pooled(parts);
  EXPECT_EQ(all.count, 6);
  EXPECT_NEAR(all.values.mean[0], 32.0 / 6, 1e-12);
  EXPECT_NEAR(all.values.std[0] * all.values.std[0], (1 + 9 + 3 * 36 + 100) / 6.0 - std::pow(32.0 / 6, 2), 1e-12);
  EXPECT_THAT(all.values.min, ElementsAre(1));
  EXPECT_THAT(all.values.max, ElementsAre(10));
  EXPECT_THAT(all.values.q01, IsEmpty()) << "quantiles do not follow from those of the parts";
  auto lacking = parts;
  lacking[1].values.min.clear();
  EXPECT_THAT(pooled(lacking).values.min, IsEmpty());
}

TEST(FeatureStatistics, AreCutDownToDimensions) {
  const FeatureStatistics all{{1, 2, 3}, {4, 5, 6}, {}, {}, {}, {}};
  const std::vector<std::size_t> dimensions{2, 0};
  const auto chosen = select_dimensions(all, dimensions);
  EXPECT_THAT(chosen.mean, ElementsAre(3, 1));
  EXPECT_THAT(chosen.std, ElementsAre(6, 4));
  EXPECT_THAT(chosen.min, IsEmpty());
  auto changed = chosen;
  replace_dimension(changed, all, 1);
  EXPECT_THAT(changed.mean, ElementsAre(3, 2));
}

}  // namespace
}  // namespace plimsoll::data
