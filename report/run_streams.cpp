#include "report/run_streams.h"

#include <array>
#include <nlohmann/json.hpp>
#include <string_view>

#include "core/file.h"
#include "core/toml.h"

namespace plimsoll::report {
namespace {

using Json = nlohmann::ordered_json;

/// Beyond this a double no longer counts, and sums might overflow.
constexpr std::int64_t kLargest = std::int64_t{1} << 53;

/// One object of a line. Errors name the file, the line and the field.
class Fields {
 public:
  Fields(const Json& json, std::string where) : json_(json), where_(std::move(where)) {
    if (!json.is_object()) fail(ExitCode::kData, "{}: is no JSON object; remove the line or restore the file", where_);
  }

  std::optional<double> number(const std::string& name) const {
    const Json* value = find(name);
    if (value != nullptr && !value->is_number()) refuse(name, *value, "a number");
    return value == nullptr ? std::nullopt : std::optional(value->get<double>());
  }
  std::optional<std::int64_t> integer(const std::string& name) const {
    const Json* value = find(name);
    if (value == nullptr) return std::nullopt;
    // Also where it was written as 3.0; the comparison comes before the cast, which knows no such numbers.
    const double size = value->is_number() ? value->get<double>() : static_cast<double>(kLargest);
    if (!value->is_number_integer() || size <= -static_cast<double>(kLargest) || size >= static_cast<double>(kLargest))
      refuse(name, *value, "an integer below 2^53");
    return value->get<std::int64_t>();
  }
  std::optional<std::int64_t> amount(const std::string& name) const {
    const auto value = integer(name);
    if (value && *value < 0) refuse(name, *value, "0 or more");
    return value;
  }
  std::int64_t count(const std::string& name) const { return amount(name).value_or(0); }
  std::optional<bool> flag(const std::string& name) const {
    const Json* value = find(name);
    if (value != nullptr && !value->is_boolean()) refuse(name, *value, "true or false");
    return value == nullptr ? std::nullopt : std::optional(value->get<bool>());
  }
  std::string text(const std::string& name) const {
    const Json* value = find(name);
    if (value != nullptr && !value->is_string()) refuse(name, *value, "a text");
    return value == nullptr ? std::string() : value->get<std::string>();
  }
  bool has(const std::string& name) const { return find(name) != nullptr; }
  /// An object within this one; empty when absent.
  Fields object(const std::string& name) const {
    static const Json kNothing = Json::object();
    const Json* value = find(name);
    return {value == nullptr ? kNothing : *value, fmt::format("{}: \"{}\"", where_, name)};
  }
  const Json* list(const std::string& name) const {
    const Json* value = find(name);
    if (value != nullptr && !value->is_array()) refuse(name, *value, "a list");
    return value;
  }
  const Json& json() const { return json_; }
  const std::string& where() const { return where_; }
  [[noreturn]] void refuse(const std::string& name, const Json& value, const char* wanted) const {
    fail(ExitCode::kData, "{}: \"{}\" is {}, but must be {}; remove the line or restore the file", where_, name,
         value.dump(-1, ' ', false, Json::error_handler_t::replace).substr(0, 60), wanted);
  }

 private:
  const Json* find(const std::string& name) const {
    const auto value = json_.find(name);
    return value == json_.end() || value->is_null() ? nullptr : &*value;
  }
  const Json& json_;
  std::string where_;
};

/// Calls `each` with every whole line; adds a torn one to the streams' count.
template <class Each>
void read_lines(const std::filesystem::path& file, RunStreams& streams, Each each) {
  const std::string text = read_file(file);
  std::size_t begin = 0;
  for (std::int64_t number = 1; begin < text.size(); ++number) {
    const std::size_t end = text.find('\n', begin);
    if (end == std::string::npos) {
      ++streams.torn_lines;
      streams.notes.push_back(
          fmt::format("{}: line {} has no end (a run was killed in the writing, or writes it now); "
                      "it is left out",
                      file.filename().string(), number));
      return;
    }
    const Json json = Json::parse(text.begin() + static_cast<std::ptrdiff_t>(begin),
                                  text.begin() + static_cast<std::ptrdiff_t>(end), nullptr, false);
    const Fields fields(json, fmt::format("{}:{}", file.string(), number));
    if (!fields.integer("step"))
      fail(ExitCode::kData, "{}: has no \"step\"; remove the line or restore the file", fields.where());
    each(fields);
    begin = end + 1;
  }
}

std::vector<RankMemory> memory_of(const Fields& line) {
  std::vector<RankMemory> ranks;
  const Json* list = line.list("memory");
  if (list == nullptr) return ranks;
  for (const Json& item : *list) {
    const Fields rank(item, fmt::format("{}: rank {} of \"memory\"", line.where(), ranks.size()));
    ranks.push_back({rank.count("peak"), rank.count("predicted"), rank.count("budget"), rank.count("retries")});
  }
  return ranks;
}

TaskOfStep& task_named(std::vector<TaskOfStep>& tasks, const std::string& name) {
  for (TaskOfStep& task : tasks) {
    if (task.name == name) return task;
  }
  return tasks.emplace_back(TaskOfStep{name, {}, {}, {}});
}

TaskMemory task_memory_of(const Fields& task) {
  TaskMemory memory{task.count("micro_batches"),
                    task.count("samples"),
                    task.count("predicted"),
                    task.count("measured"),
                    0,
                    task.number("largest_error").value_or(0)};
  memory.error_sum = task.number("mean_error").value_or(0) * static_cast<double>(memory.micro_batches);
  return memory;
}

std::vector<TaskOfStep> tasks_of(const Fields& line) {
  std::vector<TaskOfStep> tasks;
  const Fields losses = line.object("task_losses"), counts = line.object("task_counts");
  for (const auto& item : losses.json().items()) task_named(tasks, item.key()).loss = losses.number(item.key());
  for (const auto& item : counts.json().items()) task_named(tasks, item.key()).count = counts.count(item.key());
  const Fields memory = line.object("task_memory");
  for (const auto& item : memory.json().items())
    task_named(tasks, item.key()).memory = task_memory_of(memory.object(item.key()));
  return tasks;
}

StepLine step_line(const Fields& line) {
  StepLine step;
  step.step = *line.integer("step");
  step.epoch = line.number("epoch");
  // Passes are counted in integers later on.
  if (step.epoch && (*step.epoch < 0 || *step.epoch > 1e9)) line.refuse("epoch", *step.epoch, "between 0 and 1e9");
  step.loss = line.number("loss");
  step.grad_norm = line.number("grad_norm");
  step.lr = line.number("lr");
  step.vl_lr = line.number("vl_lr");
  step.step_ms = line.number("step_ms");
  step.load_ms = line.number("load_ms");
  step.tasks = tasks_of(line);
  step.samples = line.amount("samples");
  step.first_sample = line.amount("first_sample");
  step.micro_batches = line.amount("micro_batches");
  step.skipped = line.flag("skipped").value_or(false);
  step.ranks = memory_of(line);
  step.attempt = line.integer("attempt").value_or(1);
  return step;
}

PlanView plan_of(const Fields& fields) {
  PlanView plan;
  plan.micro_batch = fields.integer("micro_batch").value_or(plan.micro_batch);
  plan.accumulation = fields.integer("accumulation").value_or(plan.accumulation);
  plan.resolution = fields.count("resolution");
  plan.recompute_blocks = fields.count("recompute_blocks");
  plan.recompute_vision = fields.count("recompute_vision");
  plan.recompute_expert = fields.count("recompute_expert");
  plan.offload = fields.flag("offload").value_or(false);
  plan.hash = static_cast<std::uint32_t>(fields.count("hash"));
  return plan;
}

DecisionRecord decision_of(const Fields& line) {
  DecisionRecord decision;
  decision.step = *line.integer("step");
  decision.window = line.count("window");
  decision.policy = line.text("policy");
  decision.ranks = memory_of(line);
  decision.worst_rank = line.count("worst_rank");
  decision.peak_fraction = line.number("peak_fraction").value_or(0);
  decision.target = line.number("target").value_or(0);
  decision.margin = line.number("margin").value_or(0);
  decision.before = plan_of(line.object("before"));
  decision.after = plan_of(line.object("after"));
  decision.predicted_peak = line.integer("predicted_peak");
  decision.changed = line.flag("changed").value_or(false);
  decision.settled = line.flag("settled");
  decision.reason = line.text("reason");
  return decision;
}

CacheUseRecord cache_use_of(const Fields& line) {
  CacheUseRecord use;
  use.step = *line.integer("step");
  use.epoch = line.number("epoch").value_or(0);
  use.loaded = line.count("loaded");
  use.from_device = line.count("from_device");
  use.from_memory = line.count("from_memory");
  use.from_disk = line.count("from_disk");
  use.kept = line.count("kept");
  use.disk_bytes = line.count("disk_bytes");
  use.memory_bytes = line.count("memory_bytes");
  use.device_bytes = line.count("device_bytes");
  use.age = line.number("age");
  use.saved_ms = line.number("saved_ms");
  use.upkeep_ms = line.number("upkeep_ms").value_or(0);
  use.int8_error = line.number("int8_error");
  return use;
}

void read_metrics(RunStreams& streams) {
  const auto file = streams.folder / "metrics.jsonl";
  if (!std::filesystem::exists(file))
    fail(ExitCode::kData, "{} is not there; give the folder of a run (run.dir) that has made a step", file.string());
  read_lines(file, streams, [&](const Fields& line) {
    StepLine step = step_line(line);
    if (!streams.steps.empty() && step.step <= streams.steps.back().step)
      fail(ExitCode::kData, "{}: step {} comes after step {}; remove the lines of one of two runs, or restore the file",
           line.where(), step.step, streams.steps.back().step);
    streams.steps.push_back(std::move(step));
  });
}

void read_decisions(RunStreams& streams) {
  const auto file = streams.folder / "decisions.jsonl";
  if (!std::filesystem::exists(file)) {
    streams.notes.emplace_back("decisions.jsonl is not there; the report has no decisions");
    return;
  }
  read_lines(file, streams, [&](const Fields& line) {
    if (line.has("cache")) {
      streams.cache_changes.push_back(
          {*line.integer("step"), line.text("cache"), line.text("reason"), line.number("drift")});
    } else {
      streams.decisions.push_back(decision_of(line));
    }
  });
}

void read_cache(RunStreams& streams) {
  const auto file = streams.folder / "cache.jsonl";
  if (!std::filesystem::exists(file)) return;  // most runs have none
  read_lines(file, streams, [&](const Fields& line) {
    const std::string what = line.text("what");
    if (what == "use") streams.cache_use.push_back(cache_use_of(line));
    if (what == "drift")
      streams.drift.push_back({*line.integer("step"), line.count("probed"), line.number("drift").value_or(0),
                               line.number("cosine").value_or(0)});
  });
}

/// An attempt that `train --resume` began leaves the file of the one before until it ends itself.
bool is_of_an_earlier_attempt(const ExitRecord& exit, const std::vector<StepLine>& steps) {
  if (steps.empty()) return false;
  const bool counted_all = exit.exit_code == ExitCode::kDone || exit.exit_code == ExitCode::kStopped;
  return exit.attempt < steps.back().attempt || (counted_all && exit.step < steps.back().step);
}

void read_exit(RunStreams& streams) {
  streams.exit = read_exit_record(streams.folder);
  if (!streams.exit || !is_of_an_earlier_attempt(*streams.exit, streams.steps)) return;
  streams.notes.push_back(fmt::format("exit.json is of an earlier attempt (it ended at step {}: {})",
                                      streams.exit->step, streams.exit->reason));
  streams.exit.reset();
}

void read_configuration(RunStreams& streams) {
  static constexpr std::array<std::pair<const char*, const char*>, 13> kShown{{{"model", "path"},
                                                                               {"model", "dtype"},
                                                                               {"data", "path"},
                                                                               {"train", "stage"},
                                                                               {"train", "max_steps"},
                                                                               {"train", "epochs"},
                                                                               {"batch", "effective"},
                                                                               {"memory", "policy"},
                                                                               {"memory", "budget"},
                                                                               {"memory", "target"},
                                                                               {"cache", "mode"},
                                                                               {"run", "device"},
                                                                               {"run", "seed"}}};
  const auto member = [](const Setting& table, std::string_view name) -> const Setting* {
    if (!table.is_table()) return nullptr;
    for (const auto& [key, value] : table.as_table()) {
      if (key == name) return &value;
    }
    return nullptr;
  };
  const auto file = streams.folder / "config.toml";
  if (!std::filesystem::exists(file)) return;
  try {
    const Setting all = parse_toml(read_file(file), file.string());
    for (const auto& [table, key] : kShown) {
      const Setting* found = member(all, table);
      const Setting* value = found == nullptr ? nullptr : member(*found, key);
      if (value != nullptr) streams.configuration.emplace_back(fmt::format("{}.{}", table, key), value->to_toml());
    }
  } catch (const Error& error) {  // it is shown, nothing is computed from it
    streams.notes.push_back(fmt::format("config.toml is left out: {}", error.what()));
  }
}

}  // namespace

RunStreams read_run(const std::filesystem::path& folder) {
  if (!std::filesystem::is_directory(folder))
    fail(ExitCode::kData, "{}: there is no such folder; give the folder of a run (run.dir)", folder.string());
  RunStreams streams;
  streams.folder = folder;
  // The streams before what tells of their end: a run that ends meanwhile is then only shown as running.
  const bool ended = std::filesystem::exists(exit_file(folder));
  read_metrics(streams);
  read_decisions(streams);
  read_cache(streams);
  if (ended) read_exit(streams);
  read_configuration(streams);
  return streams;
}

}  // namespace plimsoll::report
