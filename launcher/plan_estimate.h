#pragma once
// `plimsoll plan --estimate`: what a whole run would take: so many samples of this mixture, this batch, so many epochs.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "memory/planning/plan.h"
#include "train/config.h"
#include "train/forecast.h"

namespace plimsoll {

/// Samples of one type as the plan knows them.
struct TypeOfSamples {
  std::string name;
  double part = 1;  ///< of the draws
  std::vector<SampleShape> shapes;
};

struct EstimateInput {
  std::int64_t samples = 0;    ///< that are trained on
  double epochs = 1;           ///< passes over them; samples x epochs is below 2^53
  std::int64_t steps = 0;      ///< above 0: so many in place of the epochs (train.max_steps)
  std::optional<double> rate;  ///< samples a second of all ranks together; else that of a measured table's row
  std::vector<std::int64_t> cards;
  std::int64_t overhead = 0;
  bool expandable_segments = false;
};

/// What one type needs under the best plan of the smallest card that has one.
struct TypeEstimate {
  std::string name;
  double part = 1;
  std::int64_t samples = 0;  ///< known here
  SampleShape heaviest;
  std::int64_t sample_bytes = 0;   ///< activations of one sample alone, the heaviest
  std::int64_t batch_bytes = 0;    ///< of a micro-batch of nothing else
  std::int64_t batch_samples = 0;  ///< that it has: the plan's number, or as many as fit (batch.packing = "bytes")
};

struct CardEstimate {
  std::int64_t card = 0;
  std::optional<memory::Plan> plan;  ///< none: nothing fits
  std::int64_t peak = 0;             ///< of the heaviest micro-batch, all included
  std::int64_t usual = 0;            ///< likewise of a micro-batch of the mixture's mean samples
  std::int64_t usual_samples = 0;    ///< that it has
  /// batch.packing = "bytes": the most that a micro-batch of more than one sample may be predicted to need, beside what
  /// is live all the time; the plan's number of samples does not count then.
  std::optional<std::int64_t> fill;
  std::optional<double> rate;     ///< samples a second of all ranks together
  std::optional<double> seconds;  ///< of all steps, without start, checkpoints and evaluation
  std::string table;              ///< the rate is of a row of this file, measured on one rank; empty: it was given
};

struct RunEstimate {
  EstimateInput asked;
  std::int64_t batch = 0, steps = 0;  ///< as a run makes them: the draws that make no whole batch are none
  std::optional<double> seconds;      ///< at the rate that was given
  std::vector<TypeEstimate> types;
  std::vector<CardEstimate> cards;
};

/// `types`: at least one, of the same dims. Dry runs only. Throws Error(kUsage) when memory.table names a file that is
/// missing or damaged, and no rate is given.
RunEstimate estimate_run(const train::Config& config, const train::ForecastSamples& samples,
                         const std::vector<TypeOfSamples>& types, int ranks, const EstimateInput& input);

std::string to_text(const RunEstimate& estimate);
std::string to_json(const RunEstimate& estimate);

}  // namespace plimsoll
