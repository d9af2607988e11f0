#pragma once
// Checkpoints: all that a run needs to go on exactly, at another world size or plan too.
//
// checkpoints/step-N/ holds adapter/ (PEFT's format), trainable.safetensors (every trainable tensor, the adapters'
// too), optimiser.safetensors (both moments by parameter name), state.json, and complete.json with a checksum per file.
// It is written under a temporary name, every file synced, then renamed; a folder without complete.json is no
// checkpoint. The newest two are kept.

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>

#include "cache/upkeep.h"
#include "memory/planning/plan.h"
#include "train/flat_buffers.h"
#include "train/task_balance.h"

namespace plimsoll::train {

/// What is not a tensor. Only `window` depends on the world size, and another one begins it anew; the plan only
/// advises.
struct RunState {
  std::int64_t step = 0;     ///< steps concluded; step s draws stream positions [(s - 1) * B, s * B)
  std::int64_t updates = 0;  ///< updates applied: steps less those skipped
  int skips_in_row = 0;      ///< ddp::AgreementState
  memory::Plan plan;
  std::string policy;                ///< memory::PolicyState as JSON
  std::string window;                ///< memory::WindowSummary as JSON: what the window under way has seen
  std::uint64_t configuration = 0;   ///< hash of the settings that fix what is learned
  std::int64_t adapter_updates = 0;  ///< updates of the adapters: fewer where steps had no live sample ("hybrid")
  std::string run;                   ///< names this run among all that share a cache folder; empty: of before there was
  cache::UpkeepState features;       ///< where features age
  BalanceState balance;              ///< where GradNorm is on
};

/// Writes the adapter's own files into the folder it is given (empty in stage 1: not called).
using WriteAdapter = std::function<void(const std::filesystem::path&)>;

/// Writes `root`/step-N and removes all but the newest two. One rank calls it. Throws Error(kCheckpoint) when the disk
/// refuses; the checkpoints before it stay.
std::filesystem::path write_checkpoint(const std::filesystem::path& root, const RunState& state, FlatBuffers& buffers,
                                       const WriteAdapter& write_adapter);

/// The newest complete checkpoint under `root`, if there is one. Leftovers of interrupted writes are ignored.
std::optional<std::filesystem::path> newest_checkpoint(const std::filesystem::path& root);

/// Reads weights and moments into `buffers` by name. Throws Error(kCheckpoint) naming the file when one is missing,
/// changed since it was written, or of another model.
RunState read_checkpoint(const std::filesystem::path& folder, FlatBuffers& buffers);

/// Reads only the weights whose names are in both (stage 2 from stage 1's checkpoint: expert and sensor). Returns how
/// many.
std::size_t read_weights(const std::filesystem::path& folder, FlatBuffers& buffers);

}  // namespace plimsoll::train
