#pragma once
// When features that age are made anew: a decision of whole numbers, the same on every rank. Pure, without torch.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace plimsoll::cache {

/// Keys `cache.*`; parts per million where they are fractions.
struct UpkeepRules {
  std::int64_t rebuild_epochs = 5;  ///< 0: never for their age
  std::int64_t drift_bound = 0;     ///< mean relative L2; 0: none
  std::int64_t rebuild_over = 0;    ///< steps over which a rebuild is spread; 0: it is done at once
};

/// What a run knows of its features; kept in its checkpoints.
struct UpkeepState {
  std::int64_t published = 0;  ///< stamp above which none is read
  std::int64_t oldest = 0;     ///< stamp below which none is read: all older ones have been made anew
  std::int64_t epochs = 0;     ///< that ended since all were made anew, or since the run began
  std::int64_t drift = -1;     ///< of the probe samples since then, as last looked; -1: not looked
  std::int64_t begun = -1;     ///< step after which the rebuild that is under way began; -1: none is
  std::int64_t parts = 0;      ///< of it that are made: one after each step, that one included
  /// Stamp from which on nothing that was made after a step is read: the rebuild that is under way, whole or not at
  /// all.
  std::int64_t unfinished() const;
  friend bool operator==(const UpkeepState&, const UpkeepState&) = default;
};

/// Why all features are to be made anew after a step, as a sentence for people; nothing when they are not.
/// `epoch_ended` with that step: age is looked at then only.
std::optional<std::string> rebuild_due(const UpkeepRules& rules, const UpkeepState& state, bool epoch_ended);
/// Why a rebuild for their age waits until the next epoch ends, likewise; nothing when none is due, or one is.
std::optional<std::string> rebuild_postponed(const UpkeepRules& rules, const UpkeepState& state, bool epoch_ended);

/// Samples [begin, end) of `samples` that all ranks together make anew in the next part of a rebuild that is under way;
/// all parts together are all samples.
struct Part {
  std::int64_t begin = 0, end = 0;
  bool last = false;  ///< with these the rebuild is complete
};
Part part_of_rebuild(const UpkeepRules& rules, const UpkeepState& state, std::int64_t samples);

std::string to_json(const UpkeepState& state);
/// An empty text is the state of a run's beginning. Throws Error(kCheckpoint) for what is none.
UpkeepState upkeep_from_json(std::string_view text);

}  // namespace plimsoll::cache
