#include "cache/upkeep.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>

#include "cache/record.h"
#include "core/error.h"

namespace plimsoll::cache {
namespace {

constexpr std::int64_t kStill = 10;  // an age is no reason while the drift is below this part of its bound

double fraction(std::int64_t millionths) { return static_cast<double>(millionths) / 1e6; }

bool is_old(const UpkeepRules& rules, const UpkeepState& state, bool epoch_ended) {
  return epoch_ended && rules.rebuild_epochs > 0 && state.epochs >= rules.rebuild_epochs;
}

bool looked(const UpkeepRules& rules, const UpkeepState& state) { return rules.drift_bound > 0 && state.drift >= 0; }

bool is_still(const UpkeepRules& rules, const UpkeepState& state) {
  return looked(rules, state) && state.drift < rules.drift_bound / kStill;
}

}  // namespace

std::optional<std::string> rebuild_due(const UpkeepRules& rules, const UpkeepState& state, bool epoch_ended) {
  if (state.begun >= 0) return std::nullopt;
  if (rules.drift_bound > 0 && state.drift > rules.drift_bound)
    return fmt::format("the probe samples' features have moved by {:.4f}, more than cache.drift_bound = {:.4f}",
                       fraction(state.drift), fraction(rules.drift_bound));
  if (!is_old(rules, state, epoch_ended) || is_still(rules, state)) return std::nullopt;
  return fmt::format("the features are {} epochs old (cache.rebuild_epochs = {}){}", state.epochs, rules.rebuild_epochs,
                     looked(rules, state) ? fmt::format(", and have moved by {:.4f}", fraction(state.drift)) : "");
}

std::optional<std::string> rebuild_postponed(const UpkeepRules& rules, const UpkeepState& state, bool epoch_ended) {
  if (state.begun >= 0 || !is_old(rules, state, epoch_ended) || !is_still(rules, state)) return std::nullopt;
  return fmt::format(
      "the features are {} epochs old (cache.rebuild_epochs = {}), but those of the probe samples have moved by {:.4f} "
      "only, less than a tenth of cache.drift_bound = {:.4f}",
      state.epochs, rules.rebuild_epochs, fraction(state.drift), fraction(rules.drift_bound));
}

std::int64_t UpkeepState::unfinished() const {
  return begun >= 0 ? stamp_after_step(begun) : std::numeric_limits<std::int64_t>::max();
}

Part part_of_rebuild(const UpkeepRules& rules, const UpkeepState& state, std::int64_t samples) {
  const std::int64_t parts = std::max<std::int64_t>(1, rules.rebuild_over);
  const std::int64_t number = std::min(state.parts, parts - 1);
  return {samples * number / parts, samples * (number + 1) / parts, number + 1 == parts};
}

std::string to_json(const UpkeepState& state) {
  return nlohmann::ordered_json{{"published", state.published}, {"oldest", state.oldest}, {"epochs", state.epochs},
                                {"drift", state.drift},         {"begun", state.begun},   {"parts", state.parts}}
      .dump();
}

UpkeepState upkeep_from_json(std::string_view text) {
  if (text.empty()) return {};
  try {
    const auto json = nlohmann::json::parse(text);
    return {json.at("published"), json.at("oldest"), json.at("epochs"),
            json.at("drift"),     json.at("begun"),  json.at("parts")};
  } catch (const nlohmann::json::exception& error) {
    fail(ExitCode::kCheckpoint, "the checkpoint's state of the feature cache: {}; resume from the one before",
         error.what());
  }
}

}  // namespace plimsoll::cache
