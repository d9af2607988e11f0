#pragma once
// The scenarios that `plimsoll simulate` knows. Pure; any thread.

#include <string_view>
#include <vector>

#include "memory/planning/synthetic_world.h"

namespace plimsoll::memory {

/// All of them, in the order in which they are listed: first the scripted ones of the classic profile.
const std::vector<Scenario>& scenarios();

/// A scenario by name; `ranks` above 0 replaces its own number of ranks (a rank beyond its budgets gets the last one;
/// the effective batch grows when there would be less than a sample for each). Error(kUsage) naming the nearest one
/// when there is none of that name.
Scenario find_scenario(std::string_view name, int ranks = 0);

}  // namespace plimsoll::memory
