#include "core/config.h"

#include <gmock/gmock.h>

#include "core/error.h"
#include "tests/error_of.h"

namespace plimsoll {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

struct Change {
  std::int64_t step = 0;
  int rank = -1;
  Setting budget = 1.0;
  template <class V>
  void visit(V& v) {
    v("step", step, "Step.", at_least(1));
    v("rank", rank, "Rank.");
    v("budget", budget, "Budget.", either({byte_size(), fraction()}));
  }
};
struct MemoryTable {
  Setting budget = "auto", micro = "auto";
  double target = 0.85;
  std::string policy = "reactive";
  std::vector<Change> budget_changes;
  std::vector<std::string> knobs{"micro"};
  template <class V>
  void visit(V& v) {
    v("budget", budget, "Bytes | one or many.", each(either({one_of({"auto"}), byte_size(), fraction()})));
    v("micro", micro, "Micro-batch.", either({one_of({"auto"}), count(1)}));
    v("target", target, "Aim.", between(0.1, 1.0));
    v("policy", policy, "Policy.", one_of({"fixed", "reactive"}));
    v("budget_changes", budget_changes, "Changes.");
    v("knobs", knobs, "Knobs.");
  }
};
struct RunTable {
  std::string dir = "runs/a";
  std::int64_t seed = 7;
  bool live = false;
  std::vector<double> weights;
  template <class V>
  void visit(V& v) {
    v("dir", dir, "Folder.", not_empty());
    v("seed", seed, "Seed.", at_least(0));
    v("live", live, "Live.");
    v("weights", weights, "Weights.");
  }
};
struct MoreRun {
  int steps = 3;
  template <class V>
  void visit(V& v) {
    v("steps", steps, "Steps.");
  }
};
struct Config {
  RunTable run;
  MemoryTable memory;
  MoreRun more;
  template <class V>
  void visit(V& v) {
    v.table("run", run, "Run.");
    v.table("memory", memory, "Memory.");
    v.table("run", more, "More.");
  }
};

/// A list whose items got a key more.
struct OldItem {
  std::int64_t step = 0;
  template <class V>
  void visit(V& v) {
    v("step", step, "Step.");
  }
};
struct NewItem {
  std::int64_t step = 0;
  std::string kind = "plain";
  template <class V>
  void visit(V& v) {
    v("step", step, "Step.");
    v("kind", kind, "Kind.", either({one_of({"plain"}), starting_with("other:")}));
  }
};
template <class Item>
struct ListTable {
  std::vector<Item> items;
  template <class V>
  void visit(V& v) {
    v("items", items, "Items.");
  }
};
template <class Item>
struct ListConfig {
  ListTable<Item> list;
  template <class V>
  void visit(V& v) {
    v.table("list", list, "List.");
  }
};

Config parse(const std::string& text, const std::vector<std::string>& overrides = {}) {
  return parse_config<Config>(text, "demo.toml", overrides);
}

std::string refusal(const std::string& text, const std::vector<std::string>& overrides = {}) {
  return error_of(ExitCode::kUsage, [&] { parse(text, overrides); });
}

TEST(Config, ReadsEveryType) {
  const Config config = parse(R"(
[run]
dir = "runs/b"
seed = 12345678901
live = true
weights = [1, 2.5]
steps = 9
[memory]
budget = ["300MiB", 0.5]
target = 1
knobs = "recompute"
[[memory.budget_changes]]
step = 3
rank = 1
budget = "100MiB"
)");
  EXPECT_EQ(config.run.dir, "runs/b");
  EXPECT_EQ(config.run.seed, 12345678901);
  EXPECT_TRUE(config.run.live);
  EXPECT_EQ(config.run.weights, (std::vector<double>{1.0, 2.5}));
  EXPECT_EQ(config.more.steps, 9);
  EXPECT_EQ(config.memory.budget, Setting(Setting::List{"300MiB", 0.5}));
  EXPECT_EQ(config.memory.target, 1.0);
  EXPECT_EQ(config.memory.knobs, std::vector<std::string>{"recompute"});
  ASSERT_EQ(config.memory.budget_changes.size(), 1u);
  EXPECT_EQ(config.memory.budget_changes[0].rank, 1);
  EXPECT_EQ(config.memory.budget_changes[0].budget, Setting("100MiB"));
}

TEST(Config, OverridesAreTomlOrText) {
  const Config config =
      parse("[run]\nseed = 1\n", {"run.seed=2", "memory.policy=fixed", "memory.budget=[\"300MiB\",\"200MiB\"]",
                                  "run.dir=2024", "memory.target=5e-1", "memory.budget_changes=[{step=3}]"});
  EXPECT_EQ(config.run.seed, 2);
  EXPECT_EQ(config.memory.policy, "fixed");
  EXPECT_EQ(config.memory.budget, Setting(Setting::List{"300MiB", "200MiB"}));
  EXPECT_EQ(config.run.dir, "2024");
  EXPECT_EQ(config.memory.target, 0.5);
  EXPECT_EQ(config.memory.budget_changes.at(0).step, 3);
}

TEST(Config, UnknownNamesAreRefusedWithTheNearest) {
  EXPECT_EQ(refusal("[memory]\n\ntagret = 0.5\n"),
            "demo.toml:3: unknown key memory.tagret; the nearest known one is memory.target");
  EXPECT_EQ(refusal("[memroy]\ntarget = 0.5\n"),
            "demo.toml:1: unknown table [memroy]; the nearest known one is [memory]");
  EXPECT_THAT(refusal("seed = 3\n"), AllOf(HasSubstr("unknown key seed"), HasSubstr("run.seed")));
  EXPECT_EQ(refusal("", {"run.sed=1"}), "--set: unknown key run.sed; the nearest known one is run.seed");
  EXPECT_THAT(refusal("[[memory.budget_changes]]\nstpe = 1\n"), HasSubstr("memory.budget_changes[0].step"));
}

TEST(Config, WrongTypesAndRangesNameLineKeyValueAndExpectation) {
  EXPECT_EQ(refusal("[run]\nseed = \"x\"\n"), "demo.toml:2: run.seed = \"x\" is of the wrong type; expected: integer");
  EXPECT_THAT(refusal("[run]\nseed = -1\n"), AllOf(StartsWith("demo.toml:2: run.seed = -1"), HasSubstr("at least 0")));
  EXPECT_THAT(refusal("[run]\nseed = 1.5\n"), HasSubstr("integer"));
  EXPECT_THAT(refusal("[run]\nlive = 1\n"), HasSubstr("true or false"));
  EXPECT_THAT(refusal("[run]\ndir = 3\n"), HasSubstr("string"));
  EXPECT_THAT(refusal("[run]\ndir = \"\"\n"), HasSubstr("it has no default"));
  EXPECT_THAT(refusal("[run]\nsteps = 99999999999\n"), HasSubstr("integer up to 2147483647"));
  EXPECT_THAT(refusal("[run]\nweights = [1, \"b\"]\n"), HasSubstr("demo.toml:2: run.weights = \"b\""));
  EXPECT_THAT(refusal("[memory]\ntarget = nan\n"), HasSubstr("finite number"));
  EXPECT_THAT(refusal("[memory]\ntarget = 1.01\n"), HasSubstr("0.1 to 1"));
  EXPECT_THAT(refusal("[memory]\npolicy = \"magic\"\n"), HasSubstr("one of \"fixed\", \"reactive\""));
  EXPECT_THAT(refusal("[memory]\nbudget = [\"auto\", \"much\"]\n"), HasSubstr("memory.budget = [\"auto\", \"much\"]"));
  EXPECT_THAT(refusal("[memory]\nbudget = []\n"), HasSubstr("memory.budget = []"));
  EXPECT_THAT(refusal("[memory]\nbudget = -5\n"), HasSubstr("memory.budget = -5"));
  EXPECT_THAT(refusal("[memory]\nbudget = {a = 1}\n"), HasSubstr("list of them"));
  EXPECT_THAT(refusal("[memory]\nmicro = 2.5\n"), HasSubstr("\"auto\", or an integer, at least 1"));
  EXPECT_THAT(refusal("[memory]\nmicro = 0\n"), HasSubstr("memory.micro = 0"));
  EXPECT_EQ(parse("[memory]\nmicro = 4\n").memory.micro, Setting(4));
  EXPECT_THAT(refusal("[[memory.budget_changes]]\nstep = 0\n"), HasSubstr("memory.budget_changes[0].step = 0"));
  EXPECT_THAT(refusal("[memory]\nbudget_changes = 3\n"), HasSubstr("list of tables"));
  EXPECT_THAT(refusal("[run]\ndir = 2020-01-01\n"), HasSubstr("demo.toml:2: no key takes a date"));
}

TEST(Config, BrokenTomlAndOverridesAreRefused) {
  EXPECT_THAT(refusal("[run\nseed = 1\n"), AllOf(StartsWith("demo.toml:1: not valid TOML"), HasSubstr("column")));
  EXPECT_THAT(refusal("[run]\nseed = 1\nseed = 2\n"), StartsWith("demo.toml:3: not valid TOML"));
  EXPECT_THAT(refusal("", {"run.seed"}), HasSubstr("--set table.key=value"));
  EXPECT_THAT(refusal("", {"seed=3.5"}), HasSubstr("--set table.key=value"));
  EXPECT_THAT(refusal("", {"run.seed=1\ndir = \"x\""}), HasSubstr("expected: integer"));
  EXPECT_THROW(load_config<Config>("no/such.toml"), Error);
}

TEST(Config, ResolvedTomlLoadsBackIdentically) {
  const Config config =
      parse("[run]\ndir = 'a\"\\b\t\u00e9'\n[memory]\ntarget = 0.1234567890123456789\nbudget = [1, 0.5]\n",
            {"memory.budget_changes=[{step=3, budget=\"1GiB\"}]", "run.weights=[1e-300, 3.0, 1e22]"});
  const std::string text = config_to_toml(config);
  const Config again = parse(text);
  EXPECT_EQ(config_to_toml(again), text);
  EXPECT_EQ(again.memory.target, config.memory.target);
  EXPECT_EQ(again.run.dir, config.run.dir);
  EXPECT_EQ(again.run.weights, config.run.weights);
  EXPECT_EQ(config_hash(again), config_hash(config));
}

TEST(Config, HashSeesEveryValueButThoseLeftOut) {
  const Config a = parse("");
  EXPECT_NE(config_hash(a), config_hash(parse("[run]\nseed = 8\n")));
  EXPECT_EQ(config_hash(a, {"run.seed"}), config_hash(parse("[run]\nseed = 8\n"), {"run.seed"}));
  EXPECT_EQ(config_hash(a, {"run"}), config_hash(parse("[run]\nsteps = 8\n"), {"run"}));
}

TEST(Config, HashWithoutAKeyOfItemsIsThatOfBeforeTheKey) {
  const std::string text = "[[list.items]]\nstep = 3\n[[list.items]]\nstep = 4\n";
  const std::uint64_t old = config_hash(parse_config<ListConfig<OldItem>>(text, "old.toml"));
  const auto now = parse_config<ListConfig<NewItem>>(text, "new.toml");
  EXPECT_NE(config_hash(now), old);
  EXPECT_EQ(config_hash(now, {"list.items[].kind"}), old);
  EXPECT_NE(config_hash(now, {"list.items[].step"}), old);
  EXPECT_EQ(config_hash(ListConfig<NewItem>(), {"list.items[].kind"}), config_hash(ListConfig<OldItem>()));
}

TEST(Config, WordsMayGoOn) {
  const auto parsed = [](const std::string& kind) {
    const std::string text = "[[list.items]]\nkind = \"" + kind + "\"\n";
    return error_of(ExitCode::kUsage, [&] { parse_config<ListConfig<NewItem>>(text, "new.toml"); });
  };
  EXPECT_EQ(parsed("plain"), "no error");
  EXPECT_EQ(parsed("other:one"), "no error");
  for (const char* kind : {"other:", "another:one", "plainer"})
    EXPECT_THAT(parsed(kind), AllOf(HasSubstr("list.items[0].kind"), HasSubstr("\"other:...\"")));
}

TEST(Config, ReferenceListsEveryKeyOnce) {
  const std::string text = config_reference<Config>();
  EXPECT_THAT(text, HasSubstr("| `target` | `0.85` | number, 0.1 to 1 | Aim. |"));
  EXPECT_THAT(text, HasSubstr("| `budget_changes[].step` | `0` | integer, at least 1 | Step. |"));
  EXPECT_THAT(text, HasSubstr("Bytes \\| one or many."));
  EXPECT_EQ(text.find("## [run]"), text.rfind("## [run]"));
}

}  // namespace
}  // namespace plimsoll
