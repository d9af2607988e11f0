// Candidate tables, their text, the cost model and the plans of a space.
#include "memory/planning/candidates.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "core/error.h"
#include "tests/error_of.h"

namespace plimsoll::memory {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::string refused(const auto& action) { return error_of(ExitCode::kUsage, action); }

const std::vector<Candidate> kThree{{{0, 4, 0}, 500, 130}, {{0, 8, 0}, 800, 110}, {{224, 8, 18, 2, 3, true}, 700, 110}};

TEST(CandidateTable, IsSortedByResolutionThenTimeThenMicroBatchThenBytesThenPlan) {
  const CandidateTable table(kThree);
  EXPECT_THAT(std::vector<Candidate>(table.all().begin(), table.all().end()),
              ElementsAre(kThree[1], kThree[0], kThree[2]));
  const CandidateTable ties({{{0, 2, 1}, 5, 5}, {{0, 2, 0}, 5, 5}, {{0, 1, 9}, 5, 5}});
  EXPECT_EQ(ties.all()[0].plan, (Plan{0, 2, 0}));
  EXPECT_EQ(ties.all()[1].plan, (Plan{0, 2, 1}));
  EXPECT_EQ(CandidateTable({{{0, 2, 2}, 6, 5}, {{0, 2, 3}, 5, 5}}).all()[0].plan, (Plan{0, 2, 3}));
  EXPECT_EQ(CandidateTable({{{0, 1, 0}, 6, 5}, {{0, 2, 1}, 5, 5}}).all()[0].plan, (Plan{0, 1, 0})) << "plain";
}

TEST(CandidateTable, FindsAPlanByAllItsFields) {
  const CandidateTable table(kThree);
  ASSERT_NE(table.find({0, 8, 0}), nullptr);
  EXPECT_EQ(table.find({0, 8, 0})->bytes, 800);
  EXPECT_EQ(table.find({224, 8, 18, 2, 3, false}), nullptr);
  EXPECT_EQ(CandidateTable().find({}), nullptr);
}

TEST(CandidateTable, RefusesDoublesAndWhatIsNotPositive) {
  EXPECT_THAT(refused([] { CandidateTable({{{0, 4, 0}, 1, 1}, {{0, 4, 0}, 2, 2}}); }), HasSubstr("micro-batch 4"));
  EXPECT_THAT(refused([] { CandidateTable({{{0, 4, 0}, 0, 1}}); }), HasSubstr("0 bytes"));
  EXPECT_THAT(refused([] { CandidateTable({{{0, 4, 0}, 1, 0}}); }), HasSubstr("0 us"));
}

TEST(CandidateTable, TheHashTellsTablesApartAndFitsASlot) {
  EXPECT_EQ(CandidateTable().hash(), 0U);
  const std::uint32_t hash = CandidateTable(kThree).hash();
  EXPECT_GT(hash, 0U);
  EXPECT_LT(hash, 1U << 24);
  std::vector<Candidate> turned{kThree.rbegin(), kThree.rend()};
  EXPECT_EQ(CandidateTable(turned).hash(), hash) << "the order of making does not count";
  for (int field = 0; field < 8; ++field) {
    std::vector<Candidate> other = kThree;
    Candidate& c = other[0];
    int* const ints[] = {&c.plan.resolution, &c.plan.micro_batch, &c.plan.recompute_blocks, &c.plan.recompute_vision,
                         &c.plan.recompute_expert};
    if (field < 5) ++*ints[field];
    if (field == 5) c.plan.offload = true;
    if (field == 6) ++c.bytes;
    if (field == 7) ++c.microseconds;
    EXPECT_NE(CandidateTable(other).hash(), hash) << field;
  }
}

TEST(CandidateText, RoundTrips) {
  for (const CandidateTable& table : {CandidateTable(), CandidateTable(kThree)}) {
    const CandidateTable read = candidate_table_from_text(to_text(table));
    EXPECT_TRUE(std::ranges::equal(read.all(), table.all()));
    EXPECT_EQ(read.hash(), table.hash());
  }
  EXPECT_EQ(to_text(CandidateTable({kThree[0]})), "candidates 1 1\n0 4 0 0 0 0 500 130\n");
}

TEST(CandidateText, DamageIsRefused) {
  const std::string head = "candidates 1 1\n";
  for (const std::string& text : std::vector<std::string>{
           "", "candidates", "candidates 1 1", "candidates 2 0\n", "candidates 1 \n", "candidates 1 x\n",
           "candidates 1 2\n0 4 0 0 0 0 500 130\n", head, head + "0 4 0 0 0 0 500 130", head + "0 4 0 0 0 0 500\n",
           head + "0 4 0 0 0 0 500 130 1\n", head + "0 4 0 0 0 0 500  130\n", head + "0 4 0 0 0 2 500 130\n",
           head + "0 0 0 0 0 0 500 130\n", head + "0 4 -1 0 0 0 500 130\n", head + "0 4 99999999999 0 0 0 500 130\n",
           head + "0 4 0 0 0 0 0 130\n", head + "0 4 0 0 0 0 99999999999999999999 130\n", head + "\n"}) {
    EXPECT_NE(refused([&] { candidate_table_from_text(text); }), "") << text;
  }
}

struct CostCase {
  Plan plan;
  std::int64_t share;
  std::int64_t microseconds;
};

// Timed: 2 samples 200 us, 4 samples 300 us, 8 samples 700 us.
TEST(CostModel, LinesBetweenThePointsAndWholeAndRaggedMicroBatches) {
  CostModel model;
  model.points = {{2, 200}, {4, 300}, {8, 700}};
  model.language_blocks = 10;
  model.expert_blocks = 2;
  const std::vector<CostCase> cases{
      {{0, 2, 0}, 2, 200},               // a point
      {{0, 3, 0}, 3, 250},               // between two
      {{0, 1, 0}, 1, 150},               // the first line goes on to the left
      {{0, 16, 0}, 16, 1500},            // the last to the right
      {{0, 4, 0}, 8, 600},               // two whole ones
      {{0, 4, 0}, 9, 750},               // and a ragged one of 1
      {{0, 64, 0}, 4, 300},              // larger than the share
      {{0, 4, 10}, 4, 390},              // 30 % when every block is redone
      {{0, 4, 5}, 4, 345},               // half of them
      {{0, 4, 99}, 4, 390},              // more than there are
      {{0, 4, 0, 0, 2}, 4, 309},         // 3 % of the expert
      {{0, 4, 10, 0, 0, true}, 4, 396},  // and 2 % offloaded
      {{0, 4, 0, 0, 0, true}, 4, 300},   // nothing recomputed, nothing to offload
      {{0, 4, 10, 5, 1, true}, 9, 2 * (300 + 90 + 5 + 6) + (150 + 45 + 2 + 3)},  // 4.5 -> 5, 2.25 -> 2
  };
  for (const CostCase& row : cases)
    EXPECT_EQ(share_microseconds(model, row.plan, row.share), row.microseconds) << to_string(row.plan) << row.share;
}

TEST(CostModel, OnePointIsScaledAndNoisyPointsGiveNoNonsense) {
  CostModel model;
  model.points = {{4, 100}};
  EXPECT_EQ(share_microseconds(model, {0, 1, 0}, 1), 25);
  EXPECT_EQ(share_microseconds(model, {0, 8, 0}, 8), 200);
  model.points = {{4, 1000}, {5, 500}};
  EXPECT_EQ(share_microseconds(model, {0, 64, 0}, 64), 500) << "not below the last point";
  EXPECT_EQ(share_microseconds(model, {0, 1, 0}, 1), 2500);
  model.points = {{4, 100}, {5, 500}};
  EXPECT_EQ(share_microseconds(model, {0, 1, 0}, 1), 25) << "not below a proportional part of the first";
  model.points = {{1, std::numeric_limits<std::int64_t>::max()}};
  EXPECT_EQ(share_microseconds(model, {0, 1, 1}, std::int64_t{1} << 40), std::numeric_limits<std::int64_t>::max());
}

TEST(CostModel, NonsenseIsRefused) {
  const auto refuses = [](const CostModel& model, std::int64_t share = 1) {
    return refused([&] { share_microseconds(model, {}, share); });
  };
  EXPECT_THAT(refuses({}), HasSubstr("at least one"));
  CostModel model;
  model.points = {{1, 10}};
  EXPECT_EQ(refuses(model), "no error");
  EXPECT_THAT(refuses(model, 0), HasSubstr("share of 0"));
  model.points = {{2, 10}, {2, 20}};
  EXPECT_THAT(refuses(model), HasSubstr("ascend"));
  model.points = {{1, 0}};
  EXPECT_THAT(refuses(model), HasSubstr("positive"));
  model.points = {{1, 10}};
  model.vision_blocks = 0;
  EXPECT_THAT(refuses(model), HasSubstr("block"));
  model.vision_blocks = 1;
  model.offload = -1;
  EXPECT_THAT(refuses(model), HasSubstr("rate"));
}

TEST(Space, UsefulMicroBatchesDifferInTheirAccumulation) {
  EXPECT_THAT(useful_micro_batches(16, 1, 64), ElementsAre(1, 2, 3, 4, 6, 8, 16));
  EXPECT_THAT(useful_micro_batches(16, 1, 8), ElementsAre(1, 2, 3, 4, 6, 8));
  EXPECT_THAT(useful_micro_batches(16, 5, 7), ElementsAre(5, 6)) << "5 makes 4 of them, 6 and 7 make 3";
  EXPECT_THAT(useful_micro_batches(1, 1, 64), ElementsAre(1));
  EXPECT_THAT(useful_micro_batches(3, 4, 64), ElementsAre(3)) << "a minimum above the share means the share";
  EXPECT_THAT(useful_micro_batches(7, 1, 64), ElementsAre(1, 2, 3, 4, 7));
  EXPECT_THAT(useful_micro_batches(std::int64_t{1} << 40, 3, 5), ElementsAre(3, 4, 5));
  EXPECT_NE(refused([] { useful_micro_batches(0, 1, 1); }), "");
  EXPECT_NE(refused([] { useful_micro_batches(4, 0, 1); }), "");
  EXPECT_NE(refused([] { useful_micro_batches(4, 3, 2); }), "");
}

TEST(Space, UsefulMicroBatchesAreTheSmallestOfTheirKind) {
  for (std::int64_t share = 1; share <= 200; ++share) {
    std::vector<int> expected;
    for (int size = 1; size <= share; ++size) {
      if (size == 1 || (share + size - 1) / size != (share + size - 2) / (size - 1)) expected.push_back(size);
    }
    EXPECT_EQ(useful_micro_batches(share, 1, 1000), expected) << share;
  }
}

TEST(Space, EveryPlanOnceAndOffloadOnlyWhereLanguageBlocksAreRecomputed) {
  PlanSpace space;
  space.share = 2;
  space.language = {0, 18, 18};
  space.vision = {0, 2};
  space.offload = true;
  const std::vector<Plan> plans = plans_of(space);
  EXPECT_EQ(plans.size(), 2U * 2U * (1U + 2U));
  EXPECT_EQ(std::count(plans.begin(), plans.end(), Plan{0, 2, 18, 2, 0, true}), 1);
  EXPECT_EQ(std::count(plans.begin(), plans.end(), Plan{0, 2, 0, 2, 0, true}), 0);
  space.offload = false;
  EXPECT_EQ(plans_of(space).size(), 8U);
  space.resolutions = {112, 224};
  EXPECT_EQ(plans_of(space).size(), 16U);
}

TEST(Space, TheTableLeavesOutPlansWithoutBytes) {
  PlanSpace space;
  space.share = 4;
  CostModel costs;
  costs.points = {{1, 10}};
  const auto bytes = [](const Plan& plan) { return plan.micro_batch == 2 ? 0 : std::int64_t{100} * plan.micro_batch; };
  const CandidateTable table = make_table(plans_of(space), costs, 4, bytes);
  EXPECT_EQ(table.all().size(), 2U);
  EXPECT_EQ(table.find({0, 2, 0}), nullptr);
  EXPECT_EQ(*table.find({0, 4, 0}), (Candidate{{0, 4, 0}, 400, 40}));
}

TEST(CostModel, ALittleMoreTimePerSampleIsTakenForNoise) {
  using Points = std::vector<CostModel::Point>;
  // The clock said that two samples take less each than four or eight do.
  EXPECT_EQ(smoothed({{1, 17104}, {2, 16500}, {4, 35589}, {8, 67959}}),
            (Points{{1, 17104}, {2, 16500}, {4, 33000}, {8, 66000}}));
  EXPECT_EQ(smoothed({{1, 100}, {2, 150}, {4, 250}}), (Points{{1, 100}, {2, 150}, {4, 250}}));
  EXPECT_EQ(smoothed({{1, 100}, {2, 219}, {4, 441}}), (Points{{1, 100}, {2, 200}, {4, 441}}))
      << "a tenth and more is none";
  EXPECT_EQ(smoothed({}), Points());
}

}  // namespace
}  // namespace plimsoll::memory
