#include <algorithm>
#include <array>

#include "core/error.h"
#include "memory/planning/json_fields.h"
#include "memory/planning/policy.h"

namespace plimsoll::memory {
namespace {

constexpr Source kSource{"the controller's state", "restart from an older checkpoint"};

constexpr std::array<const char*, 3> kDirections{"hold", "grow", "shrink"};
constexpr std::array<const char*, 14> kCauses{"fixed",      "baseline", "partial", "cooldown",   "in_band",
                                              "below",      "above",    "retry",   "too_little", "at_maximum",
                                              "at_minimum", "planned",  "budget",  "best"};

const char* name_of(Direction direction) { return kDirections.at(static_cast<std::size_t>(direction)); }
const char* name_of(Cause cause) { return kCauses.at(static_cast<std::size_t>(cause)); }

Json json_of(const Plan& plan) {
  return {{"resolution", plan.resolution},
          {"micro_batch", plan.micro_batch},
          {"recompute_blocks", plan.recompute_blocks},
          {"recompute_vision", plan.recompute_vision},
          {"recompute_expert", plan.recompute_expert},
          {"offload", plan.offload}};
}

void read_plan(const Fields& outer, const char* name, Plan& plan) {
  const Fields fields = outer.object(name);
  fields.read("resolution", plan.resolution);
  fields.read("micro_batch", plan.micro_batch);
  fields.read("recompute_blocks", plan.recompute_blocks);
  fields.read_if_there("recompute_vision", plan.recompute_vision);
  fields.read_if_there("recompute_expert", plan.recompute_expert);
  fields.read_if_there("offload", plan.offload);
}

void read_direction(const Fields& fields, const char* name, Direction& direction) {
  std::string text;
  fields.read(name, text);
  const auto found = std::find(kDirections.begin(), kDirections.end(), text);
  if (found == kDirections.end()) fields.refuse(name, "direction (hold, grow, shrink)");
  direction = static_cast<Direction>(found - kDirections.begin());
}

void read_waits(const Fields& fields, std::vector<Wait>& waits) {
  fields.read_list("waits", [&](const Fields& entry) {
    Wait& read = waits.emplace_back();
    read_plan(entry, "plan", read.plan);
    entry.read("failures", read.failures);
    entry.read("failed_step", read.failed_step);
    entry.read("until_step", read.until_step);
    entry.read_if_there("filled", read.filled);
    entry.read_list("ranks", [&](const Fields& rank) {
      FailedRank& failed = read.ranks.emplace_back();
      rank.read("rank", failed.rank);
      rank.read("budget_bytes", failed.budget_bytes);
    });
  });
}

Json json_of(const std::vector<Wait>& waits) {
  Json list = Json::array();
  for (const Wait& entry : waits) {
    Json ranks = Json::array();
    for (const FailedRank& rank : entry.ranks)
      ranks.push_back({{"rank", rank.rank}, {"budget_bytes", rank.budget_bytes}});
    list.push_back({{"plan", json_of(entry.plan)},
                    {"failures", entry.failures},
                    {"failed_step", entry.failed_step},
                    {"until_step", entry.until_step},
                    {"filled", entry.filled},
                    {"ranks", ranks}});
  }
  return list;
}

Json parsed(std::string_view text) {
  Json json = Json::parse(text, nullptr, false);
  if (json.is_discarded())
    fail(ExitCode::kCheckpoint, "the controller's state is no JSON; restart from an older checkpoint");
  return json;
}

}  // namespace

std::string to_json(const PolicyState& state) {
  Json history = Json::array(), failures = Json::array();
  for (const HistoryEntry& entry : state.history) {
    history.push_back({{"step", entry.step},
                       {"usage", entry.usage},
                       {"plan", json_of(entry.plan)},
                       {"direction", name_of(entry.direction)}});
  }
  for (const FailureEntry& entry : state.failures) {
    failures.push_back({{"step", entry.step},
                        {"rank", entry.rank},
                        {"request_bytes", entry.request_bytes},
                        {"plan", json_of(entry.plan)},
                        {"budget_bytes", entry.budget_bytes},
                        {"peak_bytes", entry.peak_bytes},
                        {"predicted_bytes", entry.predicted_bytes}});
  }
  return Json{{"baseline_done", state.baseline_done},
              {"cooldown", state.cooldown},
              {"last_change_step", state.last_change_step},
              {"history", history},
              {"failures", failures},
              {"calibration", json_of(state.calibration)},
              {"waits", json_of(state.waits)}}
      .dump();
}

std::string to_json(const WindowSummary& window) {
  Json ranks = Json::array();
  for (const RankUsage& rank : window.ranks) {
    ranks.push_back({{"budget_bytes", rank.budget_bytes},
                     {"peak_bytes", rank.peak_bytes},
                     {"retries", rank.retries},
                     {"allocator_retries", rank.allocator_retries},
                     {"failed_request_bytes", rank.failed_request_bytes},
                     {"failed", rank.failed},
                     {"predicted_peak_bytes", rank.predicted_peak_bytes},
                     {"compared_peak_bytes", rank.compared_peak_bytes},
                     {"other_recompute", rank.other_recompute}});
  }
  return Json{
      {"first_step", window.first_step}, {"last_step", window.last_step}, {"steps", window.steps}, {"ranks", ranks}}
      .dump();
}

WindowSummary window_from_json(std::string_view text) {
  const Json json = parsed(text);
  const Fields fields(json, "", kSource);
  WindowSummary window;
  fields.read("first_step", window.first_step);
  fields.read("last_step", window.last_step);
  fields.read("steps", window.steps);
  fields.read_list("ranks", [&](const Fields& entry) {
    RankUsage& rank = window.ranks.emplace_back();
    entry.read("budget_bytes", rank.budget_bytes);
    entry.read("peak_bytes", rank.peak_bytes);
    entry.read("retries", rank.retries);
    entry.read("allocator_retries", rank.allocator_retries);
    entry.read("failed_request_bytes", rank.failed_request_bytes);
    entry.read("failed", rank.failed);
    entry.read("predicted_peak_bytes", rank.predicted_peak_bytes);
    entry.read("compared_peak_bytes", rank.compared_peak_bytes);
    entry.read_if_there("other_recompute", rank.other_recompute);
  });
  return window;
}

PolicyState policy_state_from_json(std::string_view text) {
  const Json json = parsed(text);
  const Fields fields(json, "", kSource);
  PolicyState state;
  fields.read("baseline_done", state.baseline_done);
  fields.read("cooldown", state.cooldown);
  fields.read("last_change_step", state.last_change_step);
  fields.read_list("history", [&](const Fields& entry) {
    HistoryEntry& read = state.history.emplace_back();
    entry.read("step", read.step);
    entry.read("usage", read.usage);
    read_plan(entry, "plan", read.plan);
    read_direction(entry, "direction", read.direction);
  });
  fields.read_list("failures", [&](const Fields& entry) {
    FailureEntry& read = state.failures.emplace_back();
    entry.read("step", read.step);
    entry.read("rank", read.rank);
    entry.read("request_bytes", read.request_bytes);
    read_plan(entry, "plan", read.plan);
    entry.read_if_there("budget_bytes", read.budget_bytes);
    entry.read_if_there("peak_bytes", read.peak_bytes);
    entry.read_if_there("predicted_bytes", read.predicted_bytes);
  });
  if (fields.has("calibration")) read_calibration(fields, "calibration", state.calibration);
  if (fields.has("waits")) read_waits(fields, state.waits);
  return state;
}

std::string to_json(const Decision& decision) {
  return Json{{"step", decision.step},
              {"window_steps", decision.window_steps},
              {"worst_rank", decision.worst_rank},
              {"peak_bytes", decision.peak_bytes},
              {"budget_bytes", decision.budget_bytes},
              {"usage_per_10000", decision.usage},
              {"target_per_10000", decision.target},
              {"margin_per_10000", decision.margin},
              {"retries", decision.retries},
              {"allocator_retries", decision.allocator_retries},
              {"predicted_bytes", decision.predicted_bytes},
              {"before", json_of(decision.before)},
              {"plan", json_of(decision.plan)},
              {"changed", decision.changed},
              {"direction", name_of(decision.direction)},
              {"cause", name_of(decision.cause)},
              {"reason", decision.reason}}
      .dump();
}

}  // namespace plimsoll::memory
