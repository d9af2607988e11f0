#include "report/records.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/bytes.h"

namespace plimsoll::report {
namespace {

using Json = nlohmann::ordered_json;

Json view(const PlanView& plan) {
  return {{"micro_batch", plan.micro_batch},
          {"accumulation", plan.accumulation},
          {"resolution", plan.resolution},
          {"recompute_blocks", plan.recompute_blocks},
          {"recompute_vision", plan.recompute_vision},
          {"recompute_expert", plan.recompute_expert},
          {"offload", plan.offload},
          {"hash", plan.hash}};
}

Json view(const std::vector<RankMemory>& ranks) {
  Json list = Json::array();
  for (const RankMemory& rank : ranks) {
    list.push_back({{"peak", rank.peak},
                    {"predicted", rank.predicted},
                    {"budget", rank.budget},
                    {"retries", rank.retries},
                    {"allocator_retries", rank.allocator_retries},
                    {"failed_request", rank.failed_request},
                    {"failed", rank.failed},
                    {"other_way", rank.other_way},
                    {"other_recompute", rank.other_recompute}});
  }
  return list;
}

Json view(const std::vector<FailedAttempt>& attempts) {
  Json list = Json::array();
  for (const FailedAttempt& attempt : attempts)
    list.push_back({{"plan", view(attempt.plan)}, {"memory", view(attempt.ranks)}});
  return list;
}

Json view(const TaskMemory& memory) {
  const auto compared = static_cast<double>(std::max<std::int64_t>(1, memory.micro_batches));
  return {{"micro_batches", memory.micro_batches},
          {"samples", memory.samples},
          {"predicted", memory.predicted},
          {"measured", memory.measured},
          {"mean_error", memory.error_sum / compared},
          {"largest_error", memory.largest_error}};
}

template <class Value>
Json by_name(const std::vector<std::pair<std::string, Value>>& values) {
  Json object = Json::object();
  for (const auto& [name, value] : values) object[name] = value;
  return object;
}

Json by_name(const std::vector<std::pair<std::string, TaskMemory>>& tasks) {
  Json object = Json::object();
  for (const auto& [name, memory] : tasks) object[name] = view(memory);
  return object;
}

/// One line whatever names and reasons hold.
std::string line(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

}  // namespace

std::string to_json(const PlanView& plan) { return line(view(plan)); }

void TaskMemory::add(const TaskMemory& more) {
  micro_batches += more.micro_batches;
  samples += more.samples;
  predicted += more.predicted;
  measured += more.measured;
  error_sum += more.error_sum;
  largest_error = std::max(largest_error, more.largest_error);
}

std::string to_json(const TaskMemory& memory) { return line(view(memory)); }

double samples_per_second(const StepRecord& record) {
  return record.step_ms > 0 ? static_cast<double>(record.samples) / record.step_ms * 1e3 : 0.0;
}

std::string to_json(const StepRecord& record) {
  return line({{"step", record.step},
               {"epoch", record.epoch},
               {"loss", record.loss},
               {"task_losses", by_name(record.task_losses)},
               {"task_counts", by_name(record.task_counts)},
               {"task_weights", by_name(record.task_weights)},
               {"task_norms", by_name(record.task_norms)},
               {"task_memory", by_name(record.task_memory)},
               {"grad_norm", record.grad_norm},
               {"lr", record.lr},
               {"vl_lr", record.vl_lr},
               {"samples", record.samples},
               {"first_sample", record.first_sample},
               {"live", record.live},
               {"samples_per_second", samples_per_second(record)},
               {"step_ms", record.step_ms},
               {"load_ms", record.load_ms},
               {"wall_ms", record.wall_ms},
               {"micro_batches", record.micro_batches},
               {"failed_forward", record.failed_forward},
               {"failed_backward", record.failed_backward},
               {"skipped", record.skipped},
               {"plan", view(record.plan)},
               {"memory", view(record.ranks)},
               {"failed_attempts", view(record.failed_attempts)},
               {"attempt", record.attempt}});
}

std::string to_json(const DecisionRecord& record) {
  return line({{"step", record.step},
               {"window", record.window},
               {"policy", record.policy},
               {"memory", view(record.ranks)},
               {"worst_rank", record.worst_rank},
               {"peak_fraction", record.peak_fraction},
               {"target", record.target},
               {"margin", record.margin},
               {"before", view(record.before)},
               {"after", view(record.after)},
               {"predicted_peak", record.predicted_peak ? Json(*record.predicted_peak) : Json(nullptr)},
               {"changed", record.changed},
               {"settled", record.settled ? Json(*record.settled) : Json(nullptr)},
               {"reason", record.reason}});
}

std::string to_json(const CacheUseRecord& record) {
  const auto maybe = [](const std::optional<double>& value) { return value ? Json(*value) : Json(nullptr); };
  return line({{"step", record.step},
               {"what", "use"},
               {"epoch", record.epoch},
               {"loaded", record.loaded},
               {"from_device", record.from_device},
               {"from_memory", record.from_memory},
               {"from_disk", record.from_disk},
               {"kept", record.kept},
               {"disk_bytes", record.disk_bytes},
               {"memory_bytes", record.memory_bytes},
               {"device_bytes", record.device_bytes},
               {"age", maybe(record.age)},
               {"saved_ms", maybe(record.saved_ms)},
               {"upkeep_ms", record.upkeep_ms},
               {"int8_error", maybe(record.int8_error)}});
}

std::string to_line(const CacheUseRecord& record) {
  std::string text =
      fmt::format("feature cache: {} of {} samples loaded came with their features, {} were kept; {} on disk",
                  record.from_device + record.from_memory + record.from_disk, record.loaded, record.kept,
                  format_bytes(record.disk_bytes));
  if (record.device_bytes > 0)
    text += fmt::format("; {} of them on the device ({})", record.from_device, format_bytes(record.device_bytes));
  if (record.memory_bytes > 0)
    text += fmt::format("; {} of them from memory ({})", record.from_memory, format_bytes(record.memory_bytes));
  if (record.age) text += fmt::format("; those read were made {:.1f} steps before", *record.age);
  if (record.saved_ms) text += fmt::format("; {:.1f} s of computing saved", *record.saved_ms / 1000);
  if (record.int8_error) text += fmt::format("; as bytes, with an error of {:.4f}", *record.int8_error);
  return text;
}

std::string to_json(const DriftRecord& record) {
  return line({{"step", record.step},
               {"what", "drift"},
               {"probed", record.probed},
               {"drift", record.drift},
               {"cosine", record.cosine}});
}

std::string to_json(const CacheRecord& record) {
  return line({{"step", record.step},
               {"cache", record.cache},
               {"drift", record.drift ? Json(*record.drift) : Json(nullptr)},
               {"reason", record.reason}});
}

}  // namespace plimsoll::report
