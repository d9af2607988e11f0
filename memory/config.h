#pragma once
// [memory] and [batch]: what a rank may use, and how the plan is chosen.
//
// Fractions here are of the budget and stay floating point; the policy, which must decide alike on every rank, has them
// as whole numbers of 1/10000 (parse_fraction in memory/planning/policy.h). Settings that take a word or a value
// ("auto" or a number) are resolved in train/options.h, where the machine and the model are known.

#include <string>
#include <vector>

#include "core/config.h"

namespace plimsoll::memory {

/// A budget that changes mid-run, as a neighbour on the same card would change it. For demonstrations and tests.
struct BudgetChange {
  std::int64_t step = 0;
  std::int64_t rank = 0;
  Setting budget = "1GiB";
  std::int64_t after_allocations = 0;

  template <class V>
  void visit(V& v) {
    v("step", step, "Step in which it happens (the first is 1).", at_least(1));
    v("rank", rank, "Rank whose budget changes.", at_least(0));
    v("budget", budget, "The new budget: a size, or a fraction of the budget at start.",
      either({byte_size(), fraction()}));
    v("after_allocations", after_allocations, "Counted allocations of that step before it happens; 0: before the step.",
      at_least(0));
  }
};

/// [memory]. Nothing in it changes what is learned, except "resolution" among the `knobs`; it may change when a run is
/// resumed. `profile` = "classic" replaces the bounds of the knobs by the first prototype's and turns resolution before
/// micro-batch.
struct MemoryConfig {
  Setting budget = "auto";
  Setting card = "auto";
  bool snapshot = true;
  std::vector<BudgetChange> budget_changes;
  Setting target = "auto";
  double margin = 0.05;
  std::string policy = "predictive", profile = "default";
  std::int64_t adjustment_frequency = 25;
  std::vector<std::string> knobs = {"micro_batch", "recompute", "offload"};
  Setting recompute = "auto";
  Setting offload = "auto";
  std::string calibration = "auto", table = "auto";
  Setting workspace = "auto";

  template <class V>
  void visit(V& v) {
    v("budget", budget,
      "Bytes a rank may use: \"auto\" (what the machine has, shared by its ranks), a size, a fraction of that; one "
      "value, or one per rank. On a GPU it bounds what PyTorch's allocator reserves.",
      each(either({one_of({"auto"}), byte_size(), fraction()})));
    v("card", card,
      "The size of the card that the device stands for, where that is not its own (\"auto\"): budgets \"auto\" and "
      "fractions are of what such a card leaves its ranks, less what each of them holds on it outside of the "
      "allocator (context, kernels, communicators), which is measured. A budget that is a size is taken as it is.",
      either({one_of({"auto"}), byte_size()}));
    v("snapshot", snapshot,
      "On a GPU, the first allocation of a run that fails leaves `out-of-memory-rank-N.pickle` in run.dir, for "
      "PyTorch's memory viewer.");
    v("budget_changes", budget_changes,
      "Budgets that change mid-run: a neighbour on the same card, for demonstrations and tests.");
    v("target", target,
      "Fraction of the budget that the peak should reach: \"auto\" (0.98 under the predictive policy, 0.85 under the "
      "others and with the classic profile) or a number.",
      either({one_of({"auto"}), between(0.1, 1.0)}));
    v("margin", margin,
      "The band under the target in which nothing is changed, as a fraction of the budget; with target = \"auto\" no "
      "more than is left above it.",
      between(0.0, 0.5));
    v("policy", policy,
      "How the plan changes: \"predictive\" (to the fastest that is predicted to fit), \"reactive\" (step by step, "
      "from measured peaks) or \"fixed\" (never).",
      one_of({"fixed", "predictive", "reactive"}));
    v("profile", profile, "Bounds of the reactive policy: \"default\" or \"classic\" (those of the first prototype).",
      one_of({"default", "classic"}));
    v("adjustment_frequency", adjustment_frequency, "Steps of a window: between two decisions.", at_least(1));
    v("knobs", knobs,
      "What the policy may turn: \"micro_batch\", \"recompute\" and \"offload\" (the last two by the predictive "
      "policy), \"resolution\" (it changes what the model sees; the predictive policy lowers it only while nothing "
      "else fits). The reactive policy turns its knobs in this order.",
      each(one_of({"micro_batch", "offload", "recompute", "resolution"})));
    v("recompute", recompute,
      "Language blocks that keep only their input: \"none\", \"all\", a number, or \"auto\" (what the predictive "
      "policy finds best; under the others none if a single sample then fits, else all).",
      either({one_of({"auto", "none", "all"}), count(0)}));
    v("offload", offload,
      "Whether what recomputed language blocks keep lies in host memory outside the budget: \"on\", \"off\", or "
      "\"auto\" (where the predictive policy finds it best, or when a single sample does not fit otherwise).",
      one_of({"auto", "on", "off"}));
    v("calibration", calibration,
      "Where is kept what measured peaks said about predicted ones: \"auto\" (in the user's cache folder, one file a "
      "model), \"off\", or a file.",
      not_empty());
    v("table", table,
      "Table of `plimsoll tune`: the predictive policy starts with the row of the largest budget that is not above a "
      "rank's. \"auto\": the first in configs/tables that is of this model and machine; \"off\": it starts with what "
      "it predicts to be fastest.",
      not_empty());
    v("workspace", workspace, "Bytes of the arena for library scratch, part of the budget: \"auto\" or a size.",
      either({one_of({"auto"}), byte_size()}));
  }
};

/// [batch]. `effective` fixes what is learned; all others only say how it is cut. A rank's share is the floor or
/// ceiling of effective / ranks, and no micro-batch is larger than that, whatever `max_micro` says.
struct BatchConfig {
  std::int64_t effective = 32;
  Setting micro = "auto";
  std::int64_t min_micro = 1, max_micro = 64;
  Setting accumulation = "auto";
  std::string packing = "count";
  Setting max_memory = "budget";
  double diversity = 0.5;

  template <class V>
  void visit(V& v) {
    v("effective", effective, "Samples in one optimiser step over all ranks; never changed by a plan.", at_least(1));
    v("micro", micro,
      "Samples in one forward and backward to start with: \"auto\" (the most that a dry run says fit) or a number.",
      either({one_of({"auto"}), count(1)}));
    v("min_micro", min_micro, "Smallest micro-batch that the policy chooses.", at_least(1));
    v("max_micro", max_micro, "Largest micro-batch that the policy chooses.", at_least(1));
    v("accumulation", accumulation,
      "Micro-batches per step and rank under policy \"fixed\": \"auto\", or a number that is checked against the "
      "effective batch.",
      either({one_of({"auto"}), count(1)}));
    v("packing", packing,
      "How a rank's samples of a step are cut into micro-batches: \"count\" (as many in each as the plan says, of "
      "about "
      "the same weight) or \"bytes\" (as many as are predicted to fit, the plan saying only what is recomputed). "
      "Neither "
      "changes what is learned.",
      one_of({"count", "bytes"}));
    v("max_memory", max_memory,
      "packing = \"bytes\": bytes that a rank may be predicted to have live with a micro-batch: \"budget\" "
      "(memory.target "
      "of it) or a size below that.",
      either({one_of({"budget"}), byte_size()}));
    v("diversity", diversity,
      "packing = \"bytes\": how much it counts that a micro-batch's samples are of different types ([tasks]), beside "
      "that it is full: 0 to 1.",
      between(0.0, 1.0));
  }
};

}  // namespace plimsoll::memory
