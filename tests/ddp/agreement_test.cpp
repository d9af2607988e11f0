#include "ddp/agreement.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/error.h"
#include "tests/error_of.h"

namespace plimsoll::ddp {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

std::vector<Report> world_of(std::size_t ranks) {
  return std::vector<Report>(ranks, Report{.plan_hash = 7, .weight_hash = 9});
}

std::string refusal(ExitCode code, std::span<const Report> reports, const AgreementState& before = {}) {
  return error_of(code, [&] { agree(reports, before); });
}

TEST(Agreement, AnOrdinaryStepIsAppliedWithoutAWord) {
  const Verdict verdict = agree(world_of(3), {});
  EXPECT_EQ(verdict.action, Action::kApply);
  EXPECT_FALSE(verdict.stop);
  EXPECT_THAT(verdict.ranks, IsEmpty());
  EXPECT_THAT(verdict.text, IsEmpty());
}

TEST(Agreement, AFailedRankMakesAllReplay) {
  auto reports = world_of(3);
  reports[1].failed = true;
  reports[1].sample_index = 42;
  reports[1].failed_request_bytes = 3 << 20;
  const Verdict verdict = agree(reports, {.skips_in_row = 1, .replays_in_row = 2});
  EXPECT_EQ(verdict.action, Action::kReplay);
  EXPECT_THAT(verdict.ranks, ElementsAre(1));
  EXPECT_EQ(verdict.next, (AgreementState{.skips_in_row = 1, .replays_in_row = 3}));
  EXPECT_THAT(verdict.text, AllOf(HasSubstr("rank 1 (sample 42)"), HasSubstr("3.00 MiB")));
}

TEST(Agreement, RetriesAloneChangeNothing) {
  auto reports = world_of(2);
  reports[0].retries = 5;
  EXPECT_EQ(agree(reports, {}).action, Action::kApply);
}

TEST(Agreement, ANonFiniteValueMakesAllSkip) {
  auto reports = world_of(3);
  reports[0].non_finite = reports[2].non_finite = true;
  reports[2].sample_index = 5;
  const Verdict verdict = agree(reports, {});
  EXPECT_EQ(verdict.action, Action::kSkip);
  EXPECT_THAT(verdict.ranks, ElementsAre(0, 2));
  EXPECT_EQ(verdict.next.skips_in_row, 1);
  EXPECT_THAT(verdict.text, AllOf(HasSubstr("rank 0 (sample unknown)"), HasSubstr("rank 2 (sample 5)")));
}

TEST(Agreement, FailedBeatsNonFinite) {
  auto reports = world_of(2);
  reports[0].non_finite = true;
  reports[1].failed = true;
  const Verdict verdict = agree(reports, {.skips_in_row = 2});
  EXPECT_EQ(verdict.action, Action::kReplay) << "the third non-finite step is not counted before it is whole";
  EXPECT_THAT(verdict.ranks, ElementsAre(1));
  EXPECT_EQ(verdict.next.skips_in_row, 2);
}

TEST(Agreement, ThreeSkipsInARowEndTheRunNamingTheSample) {
  auto reports = world_of(2);
  reports[1].non_finite = true;
  reports[1].sample_index = 1234;
  AgreementState state;
  state = agree(reports, state).next;
  state = agree(reports, state).next;
  EXPECT_THAT(refusal(ExitCode::kData, reports, state),
              AllOf(HasSubstr("3 steps in a row"), HasSubstr("rank 1 (sample 1234)")));
}

TEST(Agreement, AnUpdateClearsTheCounts) {
  EXPECT_EQ(agree(world_of(2), {.skips_in_row = 2, .replays_in_row = 4}).next, AgreementState{});
}

TEST(Agreement, AReplayInBetweenNeitherCountsNorClears) {
  auto failed = world_of(1), bad = world_of(1);
  failed[0].failed = true;
  bad[0].non_finite = true;
  AgreementState state = agree(bad, {}).next;
  state = agree(failed, state).next;
  state = agree(bad, state).next;
  EXPECT_EQ(state, (AgreementState{.skips_in_row = 2, .replays_in_row = 0}));
  EXPECT_NE(refusal(ExitCode::kData, bad, agree(failed, state).next), "no error");
}

TEST(Agreement, AStopIsTakenByAllWhateverTheAction) {
  for (int trouble = 0; trouble < 3; ++trouble) {
    auto reports = world_of(3);
    reports[2].stop_requested = true;
    reports[0].failed = trouble == 1;
    reports[0].non_finite = trouble == 2;
    const Verdict verdict = agree(reports, {});
    EXPECT_TRUE(verdict.stop);
    EXPECT_EQ(verdict.action, trouble == 0 ? Action::kApply : trouble == 1 ? Action::kReplay : Action::kSkip);
    EXPECT_THAT(verdict.text, HasSubstr("stop requested on rank 2"));
  }
}

TEST(Agreement, AnotherPlanIsNamed) {
  auto reports = world_of(4);
  reports[2].plan_hash = 8;
  reports[2].failed = true;
  EXPECT_THAT(refusal(ExitCode::kUsage, reports),
              AllOf(HasSubstr("the plan"), HasSubstr("rank 2 has 000000000008"), HasSubstr("000000000007")));
}

TEST(Agreement, OtherWeightsAreNamed) {
  auto reports = world_of(4);
  reports[0].weight_hash = reports[3].weight_hash = 1;
  reports.push_back(reports[1]);
  EXPECT_THAT(refusal(ExitCode::kUsage, reports),
              AllOf(HasSubstr("trained weights"), HasSubstr("ranks 0, 3 has 000000000001")));
}

TEST(Agreement, InATieRank0IsRight) {
  auto reports = world_of(2);
  reports[0].weight_hash = 1;
  EXPECT_THAT(refusal(ExitCode::kUsage, reports),
              AllOf(HasSubstr("rank 1 has 000000000009"), Not(HasSubstr("rank 0"))));
}

TEST(Agreement, NoReportsAreRefused) { EXPECT_NE(refusal(ExitCode::kUsage, {}), "no error"); }

}  // namespace
}  // namespace plimsoll::ddp
