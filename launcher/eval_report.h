#pragma once
// What `plimsoll eval` says of the episodes that a policy acted in.

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "data/closed_loop.h"
#include "train/action_error.h"

namespace plimsoll {

/// Who acted and under which terms.
struct EvalTerms {
  std::string policy;            ///< "checkpoint", "untrained", "constant" or "expert"
  std::string checkpoint;        ///< folder; empty: none
  std::int64_t step = 0;         ///< of the checkpoint
  std::int64_t chunk = 1;        ///< actions that are predicted at once
  std::vector<double> constant;  ///< the action of "constant", [data::Tabletop::kActionDim]; of the others empty
  std::int64_t held_out = 0;     ///< samples that the action error was asked for
  std::optional<train::ActionError> error;  ///< where it was
  data::ClosedLoopOptions loop;
};

/// Everything, an object of docs/formats.md.
nlohmann::ordered_json eval_json(const EvalTerms& terms, const std::vector<data::EpisodeOutcome>& outcomes,
                                 double seconds);

/// A sentence and a table, for people.
std::string eval_text(const EvalTerms& terms, const std::vector<data::EpisodeOutcome>& outcomes, double seconds);

}  // namespace plimsoll
