#pragma once
// What `plimsoll plan` says: plain structs, and their text and JSON. No torch in here.

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "memory/planning/candidates.h"

namespace plimsoll {

/// One plan on one card.
struct PlannedPeak {
  memory::Plan plan;
  std::int64_t live = 0, reserved = 0;  ///< bytes: predicted peak, and what PyTorch's caching allocator would hold
  std::int64_t fragmentation = 0;       ///< 1/10000 of reserved
  std::int64_t retries = 0;             ///< of the caching allocator: cached blocks given back to stay within the card
};

struct PlannedCard {
  std::int64_t card = 0, usable = 0;  ///< bytes
  std::optional<PlannedPeak> best;
  std::vector<memory::Candidate> runners_up;
  std::map<std::string, std::int64_t> breakdown;  ///< of the best plan's peak, by label
};

/// One cell of the table: the largest micro-batch under a card and a LoRA rank, and what it needs.
struct TableCell {
  std::int64_t card = 0;
  int lora_rank = 0;
  memory::Plan plan;                    ///< micro_batch 0: nothing fits
  std::int64_t live = 0, reserved = 0;  ///< bytes
};

/// A row that people wrote by hand: does it fit, by how much, and what is the largest that does?
struct HandMadeRow {
  std::int64_t card = 0;
  int micro_batch = 0;
  std::int64_t live = 0, reserved = 0, allowed = 0;  ///< bytes: as of a plan, and target x usable
  bool fits = false;                                 ///< reserved within what is allowed
  int largest = 0;                                   ///< micro-batch that fits with the same recompute
};

/// A figure of the hand-made guide beside ours.
struct GuideFigure {
  std::string name, theirs, ours, reason;
};

struct PlanReport {
  std::string model, sample;  ///< what was planned for, in words
  std::int64_t effective = 0, overhead = 0, target = 0, static_bytes = 0;
  int ranks = 1;  ///< that share the effective batch
  int dry_runs = 0;
  bool for_a_gpu = true;  ///< whose allocations they are: those of the CUDA kernels, or of the CPU's
  bool expandable_segments = false;
  std::vector<PlannedCard> cards;
  std::vector<TableCell> table;
  std::vector<HandMadeRow> rows;
  std::vector<GuideFigure> guide;
};

std::string to_text(const PlanReport& report);
std::string to_json(const PlanReport& report);

}  // namespace plimsoll
