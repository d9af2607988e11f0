#include "memory/planning/trace.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>

#include "core/error.h"

namespace plimsoll::memory {
namespace {

using Json = nlohmann::json;

constexpr double kLargestFraction = 2.0;
constexpr std::int64_t kMostPeak = (std::int64_t{1} << 48) - 1;  // what a report carries
constexpr double kMostBytes = static_cast<double>(kMostPeak);
constexpr std::int64_t kDefaultBudget = 10'000'000'000;  // a fraction of 1/10000 of it is a whole number
constexpr std::int64_t kMost = 1'000'000'000'000;        // steps, milliseconds, counts: more is a mistake
constexpr std::int64_t kMostInt = std::numeric_limits<int>::max();

class Reader {
 public:
  Reader(std::string_view file, int ranks) : file_(file), ranks_(static_cast<std::size_t>(ranks)) {}

  void add_lines(std::string_view text) {
    while (!text.empty()) {
      const std::size_t end = std::min(text.find('\n'), text.size());
      add(text.substr(0, end));
      text.remove_prefix(std::min(end + 1, text.size()));
    }
  }

  void add(std::string_view line) {
    ++line_;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) return;
    const Json json = parse(line);
    if (json.contains("candidates")) return add_candidates(json["candidates"]);
    if (json.contains("memory") == json.contains("peaks"))
      refuse(
          "a step needs either \"memory\" (a line of metrics.jsonl) or \"peaks\"; write for example "
          "{\"peaks\": [0.65, 0.7]}");
    TraceStep step;
    step.step = number(json, "step", last_ + 1, kMost);
    if (step.step < 1) refuse("\"step\" is 0: steps count from 1");
    if (step.step <= last_)
      refuse(fmt::format("\"step\" is {} after {}: steps ascend; sort the lines", step.step, last_));
    step.step_ms = number(json, "step_ms", 0, kMost);
    step.samples = number(json, "samples", 0, kMost);
    if (json.contains("plan")) step.plan = plan_of(json["plan"], "\"plan\"");
    json.contains("memory") ? read_line_of_run(json, step) : read_peaks(json, step);
    last_ = step.step;
    trace_.steps.push_back(std::move(step));
  }

  Trace finish() {
    if (trace_.steps.empty())
      fail(ExitCode::kData, "{}: there is no step in it; write a line a step, for example {}", file_,
           "{\"peaks\": [0.65, 0.7]}");
    return std::move(trace_);
  }

  std::vector<Candidate> finish_candidates() {
    if (!trace_.steps.empty() || trace_.candidates.empty())
      fail(ExitCode::kData, "{}: it must hold {} and nothing else; copy it from the run's folder again", file_,
           "{\"candidates\": [...]}");
    return std::move(trace_.candidates);
  }

 private:
  [[noreturn]] void refuse(const std::string& text) const { fail(ExitCode::kData, "{}:{}: {}", file_, line_, text); }

  Json parse(std::string_view line) const {
    Json json = Json::parse(line, nullptr, false);
    if (json.is_object()) return json;
    const bool no_number = line.find("NaN") != line.npos || line.find("nan") != line.npos ||
                           line.find("Infinity") != line.npos || line.find("inf") != line.npos;
    if (json.is_discarded() && no_number)
      refuse("NaN and Infinity are no JSON and no peak: leave the step out, or write the bytes that were in use");
    refuse("this is no JSON object; write one object a line, for example {\"peaks\": [0.65, 0.7]}");
  }

  /// A whole number in [0, most] that may be missing or, as a number that was not finite, null.
  std::int64_t number(const Json& json, const char* name, std::int64_t missing, std::int64_t most) const {
    const auto found = json.find(name);
    if (found == json.end() || found->is_null()) return missing;
    const double value = found->is_number() ? found->get<double>() : -1.0;
    if (!(value >= 0.0 && value <= static_cast<double>(most)))
      refuse(fmt::format("\"{}\" is {}: write a number from 0 to {}", name, found->dump(), most));
    return std::llround(value);
  }

  /// True or false; what is missing is false.
  bool flag(const Json& json, const char* name) const {
    const auto found = json.find(name);
    if (found == json.end()) return false;
    if (!found->is_boolean()) refuse(fmt::format("\"{}\" is {}: write true or false", name, found->dump()));
    return found->get<bool>();
  }

  std::int64_t bytes(const Json& value, const std::string& name, std::int64_t least) const {
    const double size = value.is_number() ? value.get<double>() : std::nan("");
    if (!(size >= static_cast<double>(least) && size <= kMostBytes && size == std::floor(size)))
      refuse(fmt::format("{} is {}: write whole bytes, at least {} and below 2^48", name, value.dump(), least));
    return std::llround(size);
  }

  std::int64_t peak(const Json& value, const std::string& name, std::int64_t budget) const {
    const double size = value.is_number() ? value.get<double>() : std::nan("");
    if (!(size >= 0.0))
      refuse(fmt::format("{} is {}: write bytes, or a fraction of the budget (0 to 2)", name, value.dump()));
    if (size <= kLargestFraction) return std::llround(size * static_cast<double>(budget));
    if (size != std::floor(size) || size > kMostBytes)
      refuse(fmt::format("{} is {}: numbers up to 2 are fractions of the budget, larger ones whole bytes below 2^48",
                         name, value.dump()));
    return std::llround(size);
  }

  const Json& list(const Json& json, const char* name) const {
    if (!json.is_array()) refuse(fmt::format("\"{}\" is {}: write a list with an entry a rank", name, json.dump()));
    if (ranks_ == 0) ranks_ = json.size();
    if (json.size() != ranks_ || json.empty()) {
      refuse(fmt::format("\"{}\" has {} of {} ranks; every line needs an entry for every rank, in rank order", name,
                         json.size(), ranks_ == 0 ? 1 : ranks_));
    }
    return json;
  }

  Plan plan_of(const Json& json, const char* name) const {
    if (!json.is_object()) refuse(fmt::format("{} is {}: write an object with \"micro_batch\"", name, json.dump()));
    const auto part = [&](const char* field, std::int64_t missing) {
      return static_cast<int>(number(json, field, missing, kMostInt));
    };
    Plan plan{part("resolution", 0), part("micro_batch", 1), part("recompute_blocks", 0)};
    plan.recompute_vision = part("recompute_vision", 0);
    plan.recompute_expert = part("recompute_expert", 0);
    plan.offload = json.contains("offload") && json["offload"] == true;
    if (plan.micro_batch < 1) refuse(fmt::format("\"micro_batch\" of {} is 0: write at least 1", name));
    return plan;
  }

  void add_candidates(const Json& json) {
    if (!trace_.steps.empty()) refuse("\"candidates\" come on the first line, before all steps");
    if (!json.is_array()) refuse("\"candidates\" is no list");
    for (const Json& entry : json) {
      const Plan plan = plan_of(entry, "a candidate");
      trace_.candidates.push_back({plan, bytes(entry.value("bytes", Json()), "a candidate's \"bytes\"", 1),
                                   bytes(entry.value("microseconds", Json()), "a candidate's \"microseconds\"", 1)});
    }
  }

  void read_line_of_run(const Json& json, TraceStep& step) {
    trace_.of_run = true;
    step.ranks = usage_of(json["memory"]);
    if (!json.contains("failed_attempts")) return;
    if (!json["failed_attempts"].is_array()) refuse("\"failed_attempts\" is no list");
    for (const Json& attempt : json["failed_attempts"]) {
      if (!attempt.is_object() || !attempt.contains("plan") || !attempt.contains("memory"))
        refuse("each of \"failed_attempts\" needs \"plan\" and \"memory\"");
      step.failed.push_back(
          {plan_of(attempt["plan"], "the \"plan\" of a failed attempt"), usage_of(attempt["memory"])});
      const auto& ranks = step.failed.back().ranks;
      if (std::none_of(ranks.begin(), ranks.end(), [](const RankUsage& rank) { return rank.failed; }))
        refuse("one of \"failed_attempts\" has no rank with \"failed\": true");
    }
  }

  std::vector<RankUsage> usage_of(const Json& json) const {
    std::vector<RankUsage> ranks;
    for (std::size_t rank = 0; rank < list(json, "memory").size(); ++rank) {
      const Json& entry = json[rank];
      const std::string of = fmt::format(" of rank {}", rank);
      if (!entry.is_object()) refuse(fmt::format("\"memory\"{} is {}: write an object", of, entry.dump()));
      RankUsage usage;
      usage.budget_bytes = bytes(entry.value("budget", Json()), "\"budget\"" + of, 1);
      usage.peak_bytes = peak(entry.value("peak", Json()), "\"peak\"" + of, usage.budget_bytes);
      usage.retries = number(entry, "retries", 0, kMost);
      usage.predicted_peak_bytes = number(entry, "predicted", 0, kMostPeak);
      usage.allocator_retries = number(entry, "allocator_retries", 0, kMost);
      usage.failed_request_bytes = number(entry, "failed_request", 0, kMostPeak);
      usage.failed = flag(entry, "failed");
      usage.other_way = flag(entry, "other_way");
      usage.other_recompute = flag(entry, "other_recompute");
      ranks.push_back(usage);
    }
    return ranks;
  }

  void read_peaks(const Json& json, TraceStep& step) {
    const Json& peaks = list(json["peaks"], "peaks");
    if (json.contains("budgets")) {
      budgets_.clear();
      for (const Json& budget : list(json["budgets"], "budgets"))
        budgets_.push_back(bytes(budget, fmt::format("\"budgets\" of rank {}", budgets_.size()), 1));
    }
    for (std::size_t rank = 0; rank < peaks.size(); ++rank) {
      const std::string name = fmt::format("\"peaks\" of rank {}", rank);
      RankUsage usage;
      usage.budget_bytes = budgets_.empty() ? kDefaultBudget : budgets_[rank];
      usage.peak_bytes = peak(peaks[rank], name, usage.budget_bytes);
      if (budgets_.empty() && peaks[rank].get<double>() > kLargestFraction)
        refuse(fmt::format("{} is in bytes, but no line gives \"budgets\"; add \"budgets\": [bytes, ...]", name));
      step.ranks.push_back(usage);
    }
    read_counts(json, "retries", &RankUsage::retries, step);
    read_counts(json, "predicted", &RankUsage::predicted_peak_bytes, step);
  }

  /// A list that may be missing.
  void read_counts(const Json& json, const char* name, std::int64_t RankUsage::*field, TraceStep& step) {
    if (!json.contains(name)) return;
    const Json& values = list(json[name], name);
    for (std::size_t rank = 0; rank < values.size(); ++rank)
      step.ranks[rank].*field = bytes(values[rank], fmt::format("\"{}\" of rank {}", name, rank), 0);
  }

  std::string_view file_;
  mutable std::size_t ranks_;
  std::int64_t line_ = 0;
  std::int64_t last_ = 0;
  std::vector<std::int64_t> budgets_;
  Trace trace_;
};

}  // namespace

Trace read_trace(std::string_view text, std::string_view file, int ranks) {
  Reader reader(file, ranks);
  reader.add_lines(text);
  return reader.finish();
}

std::vector<Candidate> read_candidates(std::string_view text, std::string_view file) {
  Reader reader(file, 0);
  reader.add_lines(text);
  return reader.finish_candidates();
}

}  // namespace plimsoll::memory
