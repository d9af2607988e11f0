#include "memory/planning/plan_table.h"

#include <gmock/gmock.h>

#include "core/bytes.h"
#include "core/error.h"
#include "tests/error_of.h"

namespace plimsoll::memory {
namespace {

using ::testing::HasSubstr;

PlanTable example() {
  PlanTable table{"cpu, model 12ab", "demo/model, fp32", 8, {}};
  table.rows.push_back({64_MiB, {0, 2, 4, 0, 3, true}, 4, 50_MiB, 49_MiB, 12345});
  table.rows.push_back({128_MiB, {0, 8, 0, 0, 0, false}, 1, 100_MiB, 99_MiB, 45006});
  return table;
}

std::string refusal(const std::string& text) {
  return error_of(ExitCode::kUsage, [&] { plan_table_from_toml(text, "mine.toml"); });
}

TEST(PlanTable, IsReadBackAsItWasWritten) {
  EXPECT_EQ(plan_table_from_toml(to_toml(example()), "mine.toml"), example());
}

TEST(PlanTable, SortsRowsByBudget) {
  PlanTable table = example();
  std::swap(table.rows[0], table.rows[1]);
  EXPECT_EQ(plan_table_from_toml(to_toml(table), "mine.toml"), example());
}

TEST(PlanTable, NamesWhatIsWrong) {
  const std::string good = to_toml(example());
  const auto changed = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    return text.replace(text.find(from), from.size(), to);
  };
  EXPECT_THAT(refusal("rows"), HasSubstr("mine.toml"));
  EXPECT_THAT(refusal(changed("micro_batch = 2", "micro_batch = 0")), HasSubstr("micro_batch = 0"));
  EXPECT_THAT(refusal(changed("offload = true", "offload = 1")), HasSubstr("offload = 1"));
  EXPECT_THAT(refusal(changed("share = 8", "shares = 8")), HasSubstr("no key \"share\""));
  EXPECT_THAT(refusal(changed("share = 8", "share = 8\nmore = 1")), HasSubstr("known"));
  EXPECT_THAT(refusal(changed("budget = 67108864", "budget = -1")), HasSubstr("budget = -1"));
}

TEST(PlanTable, TheRowOfTheLargestBudgetThatIsNotAbove) {
  const PlanTable table = example();
  EXPECT_EQ(matching_row(table, table.key, 8, 127_MiB, "mine.toml"), &table.rows[0]);
  EXPECT_EQ(matching_row(table, table.key, 8, 1_GiB, "mine.toml"), &table.rows[1]);
  EXPECT_EQ(matching_row(table, table.key, 8, 63_MiB, "mine.toml"), nullptr);
  EXPECT_EQ(matching_row(table, table.key, 9, 1_GiB, "mine.toml"), nullptr);
}

TEST(PlanTable, OfAnotherModelOrDeviceIsRefused) {
  try {
    matching_row(example(), "cuda, model 12ab", 8, 1_GiB, "mine.toml");
    FAIL() << "taken";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("mine.toml"));
    EXPECT_THAT(error.what(), HasSubstr("cuda, model 12ab"));
    EXPECT_THAT(error.what(), HasSubstr("plimsoll tune"));
  }
}

TEST(PlanTable, ReadsWellAsMarkdown) {
  EXPECT_THAT(
      to_markdown(example()),
      HasSubstr("| 64.0 MiB | micro-batch 2, recompute 4 blocks, recompute 3 expert blocks, offloaded | 4 | 50.0 "
                "MiB | 49.0 MiB | 12.345 |"));
}

}  // namespace
}  // namespace plimsoll::memory
