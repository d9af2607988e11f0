#include "train/task_types.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <numeric>
#include <regex>
#include <set>
#include <string_view>
#include <utility>

#include "core/error.h"
#include "data/turns.h"

namespace plimsoll::train {
namespace {

constexpr double kTolerance = 1e-3;  // of a target's sum
const std::vector<double> kThree = {0.4, 0.3, 0.3};
constexpr std::string_view kColumnField = "column:";

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

/// What rules can look at in samples. Many samples have the same.
struct RuleField {
  std::vector<std::string> texts;                       // empty: the number is the text
  std::function<std::int64_t(std::int64_t)> number_of;  // which of them a sample has

  std::string text_of(std::int64_t number) const {
    return texts.empty() ? std::to_string(number) : texts[static_cast<std::size_t>(number)];
  }
};

RuleField column_field(const std::string& name, const data::SampleSource& source) {
  data::SampleColumn column = source.column(name);
  if (std::ssize(column.of_sample) != source.size())
    fail(ExitCode::kUsage, "tasks.rules: field = \"column:{}\": {} of {} samples have that column; give another field",
         name, column.of_sample.size(), source.size());
  return {std::move(column.texts), [numbers = std::move(column.of_sample)](std::int64_t index) {
            return std::int64_t{numbers[static_cast<std::size_t>(index)]};
          }};
}

RuleField rule_field(const TaskRule& rule, const data::SampleSource& source) {
  const std::string& field = rule.field;
  if (field == "task") {
    std::vector<std::string> texts = source.tasks();
    if (texts.empty()) texts.emplace_back();
    return {std::move(texts), [&source](std::int64_t index) { return source.task_of(index); }};
  }
  if (field == "images") return {{}, [&source](std::int64_t index) { return source.pictures_of(index); }};
  if (field != "dataset" && field != "episode" && !field.starts_with(kColumnField))
    fail(ExitCode::kUsage,
         "tasks.rules: field = \"{}\" is unknown; give \"task\", \"dataset\", \"images\", \"episode\" or \"{}NAME\"",
         field, kColumnField);
  if (source.datasets().empty())
    fail(ExitCode::kUsage,
         "tasks.rules: \"{}\" has field = \"{}\", and these samples are of no dataset; give another field", rule.name,
         field);
  if (field == "dataset")
    return {source.datasets(), [&source](std::int64_t index) { return source.dataset_of(index); }};
  if (field == "episode") return {{}, [&source](std::int64_t index) { return source.episode_index_of(index); }};
  return column_field(field.substr(kColumnField.size()), source);
}

/// tasks.rules over the samples of a source. The first rule that matches counts.
class Rules {
 public:
  Rules(const std::vector<TaskRule>& rules, const data::SampleSource& source)
      : rules_(rules), patterns_(patterns_of(rules)) {
    for (const TaskRule& rule : rules)
      if (!fields_.contains(rule.field)) fields_.emplace(rule.field, rule_field(rule, source));
  }

  /// What a sample has in each of the fields that the rules look at.
  std::vector<std::int64_t> numbers_of(std::int64_t index) const {
    std::vector<std::int64_t> numbers;
    for (const auto& [name, field] : fields_) numbers.push_back(field.number_of(index));
    return numbers;
  }

  /// Of a sample that has these.
  std::size_t first_match(const std::vector<std::int64_t>& numbers) const {
    std::map<std::string, std::string> texts;  // by field
    auto number = numbers.begin();
    for (const auto& [name, field] : fields_) texts.emplace(name, field.text_of(*number++));
    for (std::size_t rule = 0; rule < rules_.size(); ++rule)
      if (std::regex_search(texts.at(rules_[rule].field), patterns_[rule])) return rule;
    std::vector<std::string> words;
    for (const auto& [name, text] : texts) words.push_back(fmt::format("{} \"{}\"", name, text));
    fail(ExitCode::kUsage, "tasks.rules: none matches the {}; add one, or match = \".*\" at the end",
         fmt::join(words, " and the "));
  }

 private:
  const std::vector<TaskRule>& rules_;
  std::vector<std::regex> patterns_;
  std::map<std::string, RuleField> fields_;
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
  std::map<std::vector<std::int64_t>, std::uint8_t> known;
  for (const std::int64_t index : source.training()) {
    const auto [found, added] = known.try_emplace(rules.numbers_of(index));
    if (added) found->second = static_cast<std::uint8_t>(rules.first_match(found->first));
    types.of_sample[static_cast<std::size_t>(index)] = found->second;
  }
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

// Weights of datasets say which of a type's samples are drawn; that must be a choice.
void check_dataset_weights(const TaskTypes& types, const data::SampleSource& source) {
  if (types.target.empty() || source.dataset_weights().size() < 2) return;
  std::vector<std::int64_t> only(types.names.size(), -1);  // dataset of each type's samples
  for (const std::int64_t index : source.training()) {
    std::int64_t& dataset = only[types.type_of(index)];
    if (dataset < 0) dataset = source.dataset_of(index);
    if (dataset != source.dataset_of(index)) return;
  }
  fail(ExitCode::kUsage,
       "the weights of the datasets (`weight` in data.mix, or data.weights) decide nothing: tasks.target says how "
       "often each type is drawn, and every type's samples are of one dataset; take the weights away, or set "
       "tasks.target = \"natural\"");
}

// Where types have no target and datasets have weights, a type is drawn as often as the datasets have it.
std::vector<double> drawn_parts(const TaskTypes& types, const data::SampleSource& source) {
  std::vector<double> weights = source.dataset_weights();
  if (!types.target.empty() || weights.size() < 2) return {};
  std::vector<std::int64_t> samples(weights.size());
  for (const std::int64_t index : source.training()) ++samples[static_cast<std::size_t>(source.dataset_of(index))];
  for (std::size_t dataset = 0; dataset < weights.size(); ++dataset)
    if (samples[dataset] == 0) weights[dataset] = 0;
  const std::vector<std::int64_t> parts = data::parts_by_weight(std::move(weights), data::kWholeTarget);
  std::vector<double> drawn(types.names.size());
  for (const std::int64_t index : source.training()) {
    const auto dataset = static_cast<std::size_t>(source.dataset_of(index));
    drawn[types.type_of(index)] += static_cast<double>(parts[dataset]) / static_cast<double>(data::kWholeTarget) /
                                   static_cast<double>(samples[dataset]);
  }
  return drawn;
}

}  // namespace

double TaskTypes::part_of(std::size_t type) const {
  if (!target.empty()) return static_cast<double>(target[type]) / static_cast<double>(data::kWholeTarget);
  if (!drawn.empty()) return drawn[type];
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
  if (!config.target.is("natural"))
    types.target = data::whole_parts(fractions_of(config.target, types), data::kWholeTarget);
  check_samples(types);
  check_dataset_weights(types, source);
  types.drawn = drawn_parts(types, source);
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
  order->weights = source.dataset_weights();
  if (order->weights.size() < 2) order->weights.clear();  // nothing to choose from
  if (!order->weights.empty())
    for (const std::int64_t index : order->samples)
      order->datasets.push_back(static_cast<std::uint16_t>(source.dataset_of(index)));
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
