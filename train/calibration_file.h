#pragma once
// What measured peaks said about predicted ones, kept between the runs of one machine (memory.calibration).

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "memory/planning/calibration.h"
#include "train/session.h"

namespace plimsoll::train {

/// The file that memory.calibration names: none for "off"; for "auto" one a model, below $XDG_CACHE_HOME or ~/.cache
/// (none where neither is set). `key` says for which model and device it holds.
std::optional<std::filesystem::path> calibration_file(const memory::MemoryConfig& config, const std::string& key);

/// The model, its trained part (FlatBuffers::layout_hash) and its dtype.
std::string model_key(const Config& config, std::uint64_t layout_hash);
/// These and the device: what the errors of a prediction depend on.
std::string calibration_key(const Session& session);

/// What rank 0 finds in the file, for a world of this size; nothing where there is none. A damaged file, or one of
/// another model, is warned of and ignored: the next write replaces it. Collective.
memory::Calibration read_calibration(Session& session);

/// Writes it, on rank 0 only. A disk that refuses is warned of: a run does not end for it.
void write_calibration(const Session& session);

}  // namespace plimsoll::train
