#include "report/mlflow_messages.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <nlohmann/json.hpp>

#include "core/toml.h"

namespace plimsoll::report {
namespace {

using MlflowJson = nlohmann::ordered_json;
using EntryKind = MlflowEntry::Kind;

std::string text_of(const MlflowJson& json) { return json.dump(-1, ' ', false, MlflowJson::error_handler_t::replace); }

// Never in the middle of a character of UTF-8.
std::string cut_to(const std::string& text, std::size_t bytes) {
  if (text.size() <= bytes) return text;
  while (bytes > 0 && (static_cast<unsigned char>(text[bytes]) & 0xC0U) == 0x80U) --bytes;
  return text.substr(0, bytes);
}

std::string pairs_line(const char* what, const std::map<std::string, std::string>& pairs, std::size_t longest) {
  MlflowJson values = MlflowJson::object();
  for (const auto& [key, value] : pairs) values[mlflow_key(key)] = cut_to(value, longest);
  return text_of({{what, values}});
}

void read_pairs(const MlflowJson& json, EntryKind kind, std::vector<MlflowEntry>& entries) {
  for (const auto& [key, value] : json.items()) entries.push_back({kind, key, value.get<std::string>(), 0.0, 0, 0});
}

void read_metrics(const MlflowJson& json, MlflowLine& line) {
  line.step = json.at("step").get<std::int64_t>();
  const auto time = json.at("time").get<std::int64_t>();
  for (const auto& [key, value] : json.at("metrics").items())
    line.entries.push_back({EntryKind::kMetric, key, "", value.get<double>(), time, line.step});
}

MlflowLine read_line(const MlflowJson& json) {
  MlflowLine line;
  if (json.contains("begin")) {
    const auto& begin = json.at("begin");
    line.experiment = begin.at("experiment").get<std::string>();
    line.name = begin.at("name").get<std::string>();
    line.token = begin.at("run").get<std::string>();
    line.time_ms = json.at("time").get<std::int64_t>();
    line.kind = MlflowLine::Kind::kBegin;
  } else if (json.contains("status")) {
    line.status = json.at("status").get<std::string>();
    line.time_ms = json.at("time").get<std::int64_t>();
    line.kind = MlflowLine::Kind::kStatus;
  } else {
    if (json.contains("params")) read_pairs(json.at("params"), EntryKind::kParam, line.entries);
    if (json.contains("tags")) read_pairs(json.at("tags"), EntryKind::kTag, line.entries);
    if (json.contains("metrics")) read_metrics(json, line);
    if (!line.entries.empty()) line.kind = MlflowLine::Kind::kEntries;
  }
  return line;
}

using StepMetrics = std::vector<std::pair<std::string, double>>;

StepMetrics metrics_of(const StepRecord& record) {
  const auto real = [](std::int64_t value) { return static_cast<double>(value); };
  StepMetrics metrics{{"loss", record.loss},
                      {"grad_norm", record.grad_norm},
                      {"lr", record.lr},
                      {"vl_lr", record.vl_lr},
                      {"epoch", record.epoch},
                      {"samples", real(record.samples)},
                      {"samples_per_second", samples_per_second(record)},
                      {"step_ms", record.step_ms},
                      {"load_ms", record.load_ms},
                      {"micro_batch", real(record.plan.micro_batch)},
                      {"micro_batches", real(record.micro_batches)},
                      {"resolution", real(record.plan.resolution)},
                      {"recompute_blocks", real(record.plan.recompute_blocks)},
                      {"live", real(record.live)},
                      {"skipped", record.skipped ? 1.0 : 0.0},
                      {"attempt", real(record.attempt)}};
  for (const auto& [task, loss] : record.task_losses) metrics.emplace_back("task_loss/" + task, loss);
  for (const auto& [task, memory] : record.task_memory) {
    const double samples = real(std::max<std::int64_t>(1, memory.samples));
    metrics.emplace_back("task_memory/bytes_a_sample/" + task, real(memory.measured) / samples);
    metrics.emplace_back("task_memory/predicted_a_sample/" + task, real(memory.predicted) / samples);
    metrics.emplace_back("task_memory/largest_error/" + task, memory.largest_error);
  }
  for (std::size_t rank = 0; rank < record.ranks.size(); ++rank) {
    const RankMemory& memory = record.ranks[rank];
    metrics.emplace_back(fmt::format("memory/peak_bytes/rank_{}", rank), real(memory.peak));
    metrics.emplace_back(fmt::format("memory/budget_bytes/rank_{}", rank), real(memory.budget));
    metrics.emplace_back(fmt::format("memory/retries/rank_{}", rank), real(memory.retries));
  }
  return metrics;
}

MlflowJson entry_json(const MlflowEntry& entry) {
  if (entry.kind != EntryKind::kMetric) return {{"key", entry.key}, {"value", entry.value}};
  return {{"key", entry.key}, {"value", entry.number}, {"timestamp", entry.time_ms}, {"step", entry.step}};
}

// What is in the request that is being filled.
struct RequestLoad {
  std::size_t metrics = 0, params = 0, tags = 0, bytes = 0;

  void add(const MlflowEntry& entry, std::size_t size) {
    metrics += entry.kind == EntryKind::kMetric ? 1 : 0;
    params += entry.kind == EntryKind::kParam ? 1 : 0;
    tags += entry.kind == EntryKind::kTag ? 1 : 0;
    bytes += size;
  }
  bool fits() const {
    return metrics <= kMlflowMetrics && params <= kMlflowParams && tags <= kMlflowTags &&
           metrics + params + tags <= kMlflowEntries && bytes <= kMlflowBodyBytes;
  }
};

std::optional<std::string> string_at(const std::string& text, const char* pointer) {
  const auto json = MlflowJson::parse(text, nullptr, false);
  const MlflowJson::json_pointer place(pointer);
  if (json.is_discarded() || !json.contains(place) || !json.at(place).is_string()) return std::nullopt;
  return json.at(place).get<std::string>();
}

std::string setting_text(const Setting& value) { return value.is_string() ? value.as_string() : value.to_toml(); }

}  // namespace

MlflowLine parse_mlflow_line(std::string_view text) {
  const auto json = MlflowJson::parse(text, nullptr, false);
  if (!json.is_object()) return {};
  try {
    return read_line(json);
  } catch (const MlflowJson::exception&) {
    return {};
  }
}

std::string mlflow_begin_line(const std::string& experiment, const std::string& name, const std::string& token,
                              std::int64_t time_ms) {
  return text_of({{"begin", {{"experiment", experiment}, {"name", name}, {"run", token}}}, {"time", time_ms}});
}

std::string mlflow_state_line(const std::string& status, std::int64_t time_ms) {
  return text_of({{"status", status}, {"time", time_ms}});
}

std::string mlflow_params_line(const std::map<std::string, std::string>& params) {
  return pairs_line("params", params, kMlflowParamBytes);
}

std::string mlflow_tags_line(const std::map<std::string, std::string>& tags) {
  return pairs_line("tags", tags, kMlflowTagBytes);
}

std::string mlflow_step_line(const StepRecord& record, std::int64_t time_ms) {
  MlflowJson values = MlflowJson::object();
  std::int64_t not_finite = 0;
  for (const auto& [key, value] : metrics_of(record)) {
    if (std::isfinite(value))
      values[mlflow_key(key)] = value;
    else
      ++not_finite;
  }
  if (not_finite > 0) values["not_finite"] = not_finite;
  return text_of({{"step", record.step}, {"time", time_ms}, {"metrics", values}});
}

std::map<std::string, std::string> mlflow_flatten(std::string_view toml, const std::string& name) {
  std::map<std::string, std::string> result;
  const Setting document = parse_toml(toml, name);
  for (const auto& [key, value] : document.as_table()) {
    if (!value.is_table()) {
      result[key] = setting_text(value);
      continue;
    }
    for (const auto& [inner, setting] : value.as_table()) result[key + "." + inner] = setting_text(setting);
  }
  return result;
}

std::string mlflow_key(const std::string& text) {
  std::string key = cut_to(text, kMlflowKeyBytes);
  for (char& c : key) {
    if (std::isalnum(static_cast<unsigned char>(c)) == 0 && std::string_view("_-. /").find(c) == std::string_view::npos)
      c = '_';
  }
  // The server takes only paths that are their own normal form.
  std::string result;
  for (std::size_t begin = 0; begin <= key.size();) {
    const auto end = std::min(key.find('/', begin), key.size());
    const std::string part = key.substr(begin, end - begin);
    const bool normal = !part.empty() && part != "." && part != "..";
    if (begin > 0) result += '/';
    result += normal ? part : std::string(std::max<std::size_t>(1, part.size()), '_');
    begin = end + 1;
  }
  return cut_to(result, kMlflowKeyBytes);
}

std::vector<std::span<const MlflowEntry>> mlflow_split(std::span<const MlflowEntry> entries) {
  std::vector<std::span<const MlflowEntry>> parts;
  RequestLoad load;
  std::size_t begin = 0;
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const std::size_t size = text_of(entry_json(entries[i])).size() + 1;
    RequestLoad more = load;
    more.add(entries[i], size);
    if (!more.fits() && i > begin) {
      parts.push_back(entries.subspan(begin, i - begin));
      begin = i;
      more = RequestLoad();
      more.add(entries[i], size);
    }
    load = more;
  }
  if (begin < entries.size()) parts.push_back(entries.subspan(begin));
  return parts;
}

std::string mlflow_create_experiment_body(const std::string& name) { return text_of({{"name", name}}); }

std::string mlflow_search_run_body(const std::string& experiment_id, const std::string& token) {
  return text_of({{"experiment_ids", MlflowJson::array({experiment_id})},
                  {"filter", fmt::format("tags.`plimsoll.run` = '{}'", token)},
                  {"run_view_type", "ACTIVE_ONLY"},
                  {"max_results", 1}});
}

std::string mlflow_create_run_body(const std::string& experiment_id, const MlflowLine& begin) {
  const auto tag = [](const char* key, const std::string& value) { return MlflowJson{{"key", key}, {"value", value}}; };
  return text_of({{"experiment_id", experiment_id},
                  {"run_name", begin.name},
                  {"start_time", begin.time_ms},
                  {"tags", MlflowJson::array({tag("plimsoll.run", begin.token), tag("mlflow.source.name", "plimsoll"),
                                              tag("mlflow.source.type", "LOCAL")})}});
}

std::string mlflow_log_batch_body(const std::string& run_id, std::span<const MlflowEntry> entries) {
  MlflowJson metrics = MlflowJson::array(), params = MlflowJson::array(), tags = MlflowJson::array();
  for (const MlflowEntry& entry : entries)
    (entry.kind == EntryKind::kMetric  ? metrics
     : entry.kind == EntryKind::kParam ? params
                                       : tags)
        .push_back(entry_json(entry));
  return text_of({{"run_id", run_id}, {"metrics", metrics}, {"params", params}, {"tags", tags}});
}

std::string mlflow_update_run_body(const std::string& run_id, const MlflowLine& status) {
  MlflowJson body{{"run_id", run_id}, {"status", status.status}};
  if (status.status != "RUNNING") body["end_time"] = status.time_ms;
  return text_of(body);
}

std::optional<std::string> mlflow_experiment_id(const std::string& answer) {
  const auto found = string_at(answer, "/experiment/experiment_id");
  return found ? found : string_at(answer, "/experiment_id");
}

std::optional<std::string> mlflow_run_id(const std::string& answer) {
  const auto found = string_at(answer, "/run/info/run_id");
  return found ? found : string_at(answer, "/runs/0/info/run_id");
}

std::string mlflow_error_code(const std::string& answer) { return string_at(answer, "/error_code").value_or(""); }

std::string mlflow_error_text(const std::string& answer) {
  const auto message = string_at(answer, "/message");
  std::string text = cut_to(message ? *message : answer, 300);
  std::replace_if(
      text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < ' '; }, ' ');
  return text;
}

}  // namespace plimsoll::report
