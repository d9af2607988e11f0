#pragma once
// How many threads load samples, and how far ahead: decided anew while the run goes on, from what the steps before
// took. Pure; what a step computes never depends on it. Every rank decides for itself.

#include <cstdint>
#include <string>

namespace plimsoll::data {

/// What the steps of an interval took, as means.
struct LoaderUse {
  double load_ms = 0;      ///< of a step: waited for samples
  double process_ms = 0;   ///< of a step: everything else
  double utilisation = 0;  ///< of the device, 0 to 1
  double memory = 0;       ///< part of what the loader may take, or of the host's memory as it is now: 0 to 1
};

struct LoaderSetting {
  std::int64_t workers = 1;   ///< threads
  std::int64_t prefetch = 2;  ///< steps ahead
  friend bool operator==(const LoaderSetting&, const LoaderSetting&) = default;
};

struct LoaderLimits {
  std::int64_t most_workers = 1, most_prefetch = 16;
  double utilisation = 0.85;  ///< a device that is busier needs no more threads
  double memory = 0.80;       ///< above it less is loaded ahead, then by fewer threads
};

/// What is in the way.
enum class Bottleneck { kNothing, kLoading, kMemory };

struct LoaderDecision {
  LoaderSetting setting;
  Bottleneck bottleneck = Bottleneck::kNothing;
  std::string reason;  ///< a sentence for a person
};

/// The rules, in this order:
/// - memory above its limit: half as far ahead; where that is one step already, one thread less;
/// - utilisation below its target, steps that wait a twentieth of their time or more, and memory free: twice as many
///   threads up to four, then half as many again;
/// - loading slower than processing, or utilisation above 0.95: one step further ahead; for the latter up to four, as
///   where no step waits more only takes memory;
/// - else nothing.
/// Memory counts as free below nine tenths of its limit: what is between stays, so that nothing swings.
LoaderDecision decide_loader(const LoaderUse& use, const LoaderSetting& now, const LoaderLimits& limits);

}  // namespace plimsoll::data
