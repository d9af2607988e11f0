#pragma once
// The controller: from what the ranks measured in a window to the plan of the next one. Pure and in whole numbers:
// 64-bit integers, no floating point, no libm, so that every rank computes the same decision from the same reports. Any
// thread.
//
// Fractions of a budget are whole numbers of 1/10000: 8500 is 85 %. Comparisons are exact (peak x 10000 against
// fraction x budget), nothing is rounded before it is compared; budgets and peaks are below 2^48 bytes, as reports
// carry them.

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "memory/planning/calibration.h"
#include "memory/planning/plan.h"

namespace plimsoll::memory {

enum class PolicyKind { kFixed, kReactive, kPredictive };
/// kRecompute and kOffload say what the candidates of the predictive policy may vary (see PlanSpace); the reactive
/// policy and the baseline pass them over.
enum class Knob { kMicroBatch, kResolution, kRecompute, kOffload };

/// Bounds of a knob, both included, and how much one step moves it.
struct KnobRange {
  int minimum = 1;
  int maximum = 1;
  int step = 1;
  friend bool operator==(const KnobRange&, const KnobRange&) = default;
};

/// Keys `memory.*`, `batch.min_micro`, `batch.max_micro`, `data.min_resolution`, `data.max_resolution`.
struct PolicyConfig {
  PolicyKind kind = PolicyKind::kReactive;
  std::int64_t target = 8500;     ///< 1/10000 of the budget to aim at (`memory.target`)
  std::int64_t margin = 500;      ///< 1/10000 around the target in which nothing changes (`memory.margin`)
  int adjustment_frequency = 25;  ///< steps of a window
  int cooldown_windows = 1;       ///< windows after a change that end without a decision
  int history = 50;               ///< decisions kept in the state
  /// Order in which knobs grow (`memory.knobs`); they shrink in the opposite order. A knob not named here never moves.
  std::vector<Knob> knobs = {Knob::kMicroBatch};
  KnobRange micro_batch = {1, 64, 1};     ///< samples; the share caps it
  KnobRange resolution = {112, 448, 28};  ///< pixels of the longer side
  std::int64_t least_gain = 200;          ///< predictive: 1/10000 of a step's time that a change must save more than
  int first_wait_windows = 2;             ///< predictive: wait after a plan's first failure; doubles with each further
};

/// `profile = "classic"`: the first prototype's bounds: micro-batch 4..64, resolution 64..256 in steps of 1 px,
/// resolution first.
PolicyConfig classic_profile();
/// What `memory.target = "auto"` is, in 1/10000. 9800 under the predictive policy: it knows what a plan needs before it
/// runs, corrects what fell short, and what fails all the same costs no more than its own time (bench/policy_bench.cpp:
/// of its scenarios none is slower than under another trainer then). 8500 under those that see a peak afterwards.
std::int64_t automatic_target(PolicyKind kind);
/// What goes with an automatic target: the band ends at the budget at most.
void keep_band_below_budget(PolicyConfig& config);
/// All settings at their defaults, with the automatic target.
PolicyConfig default_policy(PolicyKind kind);
/// "fixed", "reactive", "predictive"; anything else is Error(kUsage) naming `memory.policy`.
PolicyKind parse_policy(std::string_view text);
/// "micro_batch", "resolution", "recompute", "offload"; unknown or doubled names are Error(kUsage) naming
/// `memory.knobs`.
std::vector<Knob> parse_knobs(std::span<const std::string> names);
/// "0.85" or 0.85 as read from TOML to 1/10000 (nearest); outside (0, 1] is Error(kUsage) naming `key`.
std::int64_t parse_fraction(double value, std::string_view key);
/// Throws Error(kUsage) naming the key and value of the first setting that makes no sense (bounds the wrong way round,
/// margin not below target, a band that ends above the budget, window of no step, ...).
void check(const PolicyConfig& config);
/// The fixed policy's condition: micro_batch x accumulation x world == effective; else Error(kUsage) with all four
/// numbers.
void check_fixed(std::int64_t micro_batch, std::int64_t accumulation, std::int64_t world, std::int64_t effective);

/// What one rank measured: in one step when it goes into the accumulator, in a whole window when it comes out.
struct RankUsage {
  std::int64_t budget_bytes = 0;          ///< a window keeps the last: the next plan has to fit that one
  std::int64_t peak_bytes = 0;            ///< a window keeps the largest
  std::int64_t retries = 0;               ///< guardian replays; a window keeps the sum
  std::int64_t allocator_retries = 0;     ///< a window keeps the sum; for people: no decision follows from them
  std::int64_t failed_request_bytes = 0;  ///< a window keeps the largest
  bool failed = false;                    ///< a window keeps whether any step failed
  /// Largest peak predicted for the step's micro-batches; 0: not predicted. A window keeps that of the step in which
  /// the measured peak was most above it (or least below), among steps without a retry or failure.
  std::int64_t predicted_peak_bytes = 0;
  /// Measured peak of the step that predicted_peak_bytes is of. In a step's report 0, which means peak_bytes.
  std::int64_t compared_peak_bytes = 0;
  /// The step was not run as the plan says (ways.h), so that a failure is not the plan's. Not kept by a window.
  bool other_way = false;
  /// It recomputed or offloaded something else, so that what it says of predictions counts for the plan only where it
  /// falls short. A window keeps whether any step did.
  bool other_recompute = false;
  friend bool operator==(const RankUsage&, const RankUsage&) = default;
};

struct WindowSummary {
  std::int64_t first_step = 0;
  std::int64_t last_step = 0;  ///< included
  int steps = 0;               ///< steps concluded (applied or skipped); replays of a step are not counted
  std::vector<RankUsage> ranks;
  friend bool operator==(const WindowSummary&, const WindowSummary&) = default;
};

/// Gathers the reports of a window. What has been gathered is saved with a checkpoint; a resume at another world size
/// starts a window anew.
class WindowAccumulator {
 public:
  /// Throws Error(kUsage) unless both are at least 1.
  WindowAccumulator(int adjustment_frequency, int world);
  /// Adds one reduction's reports (one per rank). `concluded` is false when the step will be replayed: its peaks and
  /// retries count, the step does not. Returns the summary when this step fills the window; the next call starts a new
  /// one.
  std::optional<WindowSummary> add(std::int64_t step, std::span<const RankUsage> reports, bool concluded = true);
  /// What has been gathered so far, for the progress line. Empty ranks: nothing yet.
  const WindowSummary& current() const { return current_; }
  /// Goes on from what current() was when it was saved. False, and a new window, when it is of another number of ranks
  /// or full already.
  bool restore(const WindowSummary& saved);
  /// Forgets the window: peaks start anew. Call it after a plan changed outside of decide().
  void restart();

 private:
  int frequency_;
  int world_;
  WindowSummary current_;
};

enum class Direction { kHold, kGrow, kShrink };

/// Why the decision is what it is; the reason says it in words.
enum class Cause {
  kFixed,      ///< the fixed policy never changes a plan
  kBaseline,   ///< the line at the start
  kPartial,    ///< the window is not full
  kCooldown,   ///< the plan changed less than a cooldown ago
  kInBand,     ///< usage within [target - margin, target + margin]
  kBelow,      ///< below the band: grow
  kAbove,      ///< above the band: shrink
  kRetry,      ///< an allocation failed in the window, which counts as above the target whatever the peak: shrink
  kTooLittle,  ///< below the band, but less than a knob's threshold to spare
  kAtMaximum,  ///< below the band and every knob at its maximum (or capped by the share)
  kAtMinimum,  ///< above the band and every knob at its minimum, or already the candidate that needs least
  kPlanned,    ///< predictive: another candidate fits and saves more than least_gain, or the plan was no candidate
  kBudget,     ///< predictive: the plan's predicted peak is above the target, or between windows above a budget
  kBest,       ///< predictive, below the band: nothing that fits saves more than least_gain
};

/// One line of decisions.jsonl.
struct Decision {
  Plan plan;  ///< for the next window
  Plan before;
  bool changed = false;
  Direction direction = Direction::kHold;
  Cause cause = Cause::kBaseline;
  std::int64_t step = 0;  ///< the window's last step
  std::int64_t window_steps = 0;
  int worst_rank = 0;             ///< the rank whose usage fraction decided; ties go to the lowest
  std::int64_t peak_bytes = 0;    ///< of the worst rank
  std::int64_t budget_bytes = 0;  ///< of the worst rank
  std::int64_t usage = 0;  ///< peak / budget of the worst rank in 1/10000, rounded down; for people, not compared
  std::int64_t target = 0;
  std::int64_t margin = 0;
  std::int64_t retries = 0;            ///< over all ranks
  std::int64_t allocator_retries = 0;  ///< over all ranks
  std::int64_t predicted_bytes = 0;    ///< of `plan`, corrected, on the rank it fills most; 0: not known
  std::string reason;                  ///< one line: what was seen, what was chosen and why
};

/// What a decision leaves in the state's history.
struct HistoryEntry {
  std::int64_t step = 0;
  std::int64_t usage = 0;  ///< 1/10000
  Plan plan;               ///< chosen
  Direction direction = Direction::kHold;
  friend bool operator==(const HistoryEntry&, const HistoryEntry&) = default;
};

/// A plan that ran out of memory, and when.
struct FailureEntry {
  std::int64_t step = 0;
  int rank = 0;
  std::int64_t request_bytes = 0;
  Plan plan;
  std::int64_t budget_bytes = 0;     ///< of the rank, then; 0: not known
  std::int64_t peak_bytes = 0;       ///< of the rank, up to the failure; 0: not known
  std::int64_t predicted_bytes = 0;  ///< peak that was predicted; 0: not known
  friend bool operator==(const FailureEntry&, const FailureEntry&) = default;
};

/// A rank that ran out of memory, and the largest budget under which it did; 0: not known.
struct FailedRank {
  int rank = 0;
  std::int64_t budget_bytes = 0;
  friend bool operator==(const FailedRank&, const FailedRank&) = default;
};

/// A plan that failed waits before it is tried again, and with it every candidate that needs as many bytes or more. As
/// long as any plan waits, no step is filled beyond what its plan was judged on (but see fill_bytes).
struct Wait {
  Plan plan;
  std::int64_t failures = 0;      ///< further ones within a window of the last count as the same
  std::int64_t failed_step = 0;   ///< of the newest failure
  std::int64_t until_step = 0;    ///< from this step on the plan may be chosen again
  std::vector<FailedRank> ranks;  ///< ascending; when all have budgets at least 5 % larger the wait is over at once
  /// What failed was a step filled beyond what the plan was judged on: filling waits, the plan does not.
  bool filled = false;
  friend bool operator==(const Wait&, const Wait&) = default;
};

/// What the policy remembers. Equal on every rank; saved with the checkpoint.
struct PolicyState {
  bool baseline_done = false;
  int cooldown = 0;                    ///< windows still to pass without a decision
  std::int64_t last_change_step = -1;  ///< -1: never
  std::vector<HistoryEntry> history;   ///< newest last, at most PolicyConfig::history
  std::vector<FailureEntry> failures;  ///< newest last, at most PolicyConfig::history
  // Of the predictive policy; lists of at most PolicyConfig::history entries.
  Calibration calibration;
  std::vector<Wait> waits;  ///< in the order of the first failure
  friend bool operator==(const PolicyState&, const PolicyState&) = default;
};

/// JSON text of the state, and back; what older states lack is read as nothing. Text that is not such a state is
/// Error(kCheckpoint) naming the field.
std::string to_json(const PolicyState& state);
PolicyState policy_state_from_json(std::string_view text);
/// The same for a window under way.
std::string to_json(const WindowSummary& window);
WindowSummary window_from_json(std::string_view text);
/// One line of JSON with all fields of the decision, for decisions.jsonl.
std::string to_json(const Decision& decision);

/// The baseline line at the start, before step `step`: plan, bounds, target and budgets (bytes per rank). Marks the
/// state. Throws Error(kUsage) when `plan` is outside the knobs' bounds: settings and first plan contradict each other.
Decision baseline(const PolicyConfig& config, std::int64_t step, const Plan& plan, std::int64_t share,
                  std::span<const std::int64_t> budgets, PolicyState& state);

/// The decision of the fixed or reactive policy at a window's end; the predictive one has its own (predictive.h), here
/// it is Error(kUsage). `share` is the largest share of any rank, ceil(B / world): it caps the micro-batch.
///
/// Reactive, with usage = peak / budget of the worst rank, available = target - usage, over = usage - target:
///   - a window that is not full, or one within the cooldown after a change: hold;
///   - a guardian retry or failed step anywhere in the window counts as above the band;
///   - inside [target - margin, target + margin], borders included: hold;
///   - below: the first knob (in `knobs` order) not at its maximum goes up by min(8, max(2, floor(available / 0.05)))
///   steps,
///     provided more than 2 % (resolution) or 1 % (micro-batch) is available; else hold;
///   - above: the last knob not at its minimum goes down by min(4, max(2, ceil(over / 0.05))) steps;
///   - every move ends at the knob's bound or, for a growing micro-batch, at the share.
/// After a change the caller starts the peaks anew (the accumulator has done so already).
Decision decide(const PolicyConfig& config, const WindowSummary& window, const Plan& current, std::int64_t share,
                PolicyState& state);

/// How many blocks of each tower can be recomputed; 0 where that saves nothing (a vision tower without adapters).
struct TowerBlocks {
  int language = 0;
  int vision = 0;
  int expert = 0;
};

/// After a failed step (a single sample did not fit), before its replay: the smallest micro-batch and every block of
/// every tower recomputed; if that is the plan already, offload when it is a knob; then the resolution one step down
/// when it is one. Nothing left: nullopt, and the run ends with exit 3. Under every policy, the fixed one too.
/// Remembers the failure in the state; under the predictive policy the plan waits, and the failure teaches the
/// calibration.
std::optional<Decision> escalate(const PolicyConfig& config, const FailureEntry& failure, const TowerBlocks& blocks,
                                 PolicyState& state);

}  // namespace plimsoll::memory
