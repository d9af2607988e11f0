#include "memory/planning/policy.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"

namespace plimsoll::memory {
namespace {

void check_range(const KnobRange& range, const char* low_key, const char* high_key) {
  if (range.minimum < 1) fail(ExitCode::kUsage, "{} = {}: give at least 1", low_key, range.minimum);
  if (range.maximum < range.minimum) {
    fail(ExitCode::kUsage, "{} = {} is below {} = {}: swap them or set both alike", high_key, range.maximum, low_key,
         range.minimum);
  }
  if (range.step < 1)
    fail(ExitCode::kUsage, "a step of {} between {} and {}: give at least 1", range.step, low_key, high_key);
}

/// The fraction as it stands in a configuration.
double as_written(std::int64_t per_10000) { return static_cast<double>(per_10000) / 10000.0; }

Knob parse_knob(const std::string& name) {
  if (name == "micro_batch") return Knob::kMicroBatch;
  if (name == "resolution") return Knob::kResolution;
  if (name == "recompute") return Knob::kRecompute;
  if (name == "offload") return Knob::kOffload;
  fail(ExitCode::kUsage,
       "memory.knobs: \"{}\" is no knob; write \"micro_batch\", \"resolution\", \"recompute\" or \"offload\"", name);
}

}  // namespace

PolicyConfig classic_profile() {
  PolicyConfig config;
  config.knobs = {Knob::kResolution, Knob::kMicroBatch};
  config.micro_batch = {4, 64, 1};
  config.resolution = {64, 256, 1};
  return config;
}

std::int64_t automatic_target(PolicyKind kind) { return kind == PolicyKind::kPredictive ? 9800 : 8500; }

PolicyConfig default_policy(PolicyKind kind) {
  PolicyConfig config;
  config.kind = kind;
  config.target = automatic_target(kind);
  keep_band_below_budget(config);
  return config;
}

void keep_band_below_budget(PolicyConfig& config) { config.margin = std::min(config.margin, 10000 - config.target); }

PolicyKind parse_policy(std::string_view text) {
  if (text == "fixed") return PolicyKind::kFixed;
  if (text == "reactive") return PolicyKind::kReactive;
  if (text == "predictive") return PolicyKind::kPredictive;
  fail(ExitCode::kUsage, "memory.policy = \"{}\": write \"fixed\", \"reactive\" or \"predictive\"", text);
}

std::vector<Knob> parse_knobs(std::span<const std::string> names) {
  std::vector<Knob> knobs;
  for (const std::string& name : names) {
    const Knob knob = parse_knob(name);
    if (std::find(knobs.begin(), knobs.end(), knob) != knobs.end())
      fail(ExitCode::kUsage, "memory.knobs names \"{}\" twice: name it once", name);
    knobs.push_back(knob);
  }
  return knobs;
}

std::int64_t parse_fraction(double value, std::string_view key) {
  // Written so that NaN fails too. Below half a 1/10000 nothing would be left.
  if (!(value >= 0.00005 && value <= 1.0))
    fail(ExitCode::kUsage, "{} = {}: give a fraction of the budget, above 0 and at most 1", key, value);
  return std::llround(value * 10000.0);
}

void check(const PolicyConfig& config) {
  if (config.target < 1 || config.target > 10000) {
    fail(ExitCode::kUsage, "memory.target = {:g}: give a fraction above 0 and at most 1", as_written(config.target));
  }
  if (config.margin < 0 || config.margin >= config.target) {
    fail(ExitCode::kUsage, "memory.margin = {:g} with memory.target = {:g}: the margin must be smaller than the target",
         as_written(config.margin), as_written(config.target));
  }
  if (config.target + config.margin > 10000) {
    fail(ExitCode::kUsage,
         "memory.target = {:g} and memory.margin = {:g} make a band that ends above the budget; write a margin of at "
         "most "
         "{:g} or a target of at most {:g}",
         as_written(config.target), as_written(config.margin), as_written(10000 - config.target),
         as_written(10000 - config.margin));
  }
  if (config.adjustment_frequency < 1) {
    fail(ExitCode::kUsage, "memory.adjustment_frequency = {}: a window needs at least 1 step",
         config.adjustment_frequency);
  }
  if (config.cooldown_windows < 0)
    fail(ExitCode::kUsage, "a cooldown of {} windows: give 0 or more", config.cooldown_windows);
  if (config.history < 1) fail(ExitCode::kUsage, "a history of {} decisions: give at least 1", config.history);
  if (config.least_gain < 0 || config.least_gain > 10000)
    fail(ExitCode::kUsage, "a least gain of {}/10000: give a fraction from 0 to 1", config.least_gain);
  if (config.first_wait_windows < 1)
    fail(ExitCode::kUsage, "a first wait of {} windows: give at least 1", config.first_wait_windows);
  check_range(config.micro_batch, "batch.min_micro", "batch.max_micro");
  check_range(config.resolution, "data.min_resolution", "data.max_resolution");
}

void check_fixed(std::int64_t micro_batch, std::int64_t accumulation, std::int64_t world, std::int64_t effective) {
  if (micro_batch < 1 || accumulation < 1 || world < 1) {
    fail(ExitCode::kUsage, "micro-batch {}, accumulation {}, {} ranks: each must be at least 1", micro_batch,
         accumulation, world);
  }
  // Divided, not multiplied: nothing a user types can overflow.
  const bool equal = effective > 0 && effective % micro_batch == 0 && effective / micro_batch % accumulation == 0 &&
                     effective / micro_batch / accumulation == world;
  if (!equal) {
    fail(ExitCode::kUsage,
         "memory.policy = \"fixed\": micro-batch {} x accumulation {} x {} ranks is not batch.effective = {}; change "
         "one of the four, or use "
         "memory.policy = \"reactive\", which keeps the effective batch by itself",
         micro_batch, accumulation, world, effective);
  }
}

}  // namespace plimsoll::memory
