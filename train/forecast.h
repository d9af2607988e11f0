#pragma once
// What fits on cards that nobody here owns: plans, peaks and what they are made of, from config.json alone. Nothing of
// the model is allocated. Behind `plimsoll plan`.

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "memory/planning/caching_allocator.h"
#include "memory/planning/candidates.h"
#include "train/dry_step.h"
#include "train/options.h"

namespace plimsoll::train {

/// One plan in bytes.
struct PlanBytes {
  memory::Plan plan;
  std::int64_t live = 0;           ///< predicted peak: static bytes, cache, workspace, activations
  std::int64_t reserved = 0;       ///< what PyTorch's caching allocator would hold for it at most
  std::int64_t fragmentation = 0;  ///< 1/10000 of reserved that nobody uses at its peak
  std::int64_t retries = 0;        ///< times that the allocator had to give cached blocks back to stay within the card
  bool fits = true;                ///< whether it could

  /// As a run on a card judges it: by what is reserved.
  bool within(std::int64_t allowed) const { return fits && reserved <= allowed; }
};

/// What one card can do.
struct CardForecast {
  std::int64_t card = 0;    ///< bytes of the card
  std::int64_t usable = 0;  ///< less the fixed overhead
  std::optional<PlanBytes> best;
  std::vector<memory::Candidate> runners_up;  ///< that fit as well, fastest first
};

/// What samples a forecast is for.
struct ForecastSamples {
  data::SampleDims dims;
  /// The heaviest there are, heaviest first, as many as a rank's share or more; they stand for every micro-batch.
  std::vector<SampleShape> heaviest;
  std::size_t types = 0;  ///< that [tasks] makes of them (train/task_types.h)
  std::size_t times = 1;  ///< that a step can draw one of them at most (SampleStream::most_draws_in_a_step)
};

/// Dry runs of one model under one configuration, each made once, of what they stand for (device.h). One thread.
class Forecast {
 public:
  /// Of one of so many ranks.
  Forecast(const Config& config, const ForecastSamples& samples, int ranks);

  /// Peak of a plan: the maximum over its phases, training and, with train.eval_samples, evaluation.
  std::int64_t live(const memory::Plan& plan);
  /// The same, for a GPU through the caching allocator's rules on a card with `usable` bytes, over several
  /// micro-batches in a row.
  PlanBytes bytes(const memory::Plan& plan, std::int64_t usable, bool expandable_segments);
  /// What of it comes and goes with the heaviest micro-batch of the plan.
  std::int64_t activation_bytes(const memory::Plan& plan) const;
  /// Live bytes at the peak by label: weights, adapters, gradients, activations by block, ...
  memory::Breakdown breakdown(const memory::Plan& plan);
  /// Every plan that settings and knobs allow, with bytes and relative times.
  const memory::CandidateTable& candidates();
  /// The fastest plan of which at most target x usable is live, and on a card reserved, as a run there judges it; up to
  /// `runners` others behind it, whose live peaks fit too.
  CardForecast card(std::int64_t card_bytes, std::int64_t overhead, std::size_t runners, bool expandable_segments);
  /// The plan with the largest micro-batch of the share that fits `usable` x target, as a run there judges it; nothing
  /// where none does. Bisected by live bytes, which are monotone in the micro-batch; what is reserved need not be.
  std::optional<PlanBytes> largest_micro_batch(std::int64_t usable, memory::Plan plan, bool expandable_segments);

  const DryStep& dry() const { return *dry_; }
  std::int64_t share() const { return share_; }
  int dry_runs() const { return dry_runs_; }

 private:
  memory::MicroBatchShape heaviest(int samples) const;
  std::int64_t evaluation_bytes(const memory::MicroBatchShape& shape) const;
  memory::Ledger ledger(const memory::Plan& plan) const;
  /// Of the feature cache, where the settings give it a size (cache.device_bytes): at most, as all features may take
  /// less.
  std::int64_t cache_bytes() const;
  /// As a run on the CPU sizes it where it has the room (Session::choose_workspace): for the largest micro-batch it may
  /// choose. On a GPU what its libraries hold.
  std::int64_t workspace();

  Config config_;
  std::int64_t share_;  ///< the largest of any rank
  std::vector<SampleShape> heaviest_;
  std::int64_t target_;  ///< 1/10000
  std::unique_ptr<DryStep> dry_;
  std::map<std::array<int, 6>, std::int64_t> known_;  ///< by the numbers of a plan
  std::int64_t workspace_ = -1;
  memory::CandidateTable candidates_;
  int dry_runs_ = 0;
};

/// Relative times where nothing was timed; only their order means something. A micro-batch has a fixed part, worth a
/// tenth of a sample, for starting kernels. Per token and parameter a LoRA step over frozen weights takes 4
/// floating-point operations in the language model and 2 more where it is recomputed (6 and 8 with weights' gradients:
/// Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models", section 2), of which the
/// vision tower in front has 2 to itself: recomputing every language block adds some four tenths.
memory::CostModel analytic_costs(const model::VlaModel& model);

}  // namespace plimsoll::train
