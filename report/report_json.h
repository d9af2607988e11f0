#pragma once
// The report of a run for programs: the texts of batch_metrics.json, epoch_metrics.json and training_report.json, whose
// fields docs/formats.md lists. Pure functions. Numbers that are absent or not finite become null; bytes that are no
// UTF-8 become U+FFFD.

#include <string>
#include <vector>

#include "report/run_summary.h"

namespace plimsoll::report {

/// A list, an object a step, each on a line of its own.
std::string batch_metrics_json(const RunStreams& run);
/// A list, an object an epoch.
std::string epoch_metrics_json(const std::vector<EpochSummary>& epochs);
/// One object.
std::string training_report_json(const RunStreams& run, const RunSummary& summary);

}  // namespace plimsoll::report
