#include "memory/planning/scenarios.h"

#include <algorithm>
#include <numeric>

#include "core/bytes.h"
#include "core/error.h"

namespace plimsoll::memory {
namespace {

/// A script of the classic profile, whose plan starts at 128 px and micro-batch 16.
Scenario scripted(const char* name, const char* summary, std::vector<ScriptPart> script, Plan first = {128, 16, 0}) {
  Scenario scenario;
  scenario.name = name;
  scenario.summary = summary;
  scenario.classic = true;
  scenario.script = std::move(script);
  scenario.first = first;
  return scenario;
}

std::vector<Scenario> classic_scenarios() {
  return {
      scripted("classic-below", "usage 0.65: resolution grows first, four steps at a time", {{200, 6500}}),
      scripted("classic-below-far", "usage 0.30: at most eight steps at a time", {{100, 3000}}),
      scripted("classic-below-at-top", "usage 0.65 with resolution at its maximum: the batch grows", {{100, 6500}},
               {256, 16, 0}),
      scripted("classic-in-band", "usage 0.82 to 0.85: nothing changes", {{50, 8200}, {50, 8350}, {50, 8500}}),
      scripted("classic-above", "usage 0.93: the batch shrinks", {{100, 9300}}),
      scripted("classic-above-at-bottom", "usage 0.93 with the batch at its minimum: resolution shrinks", {{100, 9300}},
               {128, 4, 0}),
      scripted("classic-above-both", "usage 0.98 until the batch is at its minimum, then resolution shrinks too",
               {{350, 9800}}, {128, 10, 0}),
      scripted("classic-early", "3 % before the first window is over: nothing changes", {{24, 300}}),
      scripted("classic-cooldown", "usage 0.65, then 0.93 in the window after the change: it passes without a decision",
               {{25, 6500}, {25, 9300}, {50, 8300}}),
      scripted("classic-peak-anew", "one step of 0.97 in the first window: later windows do not remember it",
               {{10, 8300}, {1, 9700}, {14, 8300}, {75, 8300}}),
  };
}

/// A 3B model with LoRA on cards of 24 GiB: two ranks, 16 samples each.
Scenario ordinary(const char* name, const char* summary) {
  Scenario scenario;
  scenario.name = name;
  scenario.summary = summary;
  scenario.ranks = 2;
  scenario.budgets = {24_GiB};
  scenario.model.static_bytes = 8_GiB;
  scenario.model.sample_bytes = 1700_MiB;
  scenario.model.launch_us = 60'000;
  scenario.model.sample_us = 90'000;
  scenario.lengths = {.shortest = 800, .longest = 1200};
  return scenario;
}

template <class Change>
Scenario varied(const char* name, const char* summary, Change change) {
  Scenario scenario = ordinary(name, summary);
  change(scenario);
  return scenario;
}

void add_budget_scenarios(std::vector<Scenario>& all) {
  all.push_back(ordinary("calm", "nothing happens"));
  all.push_back(varied("ample", "the whole share fits at once with nothing recomputed",
                       [](Scenario& s) { s.budgets = {80_GiB}; }));
  all.push_back(varied("tight", "a single sample fits only when blocks are recomputed",
                       [](Scenario& s) { s.budgets = {10_GiB}; }));
  all.push_back(
      varied("small-card", "12 GiB: small micro-batches and recompute", [](Scenario& s) { s.budgets = {12_GiB}; }));
  all.push_back(varied("neighbour", "a neighbour takes 8 GiB at step 160 and stays", [](Scenario& s) {
    s.changes = {{160, -1, 16_GiB}};
  }));
  all.push_back(varied("neighbour-on-one", "a neighbour takes 8 GiB of one rank at step 160", [](Scenario& s) {
    s.changes = {{160, 1, 16_GiB}};
  }));
  all.push_back(varied("visitor", "a neighbour takes 8 GiB from step 110 to step 260", [](Scenario& s) {
    s.changes = {{110, -1, 16_GiB}, {260, -1, 24_GiB}};
  }));
  all.push_back(varied("step-up", "the budget doubles at step 120", [](Scenario& s) {
    s.budgets = {14_GiB};
    s.changes = {{120, -1, 28_GiB}};
  }));
  all.push_back(varied("staircase-down", "24, 20, 16, 12 GiB, every 100 steps", [](Scenario& s) {
    s.changes = {{101, -1, 20_GiB}, {201, -1, 16_GiB}, {301, -1, 12_GiB}};
  }));
  all.push_back(varied("staircase-up", "12, 16, 20, 24 GiB, every 100 steps", [](Scenario& s) {
    s.budgets = {12_GiB};
    s.changes = {{101, -1, 16_GiB}, {201, -1, 20_GiB}, {301, -1, 24_GiB}};
  }));
  all.push_back(varied("to-and-fro", "16 and 24 GiB in turn, every 75 steps", [](Scenario& s) {
    for (std::int64_t step = 76; step <= 376; step += 75)
      s.changes.push_back({step, -1, step % 2 == 0 ? 16_GiB : 24_GiB});
  }));
}

void add_rank_scenarios(std::vector<Scenario>& all) {
  all.push_back(varied("small-rank", "one of four ranks has 12 GiB, the others 24", [](Scenario& s) {
    s.ranks = 4;
    s.effective = 64;
    s.budgets = {24_GiB, 24_GiB, 12_GiB, 24_GiB};
  }));
  all.push_back(varied("eight-ranks", "eight ranks, four samples each", [](Scenario& s) { s.ranks = 8; }));
  all.push_back(varied("one-rank", "a single rank with 32 samples", [](Scenario& s) { s.ranks = 1; }));
  all.push_back(varied("odd-shares", "three ranks share 32 samples: 10, 11 and 11", [](Scenario& s) { s.ranks = 3; }));
}

void add_length_scenarios(std::vector<Scenario>& all) {
  all.push_back(varied("growing", "samples grow from 0.7 to 1.3 of their length over the epoch", [](Scenario& s) {
    s.lengths.first = 700;
    s.lengths.last = 1300;
  }));
  all.push_back(varied("growing-epochs", "the same in each of four epochs of 100 steps", [](Scenario& s) {
    s.lengths.first = 700;
    s.lengths.last = 1300;
    s.epoch_steps = 100;
  }));
  all.push_back(varied("shrinking", "samples shrink from 1.3 to 0.7 of their length over the epoch", [](Scenario& s) {
    s.lengths.first = 1300;
    s.lengths.last = 700;
  }));
  all.push_back(varied("rare-heavy", "one sample of 400 is four times as long", [](Scenario& s) {
    s.lengths.heavy_every = 400;
    s.lengths.heavy = 4000;
  }));
  all.push_back(varied("mixed", "lengths from 0.3 to 2 of an ordinary one", [](Scenario& s) {
    s.lengths.shortest = 300;
    s.lengths.longest = 2000;
  }));
  all.push_back(varied("equal", "all samples alike", [](Scenario& s) { s.lengths = {}; }));
}

void add_surprise_scenarios(std::vector<Scenario>& all) {
  all.push_back(varied("leak", "8 MiB more every step from step 100 to 400", [](Scenario& s) {
    s.surprises.leak_bytes = 8_MiB;
    s.surprises.leak_from = 100;
    s.surprises.leak_until = 400;
  }));
  all.push_back(
      varied("noise", "up to 1 GiB more or not, at random", [](Scenario& s) { s.surprises.noise_bytes = 1_GiB; }));
  all.push_back(varied("underestimated", "activations are 8 % larger than predicted",
                       [](Scenario& s) { s.surprises.under = 800; }));
  all.push_back(varied("badly-underestimated", "activations are 30 % larger than predicted: the first plan fails",
                       [](Scenario& s) { s.surprises.under = 3000; }));
  all.push_back(varied("slow-launch", "a micro-batch costs as much as three samples before its first",
                       [](Scenario& s) { s.model.launch_us = 270'000; }));
  all.push_back(varied("dear-recompute", "recomputing everything takes 60 % more time",
                       [](Scenario& s) { s.model.recompute = 6000; }));
}

std::vector<Scenario> make_all() {
  std::vector<Scenario> all = classic_scenarios();
  add_budget_scenarios(all);
  add_rank_scenarios(all);
  add_length_scenarios(all);
  add_surprise_scenarios(all);
  return all;
}

/// How many letters have to be changed, added or left out.
std::size_t distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = std::exchange(row[0], i);
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t replaced = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = std::exchange(row[j], std::min({row[j] + 1, row[j - 1] + 1, replaced}));
    }
  }
  return row.back();
}

}  // namespace

const std::vector<Scenario>& scenarios() {
  static const std::vector<Scenario> kAll = make_all();
  return kAll;
}

Scenario find_scenario(std::string_view name, int ranks) {
  const auto nearest = std::min_element(scenarios().begin(), scenarios().end(), [&](const auto& a, const auto& b) {
    return distance(a.name, name) < distance(b.name, name);
  });
  if (nearest->name != name) {
    fail(ExitCode::kUsage, "--scenario {}: there is none of that name; the nearest one is {}, --list names all", name,
         nearest->name);
  }
  Scenario scenario = *nearest;
  if (ranks > 0) scenario.ranks = ranks;
  scenario.effective = std::max<std::int64_t>(scenario.effective, scenario.ranks);
  return scenario;
}

}  // namespace plimsoll::memory
