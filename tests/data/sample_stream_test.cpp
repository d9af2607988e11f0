// The order of the samples: permutations, and mixtures of types in given parts.
#include "data/sample_stream.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <random>
#include <set>

#include "core/error.h"
#include "tests/data/mixture.h"

namespace plimsoll::data {
namespace {

TEST(SampleStream, EveryEpochHasEverySampleOnce) {
  std::vector<std::int64_t> samples{3, 1, 4, 15, 9, 2, 6};
  SampleStream stream(samples, 1);
  std::set<std::vector<std::int64_t>> orders;
  for (std::uint64_t epoch = 0; epoch < 20; ++epoch) {
    std::vector<std::int64_t> order;
    for (std::uint64_t i = 0; i < 7; ++i) order.push_back(stream.at(7 * epoch + i));
    EXPECT_THAT(order, ::testing::UnorderedElementsAreArray(samples));
    orders.insert(order);
  }
  EXPECT_GT(orders.size(), 15u);
}

/// Whether the shares of all ranks, in rank order, are the step's positions: each once, none missing, and as even as
/// can be.
void expect_shares_cover(std::int64_t step, std::int64_t batch, int world) {
  const auto first = static_cast<std::uint64_t>((step - 1) * batch), whole = static_cast<std::uint64_t>(batch);
  const auto ranks = static_cast<std::uint64_t>(world);
  std::uint64_t next = first;
  for (int rank = 0; rank < world; ++rank) {
    const auto [begin, end] = share_of_step(step, batch, rank, world);
    ASSERT_EQ(begin, next) << "rank " << rank << " of " << world << ", step " << step << " of " << batch;
    ASSERT_GE(end, begin + whole / ranks);
    ASSERT_LE(end, begin + (whole + ranks - 1) / ranks);
    next = end;
  }
  ASSERT_EQ(next, first + whole) << world << " ranks, step " << step << " of " << batch;
}

TEST(SampleStream, SharesCoverEveryStepOnce) {
  for (std::int64_t batch = 1; batch <= 64; ++batch)
    for (int world = 1; world <= 70; ++world) ASSERT_NO_FATAL_FAILURE(expect_shares_cover(3, batch, world));
  const char* proofs = std::getenv("PLIMSOLL_PROOFS");
  const int cases = proofs != nullptr && proofs[0] == '1' ? 10000 : 200;
  std::mt19937_64 random(17);
  for (int i = 0; i < cases; ++i) {
    const auto batch = static_cast<std::int64_t>(1 + random() % 1'000'000);
    const auto step = static_cast<std::int64_t>(1 + random() % 1'000'000);
    const int world = static_cast<int>(1 + random() % 4096);
    ASSERT_NO_FATAL_FAILURE(expect_shares_cover(step, batch, world));
  }
}

TEST(SampleStream, DependsOnPositionAndSeedOnly) {
  const std::vector<std::int64_t> samples{0, 1, 2, 3, 4, 5, 6, 7, 8, 9};
  SampleStream forward(samples, 1), backward(samples, 1), other(samples, 2);
  std::vector<std::int64_t> a(50), b(50), c(50);
  for (std::size_t i = 0; i < 50; ++i) a[i] = forward.at(i), b[49 - i] = backward.at(49 - i), c[i] = other.at(i);
  EXPECT_EQ(a, b);
  EXPECT_NE(a, c);
}

TEST(SampleStream, AMixtureHasItsPartsAtEveryMoment) {
  const std::vector<std::vector<std::int64_t>> targets = {
      {4000, 3000, 3000}, {3333, 3333, 3334}, {9998, 1, 1}, {0, 5000, 5000}, {1250, 8437, 313}};
  for (const auto& target : targets) {
    SampleStream stream(mixture({7, 50, 3}, target));
    std::vector<std::int64_t> counts(3);
    for (std::int64_t n = 1; n <= 20000; ++n) {
      ++counts[static_cast<std::size_t>(stream.at(static_cast<std::uint64_t>(n - 1)) / 1000)];
      for (std::size_t type = 0; type < 3; ++type) {
        const double due = static_cast<double>(target[type]) * static_cast<double>(n) / kWholeTarget;
        ASSERT_LT(std::abs(static_cast<double>(counts[type]) - due), 3) << "after " << n << " draws";
      }
      if (n == 10000) {
        EXPECT_EQ(counts, target);
      }
    }
  }
}

TEST(SampleStream, ATypesSamplesComeInPassesOfTheirOwn) {
  SampleStream stream(mixture({7, 50, 3}, {4000, 3000, 3000}));
  std::map<std::int64_t, std::vector<std::int64_t>> drawn;
  for (std::uint64_t position = 0; position < 5000; ++position) {
    const std::int64_t sample = stream.at(position);
    drawn[sample / 1000].push_back(sample);
  }
  for (const auto& [type, samples] : drawn) {
    const std::size_t length = std::vector<std::size_t>{7, 50, 3}[static_cast<std::size_t>(type)];
    for (std::size_t begin = 0; begin + length <= samples.size(); begin += length) {
      const std::set<std::int64_t> pass(samples.begin() + static_cast<std::ptrdiff_t>(begin),
                                        samples.begin() + static_cast<std::ptrdiff_t>(begin + length));
      ASSERT_EQ(pass.size(), length) << "type " << type << ": none lost, none doubled";
    }
  }
}

const std::vector<std::vector<std::int64_t>> kOfDatasets = {{7, 30, 2}, {50, 0, 4}, {0, 9, 0}};

/// Of all draws, what a type's dataset is due.
double due_part(const std::vector<std::int64_t>& target, const std::vector<double>& weights, std::size_t type,
                std::size_t dataset) {
  double all = 0;
  for (std::size_t other = 0; other < weights.size(); ++other)
    if (kOfDatasets[type][other] > 0) all += weights[other];
  return static_cast<double>(target[type]) / kWholeTarget * weights[dataset] / all;
}

/// Of the first draws of a stream each class has its part, to less than two draws, and each type what it has without
/// weights.
void expect_two_levels(const std::vector<std::int64_t>& target, const std::vector<double>& weights) {
  SampleStream stream(weighted_mixture(kOfDatasets, target, weights)), plain(mixture({39, 54, 9}, target));
  std::map<std::int64_t, std::int64_t> counts;
  for (std::int64_t n = 1; n <= 20000; ++n) {
    const std::int64_t sample = stream.at(static_cast<std::uint64_t>(n - 1));
    ++counts[sample / 100];
    ASSERT_EQ(sample / 1000, plain.at(static_cast<std::uint64_t>(n - 1)) / 1000) << "weights move no draw of a type";
    for (std::size_t type = 0; type < 3; ++type) {
      for (std::size_t dataset = 0; dataset < 3; ++dataset) {
        if (kOfDatasets[type][dataset] == 0) continue;
        const double due = due_part(target, weights, type, dataset) * static_cast<double>(n);
        const std::int64_t drawn = counts[static_cast<std::int64_t>(10 * type + dataset)];
        ASSERT_LT(std::abs(static_cast<double>(drawn) - due), 2) << type << " of " << dataset << ", " << n << " draws";
      }
    }
  }
}

TEST(SampleStream, ATypesDatasetsHaveTheirPartsAtEveryMoment) {
  // Of each type the shares are whole ten-thousandths.
  for (const auto& target : std::vector<std::vector<std::int64_t>>{{4000, 3000, 3000}, {9998, 1, 1}, {0, 5000, 5000}})
    for (const auto& weights : std::vector<std::vector<double>>{{3, 4, 1}, {1, 98, 1}, {2, 1, 2}})
      ASSERT_NO_FATAL_FAILURE(expect_two_levels(target, weights));
}

TEST(SampleStream, DatasetsWithoutTypesHaveTheirPartsAtEveryMoment) {
  const std::vector<double> weights = {0.5, 1.5, 2};
  SampleStream stream(weighted_mixture({{9, 90, 5}}, {}, weights));
  std::vector<std::int64_t> counts(3);
  for (std::int64_t n = 1; n <= 10000; ++n) {
    ++counts[static_cast<std::size_t>(stream.at(static_cast<std::uint64_t>(n - 1)) / 100)];
    for (std::size_t dataset = 0; dataset < 3; ++dataset)
      ASSERT_LT(std::abs(static_cast<double>(counts[dataset]) - weights[dataset] / 4 * static_cast<double>(n)), 1) << n;
  }
  SampleStream thirds(weighted_mixture({{9, 7, 5}}, {}, {1e-9, 1e-9, 1e-9})),
      large(weighted_mixture({{9, 7}}, {}, {1e308, 1e308}));
  std::map<std::int64_t, std::int64_t> of_three, of_two;
  for (std::uint64_t position = 0; position < 10000; ++position) {
    ++of_three[thirds.at(position) / 100];
    ++of_two[large.at(position) / 100];
  }
  EXPECT_THAT(of_three,
              ::testing::ElementsAre(::testing::Pair(0, 3334), ::testing::Pair(1, 3333), ::testing::Pair(2, 3333)));
  EXPECT_THAT(of_two, ::testing::ElementsAre(::testing::Pair(0, 5000), ::testing::Pair(1, 5000)));
}

TEST(SampleStream, ADatasetsSamplesComeInPassesOfTheirOwn) {
  SampleStream stream(weighted_mixture(kOfDatasets, {4000, 3000, 3000}, {3, 4, 1}));
  std::map<std::int64_t, std::vector<std::int64_t>> drawn;
  for (std::uint64_t position = 0; position < 5000; ++position) {
    const std::int64_t sample = stream.at(position);
    drawn[sample / 100].push_back(sample);
  }
  EXPECT_EQ(drawn.size(), 6U);
  for (const auto& [number, samples] : drawn) {
    const auto length = static_cast<std::size_t>(
        kOfDatasets[static_cast<std::size_t>(number / 10)][static_cast<std::size_t>(number % 10)]);
    ASSERT_GT(samples.size(), 2 * length);
    for (std::size_t begin = 0; begin + length <= samples.size(); begin += length) {
      const std::set<std::int64_t> pass(samples.begin() + static_cast<std::ptrdiff_t>(begin),
                                        samples.begin() + static_cast<std::ptrdiff_t>(begin + length));
      ASSERT_EQ(pass.size(), length) << "class " << number << ": none lost, none doubled";
    }
  }
}

void expect_position_and_seed(const std::shared_ptr<const StreamOrder>& order,
                              const std::shared_ptr<const StreamOrder>& of_another_seed) {
  SampleStream forward(order), anywhere(order), other(of_another_seed);
  std::vector<std::int64_t> all, different;
  for (std::uint64_t position = 0; position < 500; ++position) {
    all.push_back(forward.at(position));
    different.push_back(other.at(position));
  }
  std::vector<std::uint64_t> positions(500);
  std::iota(positions.begin(), positions.end(), std::uint64_t{0});
  std::mt19937 random(3);
  std::ranges::shuffle(positions, random);
  for (const std::uint64_t position : positions) EXPECT_EQ(anywhere.at(position), all[position]) << position;
  EXPECT_NE(all, different);
}

TEST(SampleStream, AMixtureDependsOnPositionAndSeedOnly) {
  const std::vector<std::int64_t> target = {4000, 3000, 3000};
  expect_position_and_seed(mixture({7, 50, 3}, target), mixture({7, 50, 3}, target, 2));
  expect_position_and_seed(weighted_mixture(kOfDatasets, target, {3, 4, 1}),
                           weighted_mixture(kOfDatasets, target, {3, 4, 1}, 2));
}

TEST(SampleStream, KnowsWhenASampleIsDrawnNext) {
  for (const auto& order : {mixture({7, 50, 3}, {4000, 3000, 3000}), mixture({11}, {10000}), mixture({11, 2}, {}),
                            mixture({5, 4}, {9999, 1}), weighted_mixture(kOfDatasets, {4000, 3000, 3000}, {3, 4, 1}),
                            weighted_mixture({{9, 30, 5}}, {}, {1, 2, 5})}) {
    SampleStream stream(order), looked(order);
    std::vector<std::int64_t> all;
    for (std::uint64_t position = 0; position < 2000; ++position) all.push_back(stream.at(position));
    for (std::size_t position = 0; position < 300; ++position) {
      const auto next = std::find(all.begin() + static_cast<std::ptrdiff_t>(position) + 1, all.end(), all[position]);
      const std::uint64_t said = looked.next_draw(position);
      if (next != all.end()) {
        EXPECT_EQ(said, static_cast<std::uint64_t>(next - all.begin())) << position;
      } else {
        EXPECT_GE(said, all.size());
      }
    }
  }
}

TEST(SampleStream, SaysHowOftenASampleCanBeInAStep) {
  for (const auto& order : {mixture({7, 50, 3}, {4000, 3000, 3000}), mixture({7, 50, 3}, {9000, 500, 500}),
                            weighted_mixture({{7, 30}, {50, 4}, {0, 3}}, {4000, 3000, 3000}, {3, 1}),
                            weighted_mixture({{9, 30, 5}}, {}, {1, 2, 5})}) {
    for (const std::int64_t batch : {1, 2, 7, 16, 40}) {
      SampleStream stream(order);
      std::int64_t most = 0;
      for (std::int64_t step = 0; step < 400; ++step) {
        std::map<std::int64_t, std::int64_t> times;
        for (std::int64_t i = 0; i < batch; ++i) {
          const std::int64_t sample = stream.at(static_cast<std::uint64_t>(step * batch + i));
          most = std::max(most, ++times[sample]);
        }
      }
      EXPECT_LE(most, stream.most_draws_in_a_step(batch)) << batch;
      EXPECT_LE(stream.most_draws_in_a_step(batch), std::min(batch, most + 2)) << batch;
    }
  }
}

TEST(SampleStream, ATypeWithAPartNeedsSamples) {
  EXPECT_THROW(SampleStream(mixture({7, 0, 3}, {4000, 3000, 3000})), Error);
  SampleStream fine(mixture({7, 0, 3}, {5000, 0, 5000}));
  for (std::uint64_t position = 0; position < 100; ++position) EXPECT_NE(fine.at(position) / 1000, 1);
  EXPECT_THROW(SampleStream(weighted_mixture({{7, 1}, {0, 0}}, {5000, 5000}, {1, 2})), Error);
  SampleStream weighted(weighted_mixture({{7, 1}, {0, 0}}, {10000, 0}, {1, 3}));
  EXPECT_EQ(weighted.most_draws_in_a_step(8), 6) << "of the one sample that is three quarters of the draws";
}

}  // namespace
}  // namespace plimsoll::data
