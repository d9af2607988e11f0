#pragma once
// A policy at the demo's table: it sees, predicts, and its actions move the gripper, on scenes that no dataset has.

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "data/action_chunks.h"
#include "data/demo_data.h"
#include "data/tabletop.h"

namespace plimsoll::data {

struct ClosedLoopOptions {
  TabletopOptions table;
  std::int64_t episodes = 100;  ///< of scenes kFirstUnseenScene, kFirstUnseenScene + 1, ...
  std::int64_t max_steps = 24;  ///< after which an episode has failed; a slow way across the table takes 18
  std::int64_t replan = 1;      ///< as in ChunkingOptions
  std::optional<double> ensemble_decay;
  std::int64_t at_once = 16;  ///< episodes that are asked about together, at most; outcomes depend on answers alone
  std::int64_t filmed = 0;    ///< of the first so many episodes all observations are kept
  bool blind = false;         ///< the policy looks at no frame and is given none, which saves drawing the pictures
};

/// What a policy is asked: the actions from now on, in an episode.
struct PolicyQuery {
  std::int64_t episode = 0, step = 0;  ///< from 0: what its randomness must be keyed by
  std::span<const Frame> frames;       ///< of this episode, oldest first; only the last has pictures; none if blind
  const Tabletop* table = nullptr;     ///< how things stand, for policies that need not look
};

/// For each query a chunk of actions in the table's units, [rows, Tabletop::kActionDim] row-major.
using PredictChunks = std::function<std::vector<std::vector<float>>(std::span<const PolicyQuery>)>;

struct EpisodeOutcome {
  std::int64_t scene = 0;
  std::string task;                           ///< Tabletop::task()
  std::array<std::uint8_t, 3> goal_colour{};  ///< of the pad that it names
  bool success = false;                       ///< Tabletop::grasped(): it ended there
  bool reached = false;                       ///< the gripper was on the named pad after some step
  std::int64_t steps = 0;
  std::vector<TabletopObservation> film;  ///< before each step and after the last
};

/// Runs all episodes, some at once, and returns their outcomes in the order of their scenes. Whatever `predict` throws
/// passes through. Throws Error(kUsage) for options out of range.
std::vector<EpisodeOutcome> run_closed_loop(const ClosedLoopOptions& options, const PredictChunks& predict);

/// The upper bound: the scripted expert that demonstrations come from, with its noise, one action a chunk.
std::vector<std::vector<float>> expert_chunks(std::span<const PolicyQuery> queries);

}  // namespace plimsoll::data
