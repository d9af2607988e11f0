#include "train/task_types.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <regex>
#include <set>
#include <tuple>

#include "core/error.h"

namespace plimsoll::train {
namespace {

constexpr double kTolerance = 1e-3;  // of a target's sum
const std::vector<double> kThree = {0.4, 0.3, 0.3};

std::string sentence(const std::vector<std::string>& names) {
  return fmt::format("\"{}\"", fmt::join(names, "\", \""));
}

std::vector<std::regex> patterns_of(const std::vector<TaskRule>& rules) {
  std::vector<std::regex> patterns;
  for (const TaskRule& rule : rules) {
    try {
      patterns.emplace_back(rule.match);
    } catch (const std::regex_error& error) {
      fail(ExitCode::kUsage, "tasks.rules: match = \"{}\" is no regular expression: {}", rule.match, error.what());
    }
  }
  return patterns;
}

// One type for each text that a training sample has.
void by_task(const data::SampleSource& source, TaskTypes& types) {
  const std::vector<std::string> texts = source.tasks();
  if (texts.empty())
    fail(ExitCode::kUsage, "tasks.by = \"task\": these samples are of no task; set it to \"off\" or \"images\"");
  std::set<std::int64_t> used;
  for (const std::int64_t index : source.training()) used.insert(source.task_of(index));
  if (used.size() > TaskTypes::kMost)
    fail(ExitCode::kUsage,
         "tasks.by = \"task\": the training samples are of {} tasks, and there may be {} types; group them by "
         "tasks.by = \"rules\"",
         used.size(), TaskTypes::kMost);
  std::map<std::int64_t, std::uint8_t> type;
  for (const std::int64_t task : used) {
    type[task] = static_cast<std::uint8_t>(types.names.size());
    types.names.push_back(texts[static_cast<std::size_t>(task)]);
  }
  for (const std::int64_t index : source.training())
    types.of_sample[static_cast<std::size_t>(index)] = type[source.task_of(index)];
}

void by_dataset(const data::SampleSource& source, TaskTypes& types) {
  types.names = source.datasets();
  if (types.names.size() < 2 || types.names.size() > TaskTypes::kMost)
    fail(ExitCode::kUsage,
         "tasks.by = \"dataset\": the samples are of {} datasets; give 2 to {} in data.path or data.mix",
         types.names.size(), TaskTypes::kMost);
  for (const std::int64_t index : source.training())
    types.of_sample[static_cast<std::size_t>(index)] = static_cast<std::uint8_t>(source.dataset_of(index));
}

void by_images(const data::SampleSource& source, TaskTypes& types) {
  std::set<std::int64_t> used;
  for (const std::int64_t index : source.training()) used.insert(source.pictures_of(index));
  if (used.size() > TaskTypes::kMost)
    fail(ExitCode::kUsage,
         "tasks.by = \"images\": samples have {} different numbers of images, and there may be {} types", used.size(),
         TaskTypes::kMost);
  for (const std::int64_t images : used)
    types.names.push_back(fmt::format("{} image{}", images, images == 1 ? "" : "s"));
  for (const std::int64_t index : source.training())
    types.of_sample[static_cast<std::size_t>(index)] =
        static_cast<std::uint8_t>(std::distance(used.begin(), used.find(source.pictures_of(index))));
}

/// All that rules can look at in a sample. Many samples have the same.
struct Metadata {
  std::int64_t task = 0, dataset = 0, images = 0;

  bool operator<(const Metadata& other) const {
    return std::tie(task, dataset, images) < std::tie(other.task, other.dataset, other.images);
  }
};

Metadata metadata_of(const data::SampleSource& source, std::int64_t index) {
  return {source.task_of(index), source.dataset_of(index), source.pictures_of(index)};
}

/// tasks.rules over the samples of a source. The first rule that matches counts.
class Rules {
 public:
  Rules(const std::vector<TaskRule>& rules, const data::SampleSource& source)
      : rules_(rules), patterns_(patterns_of(rules)), tasks_(source.tasks()), datasets_(source.datasets()) {
    for (const TaskRule& rule : rules)
      if (rule.field == "dataset" && datasets_.empty())
        fail(ExitCode::kUsage,
             "tasks.rules: \"{}\" has field = \"dataset\", and these samples are of no dataset; give another field",
             rule.name);
  }

  std::size_t first_match(const Metadata& sample) const {
    for (std::size_t rule = 0; rule < rules_.size(); ++rule)
      if (std::regex_search(text_of(rules_[rule].field, sample), patterns_[rule])) return rule;
    fail(ExitCode::kUsage, "tasks.rules: none matches the {}; add one, or match = \".*\" at the end",
         description_of(sample));
  }

 private:
  std::string text_of(const std::string& field, const Metadata& sample) const {
    if (field == "task") return tasks_.empty() ? "" : tasks_[static_cast<std::size_t>(sample.task)];
    if (field == "dataset") return datasets_[static_cast<std::size_t>(sample.dataset)];
    if (field == "images") return std::to_string(sample.images);
    fail(ExitCode::kUsage, "tasks.rules: field = \"{}\" is unknown; give \"task\", \"dataset\" or \"images\"", field);
  }

  /// In the fields that the rules look at.
  std::string description_of(const Metadata& sample) const {
    std::set<std::string> fields;
    for (const TaskRule& rule : rules_) fields.insert(rule.field);
    std::vector<std::string> words;
    for (const std::string& field : fields) words.push_back(fmt::format("{} \"{}\"", field, text_of(field, sample)));
    return fmt::format("{}", fmt::join(words, " and the "));
  }

  const std::vector<TaskRule>& rules_;
  std::vector<std::regex> patterns_;
  std::vector<std::string> tasks_, datasets_;
};

void name_by_rules(const std::vector<TaskRule>& rules, TaskTypes& types) {
  if (rules.empty() || rules.size() > TaskTypes::kMost)
    fail(ExitCode::kUsage, "tasks.by = \"rules\" with {} tasks.rules; give 1 to {}", rules.size(), TaskTypes::kMost);
  for (const TaskRule& rule : rules) {
    if (std::ranges::find(types.names, rule.name) != types.names.end())
      fail(ExitCode::kUsage, "tasks.rules: two rules have name = \"{}\"; join their patterns with |", rule.name);
    types.names.push_back(rule.name);
  }
}

void by_rules(const std::vector<TaskRule>& given, const data::SampleSource& source, TaskTypes& types) {
  name_by_rules(given, types);
  const Rules rules(given, source);
  std::map<Metadata, std::uint8_t> known;
  for (const std::int64_t index : source.training()) {
    const auto [found, added] = known.try_emplace(metadata_of(source, index));
    if (added) found->second = static_cast<std::uint8_t>(rules.first_match(found->first));
    types.of_sample[static_cast<std::size_t>(index)] = found->second;
  }
}

// Fractions to whole parts, the largest remainders first; what has a fraction has a part.
std::vector<std::int64_t> parts_of(const std::vector<double>& fractions) {
  std::vector<std::int64_t> parts;
  std::vector<std::size_t> order(fractions.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  for (const double fraction : fractions) {
    const auto part = static_cast<std::int64_t>(std::floor(fraction * static_cast<double>(data::kWholeTarget)));
    parts.push_back(fraction > 0 ? std::max<std::int64_t>(1, part) : 0);
  }
  std::ranges::stable_sort(order, [&](std::size_t a, std::size_t b) {
    const auto rest = [&](std::size_t at) {
      return fractions[at] * static_cast<double>(data::kWholeTarget) - static_cast<double>(parts[at]);
    };
    return rest(a) > rest(b);
  });
  std::int64_t left = data::kWholeTarget - std::accumulate(parts.begin(), parts.end(), std::int64_t{0});
  for (std::size_t i = 0; left > 0; i = (i + 1) % order.size(), --left) ++parts[order[i]];
  for (; left < 0; ++left) --*std::ranges::max_element(parts);
  return parts;
}

std::vector<double> fractions_of(const Setting& target, const TaskTypes& types) {
  const std::size_t count = types.names.size();
  if (target.is("auto")) return count == 3 ? kThree : std::vector<double>(count, 1.0 / static_cast<double>(count));
  std::vector<double> fractions;
  if (target.is_list())
    for (const Setting& one : target.as_list()) fractions.push_back(one.as_double());
  if (fractions.size() != count)
    fail(ExitCode::kUsage, "tasks.target: give \"auto\", \"natural\" or {} fractions, in the order of {}", count,
         sentence(types.names));
  const double sum = std::accumulate(fractions.begin(), fractions.end(), 0.0);
  const bool fine = std::ranges::all_of(fractions, [](double one) { return one >= 0 && one <= 1; });
  if (!fine || std::abs(sum - 1) > kTolerance)
    fail(ExitCode::kUsage, "tasks.target = [{}]: give fractions from 0 to 1 that make 1; these make {:.4g}",
         fmt::join(fractions, ", "), sum);
  for (double& fraction : fractions) fraction /= sum;
  return fractions;
}

void check_samples(const TaskTypes& types) {
  for (std::size_t type = 0; type < types.target.size(); ++type)
    if (types.target[type] > 0 && types.samples[type] == 0)
      fail(ExitCode::kUsage, "tasks.target: \"{}\" is to have {:.1f} % of the draws and no training sample is of it",
           types.names[type], 100 * types.part_of(type));
}

}  // namespace

double TaskTypes::part_of(std::size_t type) const {
  if (!target.empty()) return static_cast<double>(target[type]) / static_cast<double>(data::kWholeTarget);
  const std::int64_t all = std::accumulate(samples.begin(), samples.end(), std::int64_t{0});
  return static_cast<double>(samples[type]) / static_cast<double>(all);
}

TaskTypes task_types(const TaskConfig& config, const data::SampleSource& source) {
  TaskTypes types;
  if (config.by == "off") {
    if (config.gradnorm) fail(ExitCode::kUsage, "tasks.gradnorm needs types of samples; set tasks.by");
    return types;
  }
  types.of_sample.resize(static_cast<std::size_t>(source.size()));
  if (config.by == "task") by_task(source, types);
  if (config.by == "images") by_images(source, types);
  if (config.by == "dataset") by_dataset(source, types);
  if (config.by == "rules") by_rules(config.rules, source, types);
  types.samples.resize(types.names.size());
  for (const std::int64_t index : source.training()) ++types.samples[types.type_of(index)];
  if (!config.target.is("natural")) types.target = parts_of(fractions_of(config.target, types));
  check_samples(types);
  types.normalise = config.normalise;
  types.weights = config.weights.empty() ? std::vector<double>(types.names.size(), 1.0) : config.weights;
  if (types.weights.size() != types.names.size())
    fail(ExitCode::kUsage, "tasks.weights has {} numbers for {} types: {}", types.weights.size(), types.names.size(),
         sentence(types.names));
  for (const double weight : types.weights)
    if (!(weight >= 0) || !std::isfinite(weight))
      fail(ExitCode::kUsage, "tasks.weights has {}; give numbers from 0", weight);
  return types;
}

std::shared_ptr<const data::StreamOrder> stream_order(const TaskTypes& types, const data::SampleSource& source,
                                                      std::uint64_t seed) {
  auto order = std::make_shared<data::StreamOrder>();
  order->samples = source.training();
  order->seed = seed;
  order->target = types.target;
  if (!types.target.empty())
    for (const std::int64_t index : order->samples)
      order->types.push_back(types.of_sample[static_cast<std::size_t>(index)]);
  return order;
}

std::vector<double> type_weights(const TaskTypes& types, std::span<const std::int64_t> counts,
                                 std::span<const double> balance) {
  const std::int64_t batch = std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
  std::vector<double> weights = types.weights;
  for (std::size_t type = 0; type < weights.size(); ++type) {
    if (!balance.empty()) weights[type] *= balance[type];
    if (types.normalise && counts[type] > 0)
      weights[type] *= static_cast<double>(batch) * types.part_of(type) / static_cast<double>(counts[type]);
  }
  return weights;
}

}  // namespace plimsoll::train
