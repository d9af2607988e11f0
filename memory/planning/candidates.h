#pragma once
// The plans a run may take, each with what it needs and what it costs: made once from dry runs and timings, read by the
// predictive policy. Whole numbers only, so that every rank that holds the same table takes the same decision. Pure;
// any thread.

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "memory/planning/plan.h"

namespace plimsoll::memory {

/// One plan with its prediction, judged on the heaviest micro-batch that any rank will draw.
struct Candidate {
  Plan plan;
  std::int64_t bytes = 0;         ///< predicted peak, static bytes included, before calibration
  std::int64_t microseconds = 0;  ///< predicted time of a step's largest share: all its micro-batches, as they are run
  friend bool operator==(const Candidate&, const Candidate&) = default;
};

/// All candidates, best first: those that show the largest pictures, of these the fastest (ties: first what recomputes
/// and offloads nothing, then the larger micro-batch, then fewer bytes, then the smaller plan). No plan stands in it
/// twice.
class CandidateTable {
 public:
  CandidateTable() = default;
  /// Sorts. Throws Error(kUsage) when a plan appears twice, or bytes or time are not positive.
  explicit CandidateTable(std::vector<Candidate> candidates);

  std::span<const Candidate> all() const { return candidates_; }
  bool empty() const { return candidates_.empty(); }
  /// Null when the plan is none of them.
  const Candidate* find(const Plan& plan) const;
  /// 24 bits that fit a report slot; 0 only for an empty table.
  std::uint32_t hash() const { return hash_; }

 private:
  std::vector<Candidate> candidates_;
  std::uint32_t hash_ = 0;
};

/// The table as text, for the broadcast from rank 0, and back. Text that is no table is Error(kUsage).
std::string to_text(const CandidateTable& table);
CandidateTable candidate_table_from_text(std::string_view text);

/// One line of JSON, {"candidates": [{"micro_batch": 4, ..., "bytes": 9000000000, "microseconds": 800000}, ...]}: what
/// a run leaves behind as candidates.json, and the first line of a trace for `simulate`.
std::string to_json(const CandidateTable& table);

/// Time of one micro-batch: straight lines between the sample counts that were timed with nothing recomputed, and what
/// recomputing and offloading add. Beyond the last point the last line goes on; one point alone is scaled by samples.
struct CostModel {
  struct Point {
    int samples = 1;
    std::int64_t microseconds = 0;
    friend bool operator==(const Point&, const Point&) = default;
  };
  std::vector<Point> points;  ///< samples ascending; at least one
  int language_blocks = 1, vision_blocks = 1, expert_blocks = 1;
  std::int64_t language_recompute =
      3000;                             ///< 1/10000 of a micro-batch's time added when every language block is redone
  std::int64_t vision_recompute = 0;    ///< likewise of the vision tower (0 where it has no adapters)
  std::int64_t expert_recompute = 300;  ///< likewise of the expert
  std::int64_t offload = 200;           ///< likewise when every language block is redone and its input offloaded
  friend bool operator==(const CostModel&, const CostModel&) = default;
};

/// Timed points without what a clock's noise is enough for: a larger micro-batch that seems to take longer per sample,
/// by less than a tenth, takes as long as the smaller one. Samples ascend.
std::vector<CostModel::Point> smoothed(std::vector<CostModel::Point> points);

/// How a share falls into micro-batches: `whole` ones of the plan's size and a ragged last one of `rest` samples (0:
/// none).
struct Cut {
  std::int64_t whole = 0;
  std::int64_t rest = 0;
  friend bool operator==(const Cut&, const Cut&) = default;
};
/// Throws Error(kUsage) unless both are at least 1.
Cut cut_share(std::int64_t share, std::int64_t micro_batch);

/// Microseconds of a share of `share` samples under `plan`: whole micro-batches and the ragged last one. Throws
/// Error(kUsage) for a model without points, with points that do not ascend, with a rate outside 0..1000000, or of
/// towers without blocks.
std::int64_t share_microseconds(const CostModel& model, const Plan& plan, std::int64_t share);

/// Which plans are worth a dry run.
struct PlanSpace {
  std::int64_t share = 1;  ///< largest share of any rank
  int min_micro = 1, max_micro = 64;
  std::vector<int> resolutions = {0};
  std::vector<int> language = {0};  ///< numbers of language blocks to recompute
  std::vector<int> vision = {0};
  std::vector<int> expert = {0};
  bool offload = false;  ///< offload too, where language blocks are recomputed
};

/// Micro-batches that differ in their accumulation: for every number of micro-batches the smallest size that makes it,
/// within the bounds, ascending. For a share of 16: 1, 2, 3, 4, 6, 8, 16.
std::vector<int> useful_micro_batches(std::int64_t share, int minimum, int maximum);

/// Every plan of the space.
std::vector<Plan> plans_of(const PlanSpace& space);

/// The table of `plans`: bytes from `bytes(plan)`, which is a dry run or a look-up; a plan for which it gives 0 is left
/// out. Times are those of steps cut as the plan says.
CandidateTable make_table(std::span<const Plan> plans, const CostModel& costs, std::int64_t share,
                          const std::function<std::int64_t(const Plan&)>& bytes);

}  // namespace plimsoll::memory
