#pragma once
// The report of a run as one HTML page that needs nothing else: style and pictures are in it.

#include <string>
#include <string_view>
#include <vector>

#include "report/run_summary.h"

namespace plimsoll::report {

struct Picture {
  std::string title;
  std::string png;  ///< its bytes
};

/// Summary, pictures, epochs, ranks, decisions with their reasons, feature cache (samples and bytes of each tier, time
/// saved, rebuilds), configuration and notes. Pure; all that comes out of the streams is escaped. Of very many
/// decisions those that changed the plan and the newest are shown.
std::string html_report(const RunStreams& run, const RunSummary& summary, const std::vector<EpochSummary>& epochs,
                        const std::vector<Picture>& pictures, const std::vector<std::string>& notes);

/// RFC 4648, with padding.
std::string base64(std::string_view bytes);

}  // namespace plimsoll::report
