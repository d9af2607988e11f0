#pragma once
// `plimsoll cache build`: makes the features of all training samples before a run, so that its first epoch reads them.

#include <cstdint>
#include <functional>
#include <string>

#include "train/session.h"

namespace plimsoll::train {

struct BuiltCache {
  std::int64_t samples = 0;  ///< that are trained on and have any
  std::int64_t known = 0;    ///< of them with features, when it was done
  std::int64_t made = 0;     ///< by all ranks, now
  double seconds = 0;
  std::uint64_t bytes = 0;  ///< of the folder
  std::string folder;
};

/// Each rank makes a part of what is missing, under its own budget. `say` is told how far all are. Collective.
/// Throws Error(kUsage) for a configuration without a cache, or whose features age: those are a run's own.
BuiltCache build_cache(Session& session, const std::function<void(const std::string&)>& say);

}  // namespace plimsoll::train
