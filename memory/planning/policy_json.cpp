#include <array>
#include <nlohmann/json.hpp>
#include <utility>

#include "core/error.h"
#include "memory/planning/policy.h"

namespace plimsoll::memory {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::array<const char*, 3> kDirections{"hold", "grow", "shrink"};
constexpr std::array<const char*, 11> kCauses{"fixed", "baseline", "partial",    "cooldown",   "in_band",   "below",
                                              "above", "retry",    "too_little", "at_maximum", "at_minimum"};

const char* name_of(Direction direction) { return kDirections.at(static_cast<std::size_t>(direction)); }
const char* name_of(Cause cause) { return kCauses.at(static_cast<std::size_t>(cause)); }

Json json_of(const Plan& plan) {
  return {
      {"resolution", plan.resolution}, {"micro_batch", plan.micro_batch}, {"recompute_blocks", plan.recompute_blocks}};
}

[[noreturn]] void refuse(const std::string& field, const char* wanted) {
  fail(ExitCode::kCheckpoint, "the controller's state: \"{}\" is no {}; restart from an older checkpoint", field,
       wanted);
}

/// Reads fields of one object, and names the one that is missing or of the wrong kind.
class Fields {
 public:
  Fields(const Json& json, std::string place) : json_(json), place_(std::move(place)) {
    if (!json.is_object()) refuse(place_, "object");
  }
  template <class Integer>
  void read(const char* name, Integer& value) const {
    const Json& field = at(name);
    if (!field.is_number_integer() || !std::in_range<Integer>(field.get<std::int64_t>()))
      refuse(path(name), "whole number in range");
    value = static_cast<Integer>(field.get<std::int64_t>());
  }
  void read(const char* name, bool& value) const {
    if (!at(name).is_boolean()) refuse(path(name), "bool");
    value = at(name).get<bool>();
  }
  void read(const char* name, Direction& value) const {
    for (std::size_t i = 0; i < kDirections.size(); ++i) {
      if (at(name) == kDirections[i]) return void(value = static_cast<Direction>(i));
    }
    refuse(path(name), "direction (hold, grow, shrink)");
  }
  void read(const char* name, Plan& plan) const {
    const Fields inner(at(name), path(name));
    inner.read("resolution", plan.resolution);
    inner.read("micro_batch", plan.micro_batch);
    inner.read("recompute_blocks", plan.recompute_blocks);
  }
  void read_list(const char* name, const auto& read_entry) const {
    if (!at(name).is_array()) refuse(path(name), "list");
    for (std::size_t i = 0; i < at(name).size(); ++i)
      read_entry(Fields(at(name)[i], path(name) + "[" + std::to_string(i) + "]"));
  }

 private:
  const Json& at(const char* name) const {
    const auto found = json_.find(name);
    if (found == json_.end()) refuse(path(name), "field of it");
    return *found;
  }
  std::string path(const char* name) const { return place_.empty() ? name : place_ + "." + name; }
  const Json& json_;
  std::string place_;
};

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
                        {"plan", json_of(entry.plan)}});
  }
  return Json{{"baseline_done", state.baseline_done},
              {"cooldown", state.cooldown},
              {"last_change_step", state.last_change_step},
              {"history", history},
              {"failures", failures}}
      .dump();
}

PolicyState policy_state_from_json(std::string_view text) {
  const Json json = Json::parse(text, nullptr, false);
  if (json.is_discarded())
    fail(ExitCode::kCheckpoint, "the controller's state is no JSON; restart from an older checkpoint");
  const Fields fields(json, "");
  PolicyState state;
  fields.read("baseline_done", state.baseline_done);
  fields.read("cooldown", state.cooldown);
  fields.read("last_change_step", state.last_change_step);
  fields.read_list("history", [&](const Fields& entry) {
    HistoryEntry& read = state.history.emplace_back();
    entry.read("step", read.step);
    entry.read("usage", read.usage);
    entry.read("plan", read.plan);
    entry.read("direction", read.direction);
  });
  fields.read_list("failures", [&](const Fields& entry) {
    FailureEntry& read = state.failures.emplace_back();
    entry.read("step", read.step);
    entry.read("rank", read.rank);
    entry.read("request_bytes", read.request_bytes);
    entry.read("plan", read.plan);
  });
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
              {"before", json_of(decision.before)},
              {"plan", json_of(decision.plan)},
              {"changed", decision.changed},
              {"direction", name_of(decision.direction)},
              {"cause", name_of(decision.cause)},
              {"reason", decision.reason}}
      .dump();
}

}  // namespace plimsoll::memory
