#pragma once
// The pictures of a report, as gnuplot scripts (report/gnuplot.h draws them). Pure functions; an empty text means that
// there is nothing to draw. Long runs are drawn as means of groups of steps, and as the worst peak of each.

#include <string>

#include "report/run_summary.h"

namespace plimsoll::report {

/// Over the steps: loss with its moving mean, learning rates, samples/s, and the worst rank's peak against its budget
/// and the target, with the steps after which the plan changed; drift and age of cached features. Panels of which no
/// step tells are left out.
std::string training_curves_script(const RunStreams& run, const RunSummary& summary);

/// Each task's loss over the steps, its mean over the last tenth of them, the samples it had, and the bytes of
/// activations that one of them took; for two tasks or more. Panels of which no step tells are left out.
std::string task_comparison_script(const RunStreams& run, const RunSummary& summary);

/// As a gnuplot string: in single quotes, within which gnuplot knows no escapes, commands or markup.
std::string quoted(const std::string& text);

}  // namespace plimsoll::report
