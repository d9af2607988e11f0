#pragma once
// How many threads load samples, and how far ahead: decided anew while the run goes on, from what the steps before
// took. Pure; what a step computes never depends on it. Every rank decides for itself.

#include <cstdint>
#include <string>

namespace plimsoll::data {

/// What the steps of an interval took, as means.
struct LoaderUse {
  double wait_ms = 0;      ///< of a step: waited for samples
  double load_ms = 0;      ///< of a step: what its samples take the threads, side by side, whether anybody waits or not
  double process_ms = 0;   ///< of a step: everything but waiting
  double utilisation = 0;  ///< of the device, 0 to 1
  double memory = 0;       ///< part of what the loader may take, or of the host's memory as it is now: 0 to 1
  double step_memory = 0;  ///< part of the same that a step's samples take
};

struct LoaderSetting {
  std::int64_t workers = 1;   ///< threads
  std::int64_t prefetch = 2;  ///< steps ahead
  friend bool operator==(const LoaderSetting&, const LoaderSetting&) = default;
};

struct LoaderLimits {
  std::int64_t most_workers = 1, most_prefetch = 16;
  double utilisation = 0.85;  ///< a device that is busier needs no more threads
  double memory = 0.80;       ///< above it less is loaded ahead, and by fewer threads
};

/// What is in the way.
enum class Bottleneck { kNothing, kLoading, kMemory };

struct LoaderDecision {
  LoaderSetting setting;
  Bottleneck bottleneck = Bottleneck::kNothing;
  std::string reason;  ///< a sentence for a person
};

/// The rules, asked every 50 steps (data.adjust_every):
/// - memory above its limit (0.80): fewer: one thread less, and half as far ahead;
/// - else, utilisation below its target (0.85) and memory free: more threads, whatever else keeps the device idle;
/// - and, loading slower than processing, or utilisation above 0.95, and memory free: one step further ahead.
///
/// Where they say more than "fewer", "more" and "free":
/// - Samples that wait to be used take the memory, not threads (Loader), so that fewer threads alone would give little
///   back: half as far ahead goes with it.
/// - Threads are doubled up to four and then grow by half: one a time would be too few for hundreds of steps.
/// - Memory is free below nine tenths of its limit, and for a step further ahead only while that step's samples still
///   fit below the limit. What is between stays as it is: else it would go up and down for ever.
/// - Loading and processing are the times of one step by the threads that there are. Loading goes on while steps are
///   processed: how long a step waits would be only by how much it is slower.
/// - On the CPU, whose device is busy whenever no step waits, utilisation above 0.95 is the usual state: a run comes to
///   most_prefetch steps ahead there, or to as many as free memory allows.
LoaderDecision decide_loader(const LoaderUse& use, const LoaderSetting& now, const LoaderLimits& limits);

}  // namespace plimsoll::data
